"""The report: one HTML file with everything in it, that opens offline."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any

from recollect.errors import RecollectError, StoreError
from recollect.evaluate import summary, tasks
from recollect.evaluate.metrics import METRICS, Metric
from recollect.evaluate.report import charts, palette, tables
from recollect.evaluate.report.findings import BASELINES, MODE_WORDS, tiles
from recollect.evaluate.summary import AVERAGE, Point, Record, Speed

_MODES = {
    "agnostic": (
        "Asked after compression",
        "The context was compressed before any question was known: one cache serves them all.",
    ),
    "aware": (
        "In view while compressing",
        "The question was part of the prompt when it was compressed: the method knew what to keep, "
        "which flatters it wherever a cache is to be used again.",
    ),
}


def page(about: dict[str, Any], records: Sequence[Record]) -> str:
    """The report as HTML.

    Raises RecollectError when jinja2 is missing, StoreError when there is nothing to show.
    """
    if not summary.modes(records):
        raise StoreError("this run has no results yet; run recollect eval first")
    try:
        import jinja2
    except ImportError as error:
        raise RecollectError(
            "the report needs jinja2; install it with: pip install 'recollect[eval]'"
        ) from error
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(asset("page.html.j2"))
    return template.render(_content(about, records, jinja2.utils.markupsafe.Markup))


def series_numbers(records: Sequence[Record]) -> dict[str, int]:
    """A number, hence a colour and a mark, for every recipe but the baselines."""
    recipes = dict.fromkeys(r["recipe"] for r in records if r["kind"] == "case")
    shown = [recipe for recipe in recipes if recipe not in BASELINES]
    return {recipe: number for number, recipe in enumerate(shown)}


def _content(about: dict[str, Any], records: Sequence[Record], markup: Any) -> dict[str, Any]:
    numbers = series_numbers(records)
    metrics = [m for m in METRICS.values() if _measured(records, m)]
    speeds = summary.speeds(records)
    modes = summary.modes(records)
    names = summary.task_names(records)
    views = [(mode, metric) for mode in modes for metric in metrics]
    return {
        "model": about["model"],
        "style": markup(palette.css() + asset("chart.css") + asset("page.css")),
        "script": markup(asset("page.js")),
        "subtitle": _subtitle(about, records),
        "tiles": tiles(records, speeds, metrics[0].name),
        "modes": [{"name": m, "title": _MODES[m][0], "words": _MODES[m][1]} for m in modes],
        "metrics": metrics,
        "legend": [
            {"recipe": r, "colour": palette.colour(n), "mark": palette.mark(n)}
            for r, n in numbers.items()
        ],
        "averages": [
            {
                "mode": mode,
                "metric": metric.name,
                "svg": markup(_chart(records, numbers, mode, metric, AVERAGE, charts.LARGE)),
                "small": markup(_chart(records, numbers, mode, metric, AVERAGE, charts.SMALL)),
            }
            for mode, metric in views
        ],
        "by_task": [
            {
                "mode": mode,
                "metric": metric.name,
                "charts": [
                    {
                        "title": tasks.find(name).title,
                        "svg": markup(_chart(records, numbers, mode, metric, name, charts.SMALL)),
                        "note": _note(records, mode, metric, name),
                    }
                    for name in names
                    if summary.points(records, metric=metric.name, mode=mode, task=name)
                ],
            }
            for mode, metric in views
        ],
        "speeds": [
            {
                "title": f"{length:,} tokens",
                "svg": markup(_speed_chart(speeds, numbers, length, charts.LARGE)),
                "small": markup(_speed_chart(speeds, numbers, length, charts.SMALL)),
            }
            for length in sorted({s.length for s in speeds})
        ],
        "heats": [{"mode": mode, "charts": _heats(records, mode, markup)} for mode in modes],
        "tables": [tables.numbers(records, speeds, metrics, mode) for mode in modes],
        "papers": tables.papers(records, speeds, metrics[0].name),
        "command": about.get("command") or "recollect eval",
        "facts": _facts(about, records),
    }


def _measured(records: Sequence[Record], metric: Metric) -> bool:
    return any(r["metrics"][metric.name] is not None for r in records if r["kind"] == "case")


def _chart(
    records: Sequence[Record],
    numbers: dict[str, int],
    mode: str,
    metric: Metric,
    task: str,
    look: charts.Look,
) -> str:
    its = summary.points(records, metric=metric.name, mode=mode, task=task)
    return charts.frontier(its, metric, numbers, look) if its else ""


def _speed_chart(
    speeds: Sequence[Speed], numbers: dict[str, int], length: int, look: charts.Look
) -> str:
    its = [Point(s.variant, s.bytes_ratio, s.decode) for s in speeds if s.length == length]
    return charts.speed(its, numbers, look)


def _note(records: Sequence[Record], mode: str, metric: Metric, task: str) -> str:
    """A warning under a chart that says nothing about recipes."""
    its = summary.points(records, metric=metric.name, mode=mode, task=task)
    host = next((p.value.mean for p in its if p.variant.recipe == "host"), None)
    if metric.bounds == (0.0, 1.0) and host is not None and host < 0.1:
        return "This model fails the task with its full cache: nothing here tells recipes apart."
    return ""


def _heats(records: Sequence[Record], mode: str, markup: Any) -> list[dict[str, Any]]:
    """One row of heat maps per recipe, from the largest keep to the smallest."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for variant, (seen, kept) in reversed(summary.kept(records, mode).items()):
        if variant.recipe not in BASELINES:
            rows.setdefault(variant.recipe, []).append(
                {"keep": f"keep {variant.keep:g}", "svg": markup(charts.heat_map(seen, kept))}
            )
    return [{"title": recipe, "maps": maps} for recipe, maps in rows.items()]


def _subtitle(about: dict[str, Any], records: Sequence[Record]) -> str:
    model, settings = about["model"], about["settings"]
    cases = len({(r["task"], r["mode"], r["length"], r["seed"], r["case"])
                 for r in records if r["kind"] == "case"})  # fmt: skip
    lengths = ", ".join(f"{length:,}" for length in settings["lengths"])
    return (
        f"{model['type']}, {model['parameters'] / 1e6:,.1f} M parameters, {model['dtype']} on "
        f"{model['device']}. {cases} cases of {len(summary.task_names(records))} tasks over real "
        f"source text, contexts of {lengths} tokens. Every number is against the host's own cache, "
        "measured in the same run."
    )


def _facts(about: dict[str, Any], records: Sequence[Record]) -> list[tuple[str, str]]:
    settings, model = about["settings"], about["model"]
    shown = {
        "Model": f"{model['name']} (fingerprint {model['fingerprint'][:16]})",
        "Recipes": ", ".join(settings["recipes"]),
        "Keep": ", ".join(str(keep) for keep in settings["keeps"]),
        "Tasks": ", ".join(settings["tasks"]),
        "Modes": ", ".join(f"{mode} ({MODE_WORDS[mode]})" for mode in settings["modes"]),
        "Seeds": f"0 to {settings['seeds'] - 1}, {settings['cases']} cases each",
        "Chat template": "yes" if settings["chat"] else "no",
        "Versions": ", ".join(f"{k} {v}" for k, v in about.get("versions", {}).items()),
        "Started": about.get("started", ""),
        "Measurements": f"{len(records):,}",
    }
    return [(name, value) for name, value in shown.items() if value]


def asset(name: str) -> str:
    """A file that pages are made of."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
