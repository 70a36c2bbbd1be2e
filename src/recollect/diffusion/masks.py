"""Schedules with a bit for every step and module, written and read as artefacts.

A learned schedule holds for the trajectory it was learned on. Its number of steps, their times, the
modules and the model are compared at every run; solver and guidance, which a denoiser cannot see,
where the caller names them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recollect.diffusion.artefacts import Artefact, fingerprint, version
from recollect.diffusion.correctors import AFFINE
from recollect.diffusion.engine.clock import Step
from recollect.errors import HostError, RecipeError, StoreError

MODULE_MASK = "module-mask"

_NEAR = 4e-3  # share by which times may differ: bfloat16 rounds to this


@dataclass(frozen=True)
class Conditions:
    """What a schedule was learned under.

    Attributes:
        times: what the model is told at every step.
        solver: name of the scheduler's class, e.g. `DDPMScheduler`.
        guidance: scale of classifier-free guidance, 1 for none.
    """

    times: tuple[float, ...]
    solver: str
    guidance: float = 1.0


@dataclass(frozen=True)
class LearnedMask:
    """A schedule read from its file.

    Attributes:
        flags: for every step and module, whether it is computed.
        sites: names of the modules.
        conditions: what it was learned under.
        artefact: all of the file.
    """

    flags: tuple[tuple[bool, ...], ...]
    sites: tuple[str, ...]
    conditions: Conditions
    artefact: Artefact

    def check(
        self, model: torch.nn.Module, sites: tuple[str, ...], solver: str, guidance: float | None
    ) -> None:
        """Refuse another model (HostError), and another solver or guidance (RecipeError)."""
        self.artefact.check(model)
        if sites != self.sites:
            raise HostError(
                f"the mask is for {len(self.sites)} modules from {self.sites[0]} on, and this site "
                f"has {len(sites)} others; use the site Modules(), as it was learned with"
            )
        learned = self.conditions
        if solver and solver != learned.solver:
            raise RecipeError(f"the mask was learned with {learned.solver}, not {solver}")
        if guidance is not None and guidance != learned.guidance:
            raise RecipeError(
                f"the mask was learned at guidance {learned.guidance:g}, not {guidance:g}"
            )

    def at(self, step: Step) -> tuple[bool, ...]:
        """The flags of a step. Raises RecipeError on another trajectory."""
        on_trajectory(step, self.conditions.times)
        return self.flags[step.index]


def on_trajectory(step: Step, times: Sequence[float]) -> None:
    """Raises RecipeError where a step is not on the trajectory of these times.

    Args:
        step: the step of a request.
        times: what the model was told at every step of the trajectory learned on.
    """
    if step.total is not None and step.total != len(times):
        raise RecipeError(
            f"the schedule is for {len(times)} steps and the trajectory has {step.total}; "
            "learn one for this number of steps"
        )
    if step.index >= len(times) or abs(step.time - times[step.index]) > _NEAR * max(times):
        raise RecipeError(
            f"step {step.index} is at time {step.time:g}, which is not on the trajectory of "
            f"{len(times)} steps that the schedule was learned for; learn one for this trajectory"
        )


def save_mask(
    path: str | Path,
    model: torch.nn.Module,
    mask: torch.Tensor,
    sites: Sequence[str],
    conditions: Conditions,
    method: str,
    about: Mapping[str, Any] | None = None,
    tensors: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a schedule.

    Args:
        path: where to.
        model: the denoiser it was learned on.
        mask: (T, M) bool, true to compute; all of the first step is.
        sites: names of the M modules.
        conditions: of the trajectory with its T steps.
        method: how it was made.
        about: further settings, plain data.
        tensors: further tensors, e.g. a router's logits.
    """
    if mask.shape != (len(conditions.times), len(sites)) or not bool(mask[0].all()):
        raise RecipeError("a mask has a row per step, a column per module, and a full first row")
    settings = {
        "method": method,
        "steps": len(mask),
        "times": list(conditions.times),
        "solver": conditions.solver,
        "guidance": conditions.guidance,
        "sites": list(sites),
        **(about or {}),
    }
    held = {"mask": mask.to(torch.uint8), **(tensors or {})}
    Artefact(MODULE_MASK, fingerprint(model), settings, held).save(path)


def load_mask(path: str | Path) -> LearnedMask:
    """Read a schedule; a file that has not changed is read once. Raises StoreError."""
    return _load(str(path), version(path))


@dataclass(frozen=True)
class OfflineSteps:
    """Steps that a calibration computes, read from the file of its correction.

    Attributes:
        flags: for every step, whether it is computed.
        times: what the model is told at every step.
        artefact: all of the file.
    """

    flags: tuple[bool, ...]
    times: tuple[float, ...]
    artefact: Artefact

    def at(self, step: Step) -> bool:
        """The flag of a step. Raises RecipeError on another trajectory."""
        on_trajectory(step, self.times)
        return self.flags[step.index]


def load_steps(path: str | Path) -> OfflineSteps:
    """Read the steps that a correction was calibrated for. Raises StoreError."""
    return _load_steps(str(path), version(path))


@functools.lru_cache(maxsize=8)
def _load_steps(path: str, written: int) -> OfflineSteps:
    found = Artefact.load(path, AFFINE)
    if "computed" not in found.settings:
        raise StoreError(f"{path} corrects a schedule and does not hold one")
    times = tuple(found.settings["times"])
    computed = set(found.settings["computed"])
    return OfflineSteps(tuple(i in computed for i in range(len(times))), times, found)


@functools.lru_cache(maxsize=8)
def _load(path: str, written: int) -> LearnedMask:
    found = Artefact.load(path, MODULE_MASK)
    given = found.settings
    flags = tuple(tuple(map(bool, row)) for row in found.tensors["mask"].tolist())
    conditions = Conditions(tuple(given["times"]), given["solver"], given["guidance"])
    return LearnedMask(flags, tuple(given["sites"]), conditions, found)
