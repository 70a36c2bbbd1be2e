"""What recipes are calibrated with before they are judged: a painter, and noise of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from recollect.diffusion.learned.trajectory import Trajectory
from recollect.diffusion.planner import record
from recollect.diffusion.policy import DiffusionPolicy
from recollect.diffusion.profiles import Profile
from recollect.diffusion.quantized.calibrate import calibrate
from recollect.diffusion.quantized.denoiser import Quantized
from recollect.diffusion.quantized.pool import Pool, record_calls
from recollect.evaluate.diffusion.painters import Painter


@dataclass(frozen=True)
class Setting:
    """One policy to draw with.

    Attributes:
        recipe: its series in charts.
        name: with its knob.
        policy: ready for `accelerate`.
        sigmas: noise levels that it asks for; None for the scheduler's own.
    """

    recipe: str
    name: str
    policy: DiffusionPolicy
    sigmas: tuple[float, ...] | None = None


class Workbench:
    """A painter with one number of steps and one solver, and a folder for artefacts.

    Args:
        painter: whose model is calibrated.
        steps: denoising steps.
        solver: of the painter's.
        samples: drawn to calibrate on.
        folder: where artefacts go; routers that lie there are used instead of trained.
    """

    def __init__(
        self, painter: Painter, steps: int, solver: str, samples: int, folder: Path
    ) -> None:
        self.painter, self.steps, self.solver, self.samples = painter, steps, solver, samples
        self.folder = folder / f"{painter.name}-{steps}-{solver}"
        self._integers: dict[int, Quantized] = {}

    @property
    def model(self) -> torch.nn.Module:
        """The denoiser."""
        return self.painter.model

    @property
    def trajectory(self) -> Trajectory:
        """How it is sampled. Raises HostError where nobody knows."""
        return self.painter.trajectory(self.steps, self.solver)

    def run(self, sigmas: Sequence[float] | None = None) -> None:
        """Draw the calibration samples."""
        self.painter.calibrate(self.steps, self.solver, self.samples, sigmas)

    def path(self, name: str) -> Path:
        """A file of that name in the folder, which is made."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name

    @cached_property
    def profile(self) -> Profile:
        """The recorded output."""
        return record(self.painter.target, self.run)

    @cached_property
    def pool(self) -> Pool:
        """Recorded calls of the denoiser."""
        return record_calls(self.model, self.run)

    def integers(self, bits: int) -> Quantized:
        """The denoiser with weights of so many bits and activations of 8."""
        if bits not in self._integers:
            path = str(self.path(f"integers-{bits}.safetensors"))
            self._integers[bits] = calibrate(path, self.model, self.pool, bits)
        return self._integers[bits]
