"""One chart: a measure against the share of the computation, a line for each recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recollect.evaluate.diffusion.frontier import FEWER, UNCACHED, Row
from recollect.evaluate.report import charts
from recollect.evaluate.report.svg import Scale, picture, tag, text, ticks, x_axis, y_axis


@dataclass(frozen=True)
class Measure:
    """A number that pictures are judged by.

    Attributes:
        name: its key in `Row.measures`.
        title: for people.
        hint: what it is.
        form: how it is written.
        higher_is_better: which way is up.
    """

    name: str
    title: str
    hint: str
    form: str
    higher_is_better: bool = True


MEASURES = (
    Measure("psnr", "PSNR, dB", "decibels to the uncached picture of the same noise", ".1f"),
    Measure("ssim", "SSIM", "structural similarity to the uncached picture", ".3f"),
    Measure("perceptual", "Perceptual distance", "to the uncached picture, on a classifier's "
            "features", ".4f", higher_is_better=False),
    Measure("recognized", "Recognized", "share of pictures that a classifier still takes for what "
            "was asked", ".0%"),
    Measure("frechet", "Frechet distance", "to real pictures, on a classifier's features", ".3f",
            higher_is_better=False),
)  # fmt: skip


def measured(rows: Sequence[Row]) -> list[Measure]:
    """The measures that these rows have."""
    return [m for m in MEASURES if any(m.name in row.measures for row in rows)]


def against_flops(
    rows: Sequence[Row], measure: Measure, numbers: dict[str, int], look: charts.Look
) -> str:
    """The chart as SVG.

    Args:
        rows: of one number of steps and one solver.
        measure: the vertical axis.
        numbers: recipe -> number of its series; recipes without one are left out.
        look: size.
    """
    its = [r for r in rows if measure.name in r.measures and r.recipe in numbers]
    values = [row.measures[measure.name] for row in its]
    low, high = min(values), max(values)
    air = 0.06 * (high - low) or 0.1
    frame = look.frame
    x = Scale(0.0, max(1.0, *(row.flops for row in its)) * 1.02, frame.left, frame.right)
    y = Scale(low - air, high + air, frame.bottom, frame.top)
    parts = [
        y_axis(frame, y, ticks(y.low, y.high, 5 if look.axes else 4), measure.form),
        x_axis(frame, x, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0], ".0%"),
    ]
    title = measure.title + ("" if measure.higher_is_better else " (lower is better)")
    if look.axes:
        across, down = (frame.left + frame.right) / 2, (frame.top + frame.bottom) / 2
        parts.append(text(across, look.height - 8, "computed, of the uncached operations",
                          text_anchor="middle", class_="title"))  # fmt: skip
        parts.append(text(0, 0, title, text_anchor="middle", class_="title",
                          transform=f"translate(17 {down:.0f}) rotate(-90)"))  # fmt: skip
    for recipe, number in numbers.items():
        mine = sorted((r for r in its if r.recipe == recipe), key=lambda r: r.flops)
        if mine:
            parts.append(_series(mine, measure, number, x, y))
    return picture(look.width, look.height, f"{title} against computation", *parts)


def series(rows: Sequence[Row]) -> dict[str, int]:
    """A number for every recipe that was drawn; the uncached pictures have none."""
    drawn = dict.fromkeys(r.recipe for r in rows if not r.refused and r.recipe != UNCACHED)
    ordered = sorted(drawn, key=lambda recipe: recipe != FEWER)
    return {recipe: number for number, recipe in enumerate(ordered)}


def _series(mine: list[Row], measure: Measure, number: int, x: Scale, y: Scale) -> str:
    places = [(x(row.flops), y(row.measures[measure.name])) for row in mine]
    line = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in places)
    marks = [
        charts.marked(px, py, number, f"{row.setting}\n{measure.title}: "
                      f"{row.measures[measure.name]:{measure.form}}\ncomputed: {row.flops:.1%}")
        for row, (px, py) in zip(mine, places, strict=True)
    ]  # fmt: skip
    return tag("g", tag("path", d=line, class_="line"), *marks, class_="series",
               data_recipe=mine[0].recipe, style=charts.ink(number))  # fmt: skip
