"""Gates that know beforehand which steps are computed: every n-th, a mask, a file of either kind.

They look at no tensor, so every branch and every sample of a request follows the same schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from recollect.diffusion.engine.clock import Step
from recollect.diffusion.gates import Gate, Ledger
from recollect.diffusion.masks import load_mask, load_steps
from recollect.errors import HostError, RecipeError


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


def _fits(step: Step, length: int) -> None:
    if step.total is not None and step.total != length:
        raise RecipeError(
            f"the mask has {length} steps and the trajectory {step.total}; "
            "plan one for this number of steps"
        )
