"""Whether a step is computed or reused: one answer for every sample of the batch.

A gate sees the call before anything runs, or, where it asks for a probe, a tensor from the first
blocks. It keeps its notes in a `Ledger`, one for each branch of each request.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from recollect.diffusion.clock import Step
from recollect.diffusion.masks import load_mask, load_steps
from recollect.diffusion.parts import Part
from recollect.diffusion.predictors import History, Taylor
from recollect.diffusion.values import mean_abs, per_row, relative_change
from recollect.errors import HostError, RecipeError

if TYPE_CHECKING:
    from recollect.diffusion.host.modules import Submodule

Probe = Literal["none", "residual", "output", "modulated"]
"""What a gate asks of the first blocks: nothing, their residual, their output, or the modulated
input of the first one."""


@dataclass
class Ledger:
    """A gate's notes on one branch; all vectors are (B,).

    Attributes:
        spent: what has accumulated since a sample was last computed.
        run: steps reused in a row.
        reused: steps reused on this trajectory.
        notes: a gate's own tensors by name.
        forecast: history of a gate that forecasts.
        drift: what the gate measured at this step, for reports.
    """

    spent: torch.Tensor
    run: torch.Tensor
    reused: torch.Tensor
    notes: dict[str, torch.Tensor] = field(default_factory=dict)
    forecast: History = field(default_factory=History)
    drift: torch.Tensor | None = None

    @classmethod
    def of(cls, rows: int) -> Ledger:
        """Empty notes on so many samples."""
        counts = torch.zeros(rows, dtype=torch.int64)
        return cls(torch.zeros(rows, dtype=torch.float64), counts, counts.clone())

    def keep(self, name: str, value: torch.Tensor, rows: torch.Tensor) -> None:
        """Note a tensor (B, …) for the samples marked in `rows`."""
        old = self.notes.get(name)
        if old is None or bool(rows.all()):
            self.notes[name] = value
        else:
            self.notes[name] = torch.where(per_row(rows.float(), value) > 0, value, old)

    def settle(self, computed: torch.Tensor) -> None:
        """Close the step: `computed` marks the samples that were computed."""
        if not bool(computed.any()):
            self.run, self.reused = self.run + 1, self.reused + 1
            return
        self.spent = torch.where(computed, torch.zeros_like(self.spent), self.spent)
        self.run = torch.where(computed, torch.zeros_like(self.run), self.run + 1)
        self.reused = self.reused + (~computed).to(torch.int64)


@dataclass(frozen=True, kw_only=True)
class Gate(Part):
    """When to reuse.

    Attributes:
        warmup: first steps that are always computed.
        tail: last steps that are always computed, where the number of steps is known.
        longest: most steps reused in a row; None for no limit.
        most: most steps reused on one trajectory; None for no limit.
    """

    warmup: int = 1
    tail: int = 0
    longest: int | None = None
    most: int | None = None

    probe: ClassVar[Probe] = "none"
    measures: ClassVar[bool] = True
    """Whether it looks at tensors: then branches at one step share the first one's decision."""

    def __post_init__(self) -> None:
        for name in ("warmup", "tail", "longest", "most"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise RecipeError(f"{name} is 0 or more, not {value}")

    @property
    def probe_blocks(self) -> int:
        """Blocks that run on every step, to judge by."""
        return 0 if self.probe == "none" else 1

    @abstractmethod
    def judge(self, step: Step, ledger: Ledger, seen: torch.Tensor) -> torch.Tensor:
        """Which samples may be reused, (B,) bool.

        Args:
            step: where the trajectory is.
            ledger: the notes; `drift` and `spent` are updated.
            seen: the latent (B, …) of this call, or the probed tensor.
        """

    def learn(
        self,
        step: Step,
        ledger: Ledger,
        latent: torch.Tensor,
        output: torch.Tensor,
        rows: torch.Tensor,
    ) -> None:
        """Take note of a computed output, for the samples in `rows`."""
        return

    def site_flags(self, step: Step) -> tuple[bool, ...] | None:
        """For gates that decide per module: which modules are computed at this step."""
        return None

    def module_flags(self, step: Step, modules: Sequence[Submodule]) -> tuple[bool, ...] | None:
        """The same for gates that go by what the modules of the site are."""
        return self.site_flags(step)

    def allowed(self, step: Step, ledger: Ledger) -> torch.Tensor:
        """Which samples the limits leave to the gate, (B,) bool."""
        free = torch.ones(len(ledger.run), dtype=torch.bool)
        if step.index < self.warmup:
            return ~free
        if self.tail and step.total is not None and step.index >= step.total - self.tail:
            return ~free
        if self.longest is not None:
            free &= ledger.run < self.longest
        if self.most is not None:
            free &= ledger.reused < self.most
        return free


@dataclass(frozen=True, kw_only=True)
class Interval(Gate):
    """Compute the first steps, then every n-th (FORA, TaylorSeer).

    The step after `warmup - 1 + every` is the next computed one, as in TaylorSeer's own code.
    """

    every: int = 4

    measures: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1:
            raise RecipeError(f"every is 1 or more, not {self.every}")

    def judge(self, step: Step, ledger: Ledger, seen: torch.Tensor) -> torch.Tensor:
        return ledger.run < self.every - 1


@dataclass(frozen=True, kw_only=True)
class Mask(Gate):
    """A schedule made before the request: which steps are computed.

    Attributes:
        steps: one flag per step, true to compute. Another number of steps than the mask's is
            refused where it is known, and computed beyond the mask's end where it is not.
    """

    steps: tuple[bool, ...] = ()

    measures: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "steps", tuple(map(bool, self.steps)))
        if not self.steps or not self.steps[0]:
            raise RecipeError("a mask needs a flag for every step, and the first step is computed")

    def judge(self, step: Step, ledger: Ledger, seen: torch.Tensor) -> torch.Tensor:
        _fits(step, len(self.steps))
        compute = step.index >= len(self.steps) or self.steps[step.index]
        return torch.full((len(ledger.run),), not compute)


