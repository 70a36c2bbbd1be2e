"""The charts: quality against bytes, decode speed against bytes, kept tokens by layer and head."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from recollect.evaluate.caches import HOST, Variant
from recollect.evaluate.metrics import Metric
from recollect.evaluate.report import palette
from recollect.evaluate.report.svg import (
    Frame,
    Scale,
    picture,
    tag,
    text,
    ticks,
    x_axis,
    y_axis,
)
from recollect.evaluate.statistics import Estimate
from recollect.evaluate.summary import Point

_PERCENTS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_DODGE = 2.6  # pixels between recipes that hold the same bytes


@dataclass(frozen=True)
class Look:
    """Size of a chart.

    Attributes:
        width, height: in its own pixels; the page scales it.
        axes: name the axes, in large charts.
    """

    width: float
    height: float
    axes: bool = True

    @property
    def frame(self) -> Frame:
        left, bottom = (64, 46) if self.axes else (48, 26)
        return Frame(left, 14, self.width - 14, self.height - bottom)


LARGE = Look(860, 430)
SMALL = Look(420, 250, axes=False)


def frontier(points: Sequence[Point], metric: Metric, numbers: dict[str, int], look: Look) -> str:
    """Quality against bytes, one line per recipe, whiskers for the 95% intervals."""
    form = ".0%" if metric.bounds == (0.0, 1.0) else "g"
    return _against_bytes(
        points, numbers, look, _bounds([p.value for p in points], metric), form,
        y_title=metric.title + ("" if metric.higher_is_better else " (lower is better)"),
        reference="full cache", what=metric.title,
    )  # fmt: skip


def speed(points: Sequence[Point], numbers: dict[str, int], look: Look) -> str:
    """Decode speed against bytes, as a ratio to the host's cache; whiskers from slowest to fastest
    round."""
    highest = max(p.value.high for p in points)
    lowest = min(p.value.low for p in points)
    return _against_bytes(
        points, numbers, look, (min(0.0, lowest), 1.08 * highest), ".2g",
        y_title="Decode speed, host's cache = 1", reference="host's cache", what="Decode speed",
    )  # fmt: skip


def heat_map(seen: int, kept: Sequence[Sequence[float]]) -> str:
    """Share of tokens kept by every layer (down) and head (across)."""
    heads = max(len(row) for row in kept)
    cell_w = max(8.0, min(42.0, 210 / heads))
    cell_h = max(8.0, min(22.0, 330 / len(kept)))
    left, top = 22.0, 16.0
    numbered = cell_w >= 28 and cell_h >= 16
    step = max(1, math.ceil(len(kept) / 16))
    parts = []
    for layer, row in enumerate(kept):
        y = top + layer * cell_h
        if layer % step == 0:
            parts.append(text(left - 6, y + cell_h / 2 + 3.5, str(layer), text_anchor="end",
                              class_="hint"))  # fmt: skip
        for head, count in enumerate(row):
            share = count / seen
            parts.append(tag("rect", x=left + head * cell_w, y=y, width=cell_w - 1.5,
                height=cell_h - 1.5, rx=2, class_="cell mark", style=f"--v:{share:.3f}",
                data_tip=f"layer {layer}, head {head}: {count:g} of {seen} tokens ({share:.1%})",
            ))  # fmt: skip
            if numbered:
                parts.append(text(left + (head + 0.5) * cell_w - 0.7, y + cell_h / 2 + 3.5,
                    f"{100 * share:.0f}", text_anchor="middle",
                    class_="on-cell" + (" deep" if share > 0.55 else "")))  # fmt: skip
    width, height = max(left + heads * cell_w + 2, 90), top + len(kept) * cell_h + 2
    caption = text(left, 10, "head →", class_="hint")
    label = f"kept tokens of {len(kept)} layers and {heads} heads"
    return picture(width, height, label, caption, *parts, class_="heat")


def legend(numbers: dict[str, int], x: float, y: float) -> str:
    """Marks and names, one below the other, for a picture that stands alone."""
    rows = []
    for row, (recipe, number) in enumerate(numbers.items()):
        at = y + 21 * row
        rows.append(marked(x, at, number) + text(x + 12, at + 4, recipe, class_="name"))
    return "".join(rows)


def _against_bytes(
    points: Sequence[Point],
    numbers: dict[str, int],
    look: Look,
    bounds: tuple[float, float],
    form: str,
    *,
    y_title: str,
    reference: str,
    what: str,
) -> str:
    frame = look.frame
    lowest = min(p.bytes_ratio for p in points)
    x = Scale(0.85 * lowest, 1.12 * max(1.0, *(p.bytes_ratio for p in points)),
              frame.left, frame.right, log=True)  # fmt: skip
    y = Scale(*bounds, frame.bottom, frame.top)
    parts = [
        y_axis(frame, y, ticks(*bounds, 5 if look.axes else 4), form),
        x_axis(frame, x, [v for v in _PERCENTS if x.low <= v <= x.high], ".0%"),
    ]
    if look.axes:
        middle = (frame.top + frame.bottom) / 2
        parts.append(text((frame.left + frame.right) / 2, look.height - 8, "bytes held, of the "
                          "host's cache", text_anchor="middle", class_="title"))  # fmt: skip
        parts.append(text(0, 0, y_title, text_anchor="middle", class_="title",
                          transform=f"translate(17 {middle:.0f}) rotate(-90)"))  # fmt: skip
    parts += _reference(points, frame, y, reference)
    by_recipe: dict[str, list[Point]] = defaultdict(list)
    for point in points:
        if point.variant.recipe in numbers:
            by_recipe[point.variant.recipe].append(point)
    middle_rank = (len(by_recipe) - 1) / 2
    for rank, (recipe, its) in enumerate(by_recipe.items()):
        shift = _DODGE * (rank - middle_rank)
        parts.append(_series(sorted(its, key=lambda p: p.bytes_ratio), numbers[recipe], x, y,
                             shift, form, what))  # fmt: skip
    names = ", ".join(by_recipe)
    return picture(look.width, look.height, f"{y_title} against bytes held: {names}", *parts)


def _reference(points: Sequence[Point], frame: Frame, y: Scale, label: str) -> list[str]:
    """A dashed line, and a band, where the host's own cache stands."""
    found = [p.value for p in points if p.variant.recipe == HOST]
    if not found:
        return []
    host = found[0]
    band = max(0.0, y(host.low) - y(host.high))
    return [
        tag("rect", x=frame.left, y=y(host.high), width=frame.right - frame.left, height=band,
            class_="band"),
        tag("line", x1=frame.left, x2=frame.right, y1=y(host.mean), y2=y(host.mean),
            class_="reference"),
        text(frame.left + 6, _clear(y(host.mean), frame), label, class_="reference-name"),
    ]  # fmt: skip


