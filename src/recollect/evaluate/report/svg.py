"""Small pieces of SVG: elements, scales and axes. No library draws here, so nothing is fetched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape


def tag(name: str, *children: str, **attributes: object) -> str:
    """An element; `class_` and `data_tip` become `class` and `data-tip`; None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{written}>{''.join(children)}</{name}>"


def text(x: float, y: float, words: str, **attributes: object) -> str:
    """Words at a place."""
    return tag("text", escape(words), x=x, y=y, **attributes)


@dataclass(frozen=True)
class Frame:
    """The part of a picture inside the axes, in pixels.

    Attributes:
        left, top, right, bottom: its borders.
    """

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Scale:
    """Values to pixels.

    Attributes:
        low, high: values at the ends.
        start, end: pixels at the ends.
        log: logarithmic.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values inside an interval, about so many."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * min((m for m in (1, 2, 2.5, 5, 10) if m * power >= raw), default=10)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 10) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def y_axis(frame: Frame, scale: Scale, values: list[float], form: str) -> str:
    """Lines across the frame with labels at the left."""
    return "".join(
        tag("line", x1=frame.left, x2=frame.right, y1=scale(v), y2=scale(v), class_="grid")
        + text(frame.left - 8, scale(v) + 4, format(v, form), text_anchor="end", class_="tick")
        for v in values
    )


def x_axis(frame: Frame, scale: Scale, values: list[float], form: str) -> str:
    """Ticks below the frame with labels."""
    line = tag("line", x1=frame.left, x2=frame.right, y1=frame.bottom, y2=frame.bottom,
               class_="axis")  # fmt: skip
    return line + "".join(
        tag("line", x1=scale(v), x2=scale(v), y1=frame.bottom, y2=frame.bottom + 5, class_="axis")
        + text(scale(v), frame.bottom + 18, format(v, form), text_anchor="middle", class_="tick")
        for v in values
    )


def picture(width: float, height: float, label: str, *children: str, class_: str = "chart") -> str:
    """A whole drawing that scales with the page."""
    return tag("svg", *children, xmlns="http://www.w3.org/2000/svg", role="img", aria_label=label,
               viewBox=f"0 0 {_short(width)} {_short(height)}", class_=class_)  # fmt: skip


def _short(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
