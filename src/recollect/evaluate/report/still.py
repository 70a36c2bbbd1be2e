"""One still picture of quality against bytes, for a README: SVG that follows light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from recollect.errors import RecipeError, StoreError
from recollect.evaluate import summary
from recollect.evaluate.metrics import METRICS
from recollect.evaluate.report import charts, palette
from recollect.evaluate.report.findings import MODE_WORDS
from recollect.evaluate.report.page import series_numbers
from recollect.evaluate.report.svg import picture, tag, text

_LEGEND = 200  # pixels at the right


def still(records: Sequence[summary.Record], *, title: str, mode: str, metric: str) -> str:
    """The picture as SVG. Raises RecipeError or StoreError when there is nothing to draw."""
    if metric not in METRICS:
        raise RecipeError(f"unknown metric '{metric}'; there are: {', '.join(METRICS)}")
    if mode not in summary.modes(records):
        raise StoreError(f"this run has no results in mode '{mode}'")
    its = summary.points(records, metric=metric, mode=mode)
    numbers = series_numbers(records)
    look = charts.LARGE
    style = resources.files(__package__).joinpath("chart.css").read_text(encoding="utf-8")
    width, height = look.width + _LEGEND, look.height + 44
    return picture(
        width,
        height,
        title,
        tag("style", palette.css("svg") + style),
        tag("rect", width=width, height=height, rx=10, style="fill:var(--paper)"),
        text(20, 30, title, style="fill:var(--ink);font-size:17px;font-weight:600"),
        text(width - 20, 30, MODE_WORDS[mode], text_anchor="end", class_="tick"),
        tag(
            "g",
            _nested(charts.frontier(its, METRICS[metric], numbers, look), look),
            transform="translate(0 40)",
        ),
        charts.legend(numbers, look.width + 14, 76),
    )


def _nested(svg: str, look: charts.Look) -> str:
    """A nested picture needs its size, or it would fill the outer one."""
    return svg.replace("<svg ", f'<svg width="{look.width:g}" height="{look.height:g}" ', 1)
