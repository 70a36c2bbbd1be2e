"""Results in the terminal: one table per mode, best first."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from recollect.cli.common import out


def show(records: list[dict[str, Any]]) -> None:
    """Print a table for each mode that was measured."""
    from recollect.evaluate import summary
    from recollect.evaluate.report.findings import MODE_WORDS

    speeds = {s.variant: s for s in summary.speeds(records)}
    for mode in summary.modes(records):
        out.print(_mode_table(records, mode, MODE_WORDS[mode], speeds))


def summarize(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same numbers, and those of every task, as plain data."""
    from recollect.evaluate import summary
    from recollect.evaluate.metrics import METRICS

    speeds = {s.variant: s for s in summary.speeds(records)}
    rows = []
    for mode in summary.modes(records):
        for task in (summary.AVERAGE, *summary.task_names(records)):
            for metric in METRICS:
                for point in summary.points(records, metric=metric, mode=mode, task=task):
                    speed = speeds.get(point.variant)
                    rows.append({
                        "recipe": point.variant.recipe, "keep": point.variant.keep,
                        "mode": mode, "task": task, "metric": metric,
                        "bytes_ratio": point.bytes_ratio, **point.value._asdict(),
                        "decode_speed": speed.decode.mean if speed else None,
                    })  # fmt: skip
    return rows


def _mode_table(records: list[dict[str, Any]], mode: str, words: str, speeds: Any) -> Table:
    from recollect.evaluate import summary
    from recollect.evaluate.caches import HOST

    table = Table(title=f"{mode}: {words}", title_justify="left", header_style="bold", box=None,
                  pad_edge=False, padding=(0, 1, 0, 0))  # fmt: skip
    for heading in ("recipe", "keep", "bytes", "tokens right", "exact", "KL to full"):
        table.add_column(heading, justify="left" if heading == "recipe" else "right", no_wrap=True,
                         overflow="fold")  # fmt: skip
    if speeds:
        table.add_column("decode", justify="right")
    by_metric = {
        metric: {p.variant: p for p in summary.points(records, metric=metric, mode=mode)}
        for metric in ("tokens", "exact", "kl")
    }
    ranked = sorted(
        by_metric["tokens"].values(),
        key=lambda p: (p.variant.recipe != HOST, -p.value.mean),
    )
    for point in ranked:
        exact = by_metric["exact"].get(point.variant)
        row = [
            point.variant.recipe,
            f"{point.variant.keep:g}",
            f"{point.bytes_ratio:.1%}",
            _share(point.value),
            _share(exact.value) if exact else "–",
            f"{by_metric['kl'][point.variant].value.mean:.3f}",
        ]
        if speeds:
            speed = speeds.get(point.variant)
            row.append(f"{speed.decode.mean:.2f}×" if speed else "–")
        table.add_row(*row, style="bold" if point.variant.recipe == HOST else None)
    return table


def _share(value: Any) -> str:
    return f"{value.mean:.1%} [dim]{value.low:3.0%}–{value.high:.0%}[/dim]"
