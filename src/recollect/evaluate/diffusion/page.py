"""The report of a frontier: charts, pictures to look at beside the uncached ones, all numbers."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from recollect.errors import RecollectError, StoreError
from recollect.evaluate.diffusion.chart import Measure, against_flops, measured, series
from recollect.evaluate.diffusion.frontier import FEWER, UNCACHED, Row, load
from recollect.evaluate.report import charts, palette
from recollect.evaluate.report.page import asset
from recollect.evaluate.results import write_text

_SHARE = 1 / 3  # of the computation: settings nearest to it are shown as pictures


def write_page(folder: Path, out: Path | None = None) -> Path:
    """Write ``report.html`` of a run folder (or `out`) and return its path. Raises StoreError."""
    about, rows = load(folder)
    path = out or folder / "report.html"
    write_text(path, page(about, rows))
    return path


def page(about: dict[str, Any], rows: Sequence[Row]) -> str:
    """The report as HTML. Raises RecollectError without jinja2, StoreError without rows."""
    if not any(row.recipe == UNCACHED for row in rows):
        raise StoreError("this run has no results yet; run recollect eval-diffusion first")
    try:
        import jinja2
    except ImportError as error:
        raise RecollectError(
            "the report needs jinja2; install it with: pip install 'recollect[eval]'"
        ) from error
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(
        resources.files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8")
    )
    return template.render(_content(about, rows, jinja2.utils.markupsafe.Markup))


def _content(about: dict[str, Any], rows: Sequence[Row], markup: Any) -> dict[str, Any]:
    numbers, measures = series(rows), measured(rows)
    modes = list(dict.fromkeys((row.steps, row.solver) for row in rows))
    groups = {mode: [r for r in rows if (r.steps, r.solver) == mode] for mode in modes}
    return {
        "about": about,
        "style": markup(palette.css() + asset("chart.css") + asset("page.css")),
        "script": markup(asset("page.js")),
        "modes": [{"name": _name(mode), "title": f"{mode[0]} steps, {mode[1]}"} for mode in modes],
        "measures": measures,
        "tiles": _tiles(groups[modes[0]], measures[0]),
        "legend": [
            {"recipe": r, "colour": palette.colour(n), "mark": palette.mark(n)}
            for r, n in numbers.items()
        ],
        "charts": [
            {
                "mode": _name(mode),
                "measure": measure.name,
                "large": markup(against_flops(its, measure, numbers, charts.LARGE)),
                "small": markup(against_flops(its, measure, numbers, charts.SMALL)),
            }
            for mode, its in groups.items()
            for measure in measures
        ],
        "grids": [
            {"mode": _name(mode), "rows": _grid(its, measures[0])} for mode, its in groups.items()
        ],
        "tables": [
            {"mode": _name(mode), "rows": _table(its, measures)} for mode, its in groups.items()
        ],
        "refused": sorted({(r.recipe, r.refused) for r in rows if r.refused}),
    }


def _name(mode: tuple[int, str]) -> str:
    return f"{mode[0]}-{mode[1]}"


def _tiles(rows: Sequence[Row], measure: Measure) -> list[dict[str, str]]:
    """The best setting near a third of the computation, and the baseline there."""
    near = [r for r in rows if not r.refused and r.recipe != UNCACHED and r.flops <= _SHARE + 0.02]
    if not near:
        return []
    best = max(near, key=lambda r: r.measures[measure.name])
    tiles = [
        {
            "title": "Best at a third of the computation",
            "figure": measure.words(best.measures[measure.name]),
            "words": f"{best.setting}, {best.flops:.0%} computed",
        }
    ]
    fewer = [r for r in near if r.recipe == FEWER]
    if fewer:
        base = max(fewer, key=lambda r: r.measures[measure.name])
        tiles.append(
            {
                "title": "Simply fewer steps",
                "figure": measure.words(base.measures[measure.name]),
                "words": f"{base.setting}, {base.flops:.0%} computed",
            }
        )
    return tiles


def _grid(rows: Sequence[Row], measure: Measure) -> list[dict[str, Any]]:
    """The uncached pictures, then each recipe's setting that is nearest to a third."""
    shown = [next(row for row in rows if row.recipe == UNCACHED)]
    for recipe in series(rows):
        mine = [r for r in rows if r.recipe == recipe and not r.refused]
        shown.append(min(mine, key=lambda r: abs(r.flops - _SHARE)))
    return [
        {
            "title": row.setting if row.recipe != UNCACHED else f"uncached, {row.setting}",
            "words": f"{row.flops:.0%} computed, {measure.words(row.measures[measure.name])}"
            if row.recipe != UNCACHED
            else "what the others are compared with",
            "samples": row.samples,
        }
        for row in shown
    ]


def _table(rows: Sequence[Row], measures: Sequence[Measure]) -> list[dict[str, Any]]:
    table = []
    for row in rows:
        if row.refused:
            continue
        cells = [(row.setting, row.setting), (f"{row.flops:.3f}", f"{row.flops:.0%}")]
        for measure in measures:
            value = row.measures.get(measure.name)
            cells.append(("", "–") if value is None else (f"{value}", f"{value:{measure.form}}"))
        cells.append((f"{row.seconds}", f"{row.seconds:.2f}"))
        cells.append((f"{row.bytes}", f"{row.bytes / 1024:,.0f}"))
        table.append({"host": row.recipe in (UNCACHED, FEWER), "cells": cells})
    return table
