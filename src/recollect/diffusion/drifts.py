"""Gates that measure how far a trajectory has drifted since a step was last computed.

Each names what it looks at: the latent, the first blocks, the modulated input, calibrated ratios,
or a forecast that can be checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from recollect.diffusion.engine.clock import Step
from recollect.diffusion.engine.values import mean_abs, relative_change
from recollect.diffusion.gates import Gate, Ledger, Probe
from recollect.diffusion.predictors import Taylor
from recollect.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class Thresholded(Gate):
    """Gates that compare a drift with a threshold.

    Attributes:
        threshold: drift up to which a step is reused; 0 computes every step.
    """

    threshold: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.threshold >= 0:
            raise RecipeError(f"threshold is 0 or more, not {self.threshold}")


@dataclass(frozen=True, kw_only=True)
class Accumulated(Thresholded):
    """Gates whose drift adds up from step to step until a step is computed."""

    def _spend(self, ledger: Ledger, drift: torch.Tensor) -> torch.Tensor:
        ledger.drift = drift = drift.double().cpu()
        ledger.spent = ledger.spent + drift
        return ledger.spent < self.threshold


@dataclass(frozen=True, kw_only=True)
class LatentChange(Accumulated):
    """EasyCache (arXiv:2507.02860): the latent's change, times the model's measured gain.

    `k` is the output's change over the latent's between the two latest computed steps; a step
    spends `k * mean|x_i - x_(i-1)| / mean|v*|`.
    """

    threshold: float = 0.05
    warmup: int = 2

    def judge(self, step: Step, ledger: Ledger, seen: torch.Tensor) -> torch.Tensor:
        before = ledger.notes.get("x")
        ledger.notes["x"] = seen
        gain = ledger.notes.get("gain")
        if before is None or gain is None:
            return torch.zeros(len(ledger.run), dtype=torch.bool)
        moved = mean_abs(seen.float() - before.float())
        return self._spend(ledger, gain * moved / ledger.notes["level"].clamp_min(1e-12))

    def learn(
        self,
        step: Step,
        ledger: Ledger,
        latent: torch.Tensor,
        output: torch.Tensor,
        rows: torch.Tensor,
    ) -> None:
        if "x*" in ledger.notes:
            moved = mean_abs(latent.float() - ledger.notes["x*"].float())
            changed = mean_abs(output.float() - ledger.notes["v*"].float())
            ledger.keep("gain", changed / moved.clamp_min(1e-12), rows)
        ledger.keep("x*", latent, rows)
        ledger.keep("v*", output, rows)
        ledger.keep("level", mean_abs(output), rows)


@dataclass(frozen=True, kw_only=True)
class FirstBlock(Thresholded):
    """FBCache and DBCache: how far the residual of the first blocks is from the last computed one.

    Attributes:
        threshold: relative change up to which a step is reused.
        blocks: first blocks that run on every step and judge.
        strict: reuse only below the threshold, not at it (DBCache).
    """

    threshold: float = 0.08
    blocks: int = 1
    strict: bool = False

    probe: ClassVar[Probe] = "residual"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks < 1:
            raise RecipeError(f"blocks is 1 or more, not {self.blocks}")

    @property
    def probe_blocks(self) -> int:
        return self.blocks

    def judge(self, step: Step, ledger: Ledger, seen: torch.Tensor) -> torch.Tensor:
        ledger.notes["probe"] = seen
        before = ledger.notes.get("computed")
        if before is None:
            return torch.zeros(len(ledger.run), dtype=torch.bool)
        ledger.drift = relative_change(seen, before).double().cpu()
        if self.strict or self.threshold == 0:
            return ledger.drift < self.threshold
        return ledger.drift <= self.threshold

    def learn(
        self,
        step: Step,
        ledger: Ledger,
        latent: torch.Tensor,
        output: torch.Tensor,
        rows: torch.Tensor,
    ) -> None:
        if "probe" in ledger.notes:
            ledger.keep("computed", ledger.notes.pop("probe"), rows)


@dataclass(frozen=True, kw_only=True)
class ModulatedInput(Accumulated):
    """TeaCache (arXiv:2411.19108): change of the first block's modulated input, rescaled.

    Attributes:
        polynomial: coefficients, highest power first, that turn the input's relative change into
            the output's; fitted for a model (`learned.gate_fits.fit_polynomial`). The identity by
            default.
        calibrated: least and largest change that the polynomial was fitted on; others count as
            the nearest, as a polynomial explodes outside.
        floor: negative values of the polynomial count as 0; upstream lets them subtract.
    """

    threshold: float = 0.15
    polynomial: tuple[float, ...] = (1.0, 0.0)
    calibrated: tuple[float, ...] = ()
    floor: bool = True

    probe: ClassVar[Probe] = "modulated"

    @property
    def probe_blocks(self) -> int:
        return 0  # the probe stops inside the first block

    def judge(self, step: Step, ledger: Ledger, seen: torch.Tensor) -> torch.Tensor:
        before = ledger.notes.get("input")
        ledger.notes["input"] = seen
        if before is None:
            return torch.zeros(len(ledger.run), dtype=torch.bool)
        change = relative_change(seen, before).double()
        if self.calibrated:
            change = change.clamp(*self.calibrated)
        drift = torch.zeros_like(change)
        for coefficient in self.polynomial:
            drift = drift * change + coefficient
        return self._spend(ledger, drift.clamp_min(0) if self.floor else drift)


@dataclass(frozen=True, kw_only=True)
class MagnitudeRatio(Accumulated):
    """MagCache (arXiv:2506.09045): calibrated ratios of residual magnitudes, multiplied up.

    Attributes:
        ratios: mean magnitude of each step's residual over the previous one's, from a calibration
            run; stretched to another number of steps by nearest neighbour.
        longest: most steps reused in a row.
    """

    threshold: float = 0.06
    longest: int | None = 3
    ratios: tuple[float, ...] = ()
    retention: float = 0.2

    def judge(self, step: Step, ledger: Ledger, seen: torch.Tensor) -> torch.Tensor:
        if not self.ratios:
            raise RecipeError("magcache needs `ratios`; calibrate them for this model")
        total = step.total or len(self.ratios)
        if step.index < self.retention * total:
            return torch.zeros(len(ledger.run), dtype=torch.bool)
        place = round(step.index * (len(self.ratios) - 1) / max(1, total - 1))
        ratio = self.ratios[min(place, len(self.ratios) - 1)]
        one = torch.ones_like(ledger.spent)
        product = torch.where(ledger.run == 0, one, ledger.notes.get("product", one)) * ratio
        ledger.notes["product"] = product
        self._spend(ledger, (1 - product).abs())
        return (ledger.spent <= self.threshold) & (self.threshold > 0)


@dataclass(frozen=True, kw_only=True)
class ForecastError(Thresholded):
    """CG-Taylor (arXiv:2508.02240): trust a forecast while that of the first block comes true.

    Attributes:
        threshold: relative error of the first block's forecast below which the rest is forecast.
        first_order: order of that forecast.
    """

    threshold: float = 0.1
    warmup: int = 2
    tail: int = 1
    longest: int | None = 5
    first_order: int = 1

    probe: ClassVar[Probe] = "output"

    def judge(self, step: Step, ledger: Ledger, seen: torch.Tensor) -> torch.Tensor:
        ledger.notes["probe"] = seen
        rows = len(ledger.run)
        if ledger.forecast.empty:
            return torch.zeros(rows, dtype=torch.bool)
        moment = torch.full((rows,), float(step.index), dtype=torch.float64)
        (guess,) = self._line.predict(ledger.forecast, moment)
        ledger.drift = relative_change(guess, seen).double().cpu()
        return ledger.drift < self.threshold

    def learn(
        self,
        step: Step,
        ledger: Ledger,
        latent: torch.Tensor,
        output: torch.Tensor,
        rows: torch.Tensor,
    ) -> None:
        if "probe" in ledger.notes:
            moment = torch.full((len(rows),), float(step.index), dtype=torch.float64)
            self._line.observe(ledger.forecast, (ledger.notes.pop("probe"),), moment, rows)

    @property
    def _line(self) -> Taylor:
        return Taylor(order=self.first_order)