def _clear(y: float, frame: Frame) -> float:
    """Above the line, or below it where it touches the top."""
    return y - 6 if y - 18 > frame.top else y + 15


def _series(
    its: list[Point], number: int, x: Scale, y: Scale, shift: float, form: str, what: str
) -> str:
    places = [(x(p.bytes_ratio) + shift, y(p.value.mean)) for p in its]
    line = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in places)
    parts = [tag("path", d=line, class_="line")]
    for point, (px, py) in zip(its, places, strict=True):
        value = point.value
        parts.append(tag("line", x1=px, x2=px, y1=y(value.low), y2=y(value.high),
                         class_="whisker"))  # fmt: skip
        parts.append(marked(px, py, number, tip(point.variant, point, form, what)))
    recipe = its[0].variant.recipe
    return tag("g", *parts, class_="series", data_recipe=recipe, style=ink(number))


def marked(x: float, y: float, number: int, tip: str | None = None) -> str:
    """The mark of a series at a place."""
    return tag("path", d=palette.mark(number), transform=f"translate({x:.1f} {y:.1f})",
               class_="mark", style=ink(number), data_tip=tip)  # fmt: skip


def ink(number: int) -> str:
    """Style that gives an element the colour of a series."""
    return f"--ink-series:{palette.colour(number)}"


def tip(variant: Variant, point: Point, form: str, what: str) -> str:
    """What a mark tells when pointed at."""
    value = point.value
    digits = ".1%" if form == ".0%" else ".3g"
    return (
        f"{variant.label}\n{what}: {value.mean:{digits}} "
        f"({value.low:{digits}} to {value.high:{digits}}, n={value.cases})\n"
        f"bytes: {point.bytes_ratio:.1%} of the host's"
    )


def _bounds(values: list[Estimate], metric: Metric) -> tuple[float, float]:
    """The interval to show: the metric's natural one, or what there is with some air."""
    low, high = metric.bounds
    lowest, highest = min(v.low for v in values), max(v.high for v in values)
    air = 0.06 * (highest - lowest) or 0.1
    return (lowest - air if low is None else low), (highest + air if high is None else high)
