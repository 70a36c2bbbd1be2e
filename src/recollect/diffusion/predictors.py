"""What a step that is not computed gives: a forecast from the steps that were.

A predictor is told every computed value with its moment on a clock, and asked for the value at
another moment. Samples of a batch may have been computed at different steps: moments are (B,).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from recollect.diffusion.engine.clock import SCALES, Scale
from recollect.diffusion.engine.values import Value, nbytes, per_row, where_rows
from recollect.diffusion.parts import Part
from recollect.errors import RecipeError


@dataclass
class History:
    """What a predictor remembers of one site.

    Attributes:
        terms: the newest value and whatever follows it (slopes, older values), newest first.
        moment: (B,) float64, the clock at each sample's newest value.
        count: (B,) int64, values seen.
        uniform: whether all samples were always computed together; then one number does for all.
        extra: a predictor's own notes.
    """

    terms: list[Value] = field(default_factory=list)
    moment: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    count: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    uniform: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    def ahead(self, moment: torch.Tensor) -> float | torch.Tensor:
        """How far `moment` (B,) is from the newest values: one number where all samples agree."""
        ahead = moment - self.moment
        if not self.uniform:
            return ahead
        first, *others = ahead.tolist()
        return first if all(other == first for other in others) else ahead

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(map(nbytes, self.terms)) + sum(map(nbytes, self.extra.get("values", ())))

    @property
    def empty(self) -> bool:
        return not self.terms


@dataclass(frozen=True)
class Predictor(Part):
    """How the value of a skipped step is made."""

    @property
    @abstractmethod
    def tensors(self) -> int:
        """Tensors held for every tensor of a site, at most."""

    @property
    def scale(self) -> Scale:
        """The clock it extrapolates in."""
        return "step"

    @abstractmethod
    def observe(
        self, history: History, value: Value, moment: torch.Tensor, rows: torch.Tensor
    ) -> None:
        """Note a computed value: tensors (B, …), moment (B,), and which rows (B,) are fresh."""

    @abstractmethod
    def predict(self, history: History, moment: torch.Tensor) -> Value:
        """The value at `moment` (B,)."""


@dataclass(frozen=True)
class Reuse(Predictor):
    """The newest value, as it is (FORA, arXiv:2407.01425, and most caches)."""

    @property
    def tensors(self) -> int:
        return 1

    def observe(
        self, history: History, value: Value, moment: torch.Tensor, rows: torch.Tensor
    ) -> None:
        _note(history, [value], moment, rows)

    def predict(self, history: History, moment: torch.Tensor) -> Value:
        return history.terms[0]


@dataclass(frozen=True)
class Taylor(Predictor):
    """TaylorSeer's finite differences (arXiv:2503.06923).

    The j-th slope is the change of the (j-1)-th over the latest gap, for unequal gaps too: that
    damps the higher orders, where Newton's divided differences would overshoot.

    Attributes:
        order: slopes kept; 0 is reuse.
        clock: what to extrapolate in: `step`, `sigma` or `logit_sigma`. Order 2 and shifted
            schedules want `logit_sigma`.
    """

    order: int = 1
    clock: Scale = "step"

    def __post_init__(self) -> None:
        if not 0 <= self.order <= 4:
            raise RecipeError(f"order is 0 to 4, not {self.order}")
        if self.clock not in SCALES:
            raise RecipeError(f"clock is one of {', '.join(SCALES)}, not '{self.clock}'")

    @property
    def tensors(self) -> int:
        return self.order + 1

    @property
    def scale(self) -> Scale:
        return self.clock

    def observe(
        self, history: History, value: Value, moment: torch.Tensor, rows: torch.Tensor
    ) -> None:
        terms = [value]
        if not history.empty:
            gap = moment - history.moment
            for old in history.terms[: self.order]:
                terms.append(_slope(terms[-1], old, gap))
        _note(history, terms, moment, rows)

    def predict(self, history: History, moment: torch.Tensor) -> Value:
        ahead = history.ahead(moment)
        weights = [
            ahead**power / math.factorial(power) * _usable(history, power)
            for power in range(1, len(history.terms))
        ]
        return tuple(
            _weighted(tensors[0], zip(weights, tensors[1:], strict=True))
            for tensors in zip(*history.terms, strict=True)
        )


@dataclass(frozen=True)
class Extrapolate(Predictor):
    """A fixed part of the latest change on top of the newest value (FasterCache, arXiv:2410.19355).

    Attributes:
        weight: how much of the change from the value before to the newest is added.
    """

    weight: float = 0.5

    @property
    def tensors(self) -> int:
        return 2

    def observe(
        self, history: History, value: Value, moment: torch.Tensor, rows: torch.Tensor
    ) -> None:
        _note(history, [value, *history.terms[:1]], moment, rows)

    def predict(self, history: History, moment: torch.Tensor) -> Value:
        if len(history.terms) < 2:
            return history.terms[0]
        seen = _usable(history, 1)
        weight = self.weight * seen
        return tuple(
            _weighted(new, [(weight, new.float() - old.float())])
            for new, old in zip(*history.terms, strict=True)
        )


@dataclass(frozen=True)
class FoCa(Predictor):
    """Forecast, then calibrate: the mean of a long and a short slope.

    `F + e/2 * (d_full + d_local)`, where `d_local` is the slope over the latest gap and `d_full`
    that over the two latest, damped beyond three steps. Slopes are divided by their gaps, which a
    published implementation forgets.
    """

    reach: float = 3.0

    @property
    def tensors(self) -> int:
        return 3

    def observe(
        self, history: History, value: Value, moment: torch.Tensor, rows: torch.Tensor
    ) -> None:
        terms = [value]
        if not history.empty:
            gap = moment - history.moment
            local = _slope(value, history.terms[0], gap)
            terms.append(local)
            if len(history.terms) > 1:
                whole = gap + history.extra["gap"]
                share = gap / torch.where(whole == 0, torch.ones_like(whole), whole)
                terms.append(_mix(local, history.terms[1], share))
            history.extra["gap"] = torch.where(rows, gap, history.extra.get("gap", gap))
        _note(history, terms, moment, rows)

    def predict(self, history: History, moment: torch.Tensor) -> Value:
        ahead = history.ahead(moment)
        far = max(ahead, self.reach) if isinstance(ahead, float) else ahead.clamp_min(self.reach)
        weight = ahead * (self.reach / far) ** 2 / 2 * _usable(history, 1)
        out = []
        for base, *slopes in zip(*history.terms, strict=True):
            local = slopes[:1]
            full = slopes[1:] or local
            out.append(_weighted(base, [(weight, slope) for slope in local + full]))
        return tuple(out)


@dataclass(frozen=True)
class Modes(Predictor):
    """Dynamic mode decomposition of the latest values: exact on sums of exponentials.

    Falls back to a straight line with fewer than four equally spaced values, and to reuse where
    the fit is not finite. Growth per step is held below `growth`.

    Attributes:
        window: values kept.
        growth: largest magnitude of an eigenvalue.
    """

    window: int = 6
    growth: float = 1.05

    def __post_init__(self) -> None:
        if self.window < 4:
            raise RecipeError(f"window is at least 4, not {self.window}")

    @property
    def tensors(self) -> int:
        return self.window + 2

    def observe(
        self, history: History, value: Value, moment: torch.Tensor, rows: torch.Tensor
    ) -> None:
        if not bool(rows.all()):
            value = where_rows(rows, value, history.terms[0])
        values: list[Value] = history.extra.setdefault("values", [])
        moments: list[float] = history.extra.setdefault("moments", [])
        values.append(value)
        moments.append(float(moment.max()))
        del values[: -self.window], moments[: -self.window]
        Taylor(1).observe(history, value, moment, rows)

    def predict(self, history: History, moment: torch.Tensor) -> Value:
        values, moments = history.extra["values"], history.extra["moments"]
        count = _equally_spaced(moments)
        line = Taylor(1).predict(history, moment)
        if count < 4:
            return line
        spacing = moments[-1] - moments[-2]
        ahead = (float(moment.max()) - moments[-1]) / spacing
        out = []
        for place, flat in enumerate(line):
            snapshots = torch.stack([value[place] for value in values[-count:]])
            forecast = _forecast(snapshots.flatten(1).double(), ahead, self.growth)
            good = bool(torch.isfinite(forecast).all())
            out.append(forecast.view(flat.shape).to(flat.dtype) if good else values[-1][place])
        return tuple(out)


def _note(history: History, terms: list[Value], moment: torch.Tensor, rows: torch.Tensor) -> None:
    """Make `terms` the newest of the rows; the other rows keep theirs."""
    if history.empty or len(history.moment) != len(moment):
        history.terms, history.moment = terms, moment
        history.count = torch.ones(len(moment), dtype=torch.int64)
        history.uniform = bool((moment == moment[0]).all())
        return
    if bool(rows.all()):
        history.terms, history.moment, history.count = terms, moment, history.count + 1
        return
    kept = history.terms
    history.terms = [
        where_rows(rows, new, kept[place]) if place < len(kept) else new
        for place, new in enumerate(terms)
    ]
    history.moment = torch.where(rows, moment, history.moment)
    history.count = history.count + rows.to(torch.int64)
    history.uniform = False


def _usable(history: History, power: int) -> bool | torch.Tensor:
    """Where a slope of this order has been seen."""
    return int(history.count[0]) > power if history.uniform else history.count > power


def _weighted(
    base: torch.Tensor, terms: Iterable[tuple[float | torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """`base` plus weighted tensors, summed in float32; weights are numbers or (B,)."""
    total = base.float()
    for weight, tensor in terms:
        if isinstance(weight, torch.Tensor):
            total = total + per_row(weight, tensor).to(total.dtype) * tensor.float()
        elif weight:
            total = torch.add(total, tensor.float(), alpha=weight)
    return total.to(base.dtype)


def _slope(new: Value, old: Value, gap: torch.Tensor) -> Value:
    """Change per clock unit, from a difference in float32; 0 where the clock stood still."""
    rate = torch.where(gap == 0, torch.zeros_like(gap), 1 / gap)
    return tuple(
        ((n.float() - o.float()) * per_row(rate, n).to(torch.float32)).to(n.dtype)
        for n, o in zip(new, old, strict=True)
    )


def _mix(one: Value, other: Value, share: torch.Tensor) -> Value:
    return tuple(
        (o.float() + per_row(share, a).to(torch.float32) * (a.float() - o.float())).to(a.dtype)
        for a, o in zip(one, other, strict=True)
    )


def _equally_spaced(moments: list[float]) -> int:
    """How many of the latest moments have the same spacing."""
    if len(moments) < 2:
        return len(moments)
    spacing, count = moments[-1] - moments[-2], 2
    while count < len(moments):
        gap = moments[-count] - moments[-count - 1]
        if abs(gap - spacing) > 1e-6 * max(1.0, abs(spacing)):
            break
        count += 1
    return count


def _forecast(rows: torch.Tensor, ahead: float, growth: float) -> torch.Tensor:
    """The (n, d) snapshots, oldest first, continued by `ahead` spacings: (d,) float64."""
    y = rows.T
    first, second = y[:, :-1], y[:, 1:]
    u, s, vh = torch.linalg.svd(first, full_matrices=False)
    rank = int((s > 1e-4 * s[0]).sum()) if float(s[0]) > 0 else 0
    if rank == 0:
        return y[:, -1]
    u, s, v = u[:, :rank], s[:rank], vh[:rank].T
    step = u.T @ second @ v / s
    values, vectors = torch.linalg.eig(step)
    magnitude = values.abs()
    values = torch.where(magnitude > growth, values / magnitude * growth, values)
    modes = (second @ v / s).to(values.dtype) @ vectors
    weights = torch.linalg.lstsq(modes, y[:, -1:].to(values.dtype)).solution[:, 0]
    return (modes @ (values**ahead * weights)).real