@dataclass(frozen=True, kw_only=True)
class Offline(Gate):
    """Computed steps from a calibration's file, beside the correction of the others (ERTACache).

    Attributes:
        artefact: the file; another model, number of steps or list of timesteps is refused.
    """

    artefact: str = ""

    measures: ClassVar[bool] = False

    def check(self, model: torch.nn.Module, sites: tuple[str, ...]) -> None:
        if not self.artefact:
            raise RecipeError(
                "the steps are calibrated for a model: `recollect calibrate-diffusion ertacache` "
                "writes the file to give as `artefact`"
            )
        load_steps(self.artefact).artefact.check(model)

    def judge(self, step: Step, ledger: Ledger, seen: torch.Tensor) -> torch.Tensor:
        return torch.full((len(ledger.run),), not load_steps(self.artefact).at(step))


@dataclass(frozen=True, kw_only=True)
class ModuleMask(Gate):
    """A schedule of its own for every attention and feed-forward module (HarmoniCa, BAC).

    Goes with the site `Modules`, in the order in which it finds them.

    Attributes:
        steps: for every step a string with one digit per module, ``1`` to compute. Another number
            of steps is refused where it is known, and computed beyond the end where it is not.
        artefact: the file of a learned schedule, instead of `steps`; another model, number of
            steps or list of timesteps is refused.
        solver, guidance: what the request will use, to be compared with the artefact: a denoiser
            cannot see them.
    """

    steps: tuple[str, ...] = ()
    artefact: str = ""
    solver: str = ""
    guidance: float | None = None

    measures: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.steps:
            return
        if self.artefact:
            raise RecipeError("a module mask is given as `steps` or as an `artefact`, not both")
        if "0" in self.steps[0]:
            raise RecipeError("a module mask computes every module on its first step")
        if len(set(map(len, self.steps))) != 1 or set("".join(self.steps)) - {"0", "1"}:
            raise RecipeError("a module mask is a string of 0 and 1 per step, all of one length")

    def check(self, model: torch.nn.Module, sites: tuple[str, ...]) -> None:
        if self.artefact:
            load_mask(self.artefact).check(model, sites, self.solver, self.guidance)
        elif not self.steps:
            raise RecipeError(
                "a module mask is learned for a model: `recollect calibrate-diffusion harmonica` "
                "(or bac) writes the file to give as `artefact`"
            )
        elif len(sites) != len(self.steps[0]):
            raise HostError(
                f"the mask is for {len(self.steps[0])} modules and {type(model).__name__} has "
                f"{len(sites)} at this site; learn one for this model"
            )

    def judge(self, step: Step, ledger: Ledger, seen: torch.Tensor) -> torch.Tensor:
        flags = self.site_flags(step)
        return torch.full((len(ledger.run),), flags is not None and not all(flags))

    def site_flags(self, step: Step) -> tuple[bool, ...] | None:
        if self.artefact:
            return load_mask(self.artefact).at(step)
        _fits(step, len(self.steps))
        if step.index >= len(self.steps):
            return None
        return tuple(digit == "1" for digit in self.steps[step.index])


def _fits(step: Step, length: int) -> None:
    if step.total is not None and step.total != length:
        raise RecipeError(
            f"the mask has {length} steps and the trajectory {step.total}; "
            "plan one for this number of steps"
        )


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


def step_mask(
    computed: Sequence[int], reused: Sequence[int], total: int | None = None
) -> tuple[bool, ...]:
    """A step computation mask from alternating bins: ``[8, 3] | [1, 2]`` is 8 computed, 1 reused …

    Args:
        computed: lengths of the runs of computed steps.
        reused: lengths of the runs of reused steps between them.
        total: stretch or trim to so many steps, keeping the shares.
    """
    bins: list[tuple[bool, int]] = []
    for place, count in enumerate(computed):
        bins.append((True, count))
        if place < len(reused):
            bins.append((False, reused[place]))
    length = sum(count for _, count in bins)
    total = length if total is None else total
    if total < 1 or length < 1:
        raise RecipeError(f"a trajectory has at least one step, not {min(total, length)}")
    flags: list[bool] = []
    passed = 0
    for compute, count in bins:
        passed += count
        flags += [compute] * (round(passed * total / length) - len(flags))
    flags[0] = True
    return tuple(flags)
