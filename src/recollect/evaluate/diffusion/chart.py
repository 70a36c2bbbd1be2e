"""One chart: a measure against the share of the computation, a line for each recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recollect.evaluate.diffusion.frontier import FEWER, UNCACHED, Row
from recollect.evaluate.diffusion.painters import CEILING
from recollect.evaluate.report import charts
from recollect.evaluate.report.svg import Frame, Scale, picture, tag, text, ticks, x_axis, y_axis

_STRIP = 22.0  # pixels above the scale, for values off it


@dataclass(frozen=True)
class Measure:
    """A number that pictures are judged by.

    Attributes:
        name: its key in `Row.measures`.
        title: for people.
        hint: what it is.
        form: how it is written.
        higher_is_better: which way is up.
        unit: behind the number.
        top: from here on values are all the same to the eye: they are drawn at the upper edge, off
            the scale.
    """

    name: str
    title: str
    hint: str
    form: str
    higher_is_better: bool = True
    unit: str = ""
    top: float = math.inf

    def words(self, value: float) -> str:
        """A value for people."""
        same = self.top <= CEILING <= value
        return "identical" if same else f"{value:{self.form}}{self.unit}"


# At 70 dB about one value in fifteen of an 8-bit picture is rounded otherwise, by one level.
_DECIBELS: dict[str, Any] = {"form": ".1f", "unit": " dB", "top": 70.0}
MEASURES = (
    Measure("reached", "At the goal", "share of episodes that end there", ".0%"),
    Measure("psnr", "PSNR, dB", "decibels to the uncached picture of the same noise", **_DECIBELS),
    Measure("region", "PSNR of the region, dB", "the same, where the edit may change something",
            **_DECIBELS),
    Measure("motion", "PSNR of motion, dB", "the same, of the differences between successive "
            "frames", **_DECIBELS),
    Measure("ssim", "SSIM", "structural similarity to the uncached picture", ".3f"),
    Measure("perceptual", "Perceptual distance", "to the uncached picture, on a classifier's "
            "features", ".4f", higher_is_better=False),
    Measure("recognized", "Recognized", "share of pictures that a classifier still takes for what "
            "was asked", ".0%"),
    Measure("followed", "Outline followed", "share of shapes that fill their outline", ".0%"),
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
    scaled = [value for value in values if value < measure.top] or [measure.top]
    low, high = min(scaled), max(scaled)
    air = 0.06 * (high - low) or 0.1
    frame = look.frame
    x = Scale(0.0, max(1.0, *(row.flops for row in its)) * 1.02, frame.left, frame.right)
    beyond = max(values) >= measure.top
    y = Scale(low - air, high + air, frame.bottom, frame.top + _STRIP * beyond)
    parts = [
        y_axis(frame, y, ticks(y.low, y.high, 5 if look.axes else 4), measure.form),
        x_axis(frame, x, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0], ".0%"),
    ]
    if beyond:
        parts.append(text(frame.left - 8, frame.top + 9, f"≥ {measure.top:g}", text_anchor="end",
                          class_="tick"))  # fmt: skip
        edge = frame.top + _STRIP - 4
        parts.append(tag("line", x1=frame.left, x2=frame.right, y1=edge, y2=edge, class_="grid",
                         stroke_dasharray="4 4"))  # fmt: skip
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
            parts.append(_series(mine, measure, number, x, y, frame))
    return picture(look.width, look.height, f"{title} against computation", *parts)


def series(rows: Sequence[Row]) -> dict[str, int]:
    """A number for every recipe that was drawn; the uncached pictures have none."""
    drawn = dict.fromkeys(r.recipe for r in rows if not r.refused and r.recipe != UNCACHED)
    ordered = sorted(drawn, key=lambda recipe: recipe != FEWER)
    return {recipe: number for number, recipe in enumerate(ordered)}


def _series(
    mine: list[Row], measure: Measure, number: int, x: Scale, y: Scale, frame: Frame
) -> str:
    inside = [row for row in mine if row.measures[measure.name] < measure.top]
    line = "L".join(f"{x(r.flops):.1f} {y(r.measures[measure.name]):.1f}" for r in inside)
    lines = [tag("path", d=f"M{line}", class_="line")] if line else []
    marks = []
    for row in mine:
        value = row.measures[measure.name]
        place = y(value) if value < measure.top else frame.top + _STRIP / 3
        words = f"{row.setting}\n{measure.title}: {measure.words(value)}\ncomputed: {row.flops:.1%}"
        marks.append(charts.marked(x(row.flops), place, number, words))
    return tag("g", *lines, *marks, class_="series",
               data_recipe=mine[0].recipe, style=charts.ink(number))  # fmt: skip
