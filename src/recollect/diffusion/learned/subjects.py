"""Models of the zoo as calibrations see them: what is loaded, how it is sampled, what it draws."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from recollect.diffusion.learned.trajectory import Trajectory
from recollect.errors import RecipeError
from recollect.zoo import control, images


class Subject(ABC):
    """A model, and its trajectories with one number of steps, solver and guidance.

    Attributes:
        model: the denoiser.
        steps: of a trajectory.
    """

    model: torch.nn.Module
    steps: int

    @property
    @abstractmethod
    def trajectory(self) -> Trajectory:
        """How the model is sampled."""

    @abstractmethod
    def draw(self, count: int, seed: int, sigmas: Sequence[float] | None = None) -> torch.Tensor:
        """Sample so many, uncached unless the model is accelerated."""


class ImageSubject(Subject):
    """A model of drawn shapes."""

    def __init__(self, model: Any, steps: int, solver: str, guidance: float) -> None:
        self.model, self.steps, self.solver, self.guidance = model, steps, solver, guidance

    @property
    def trajectory(self) -> Trajectory:
        from recollect.zoo.images import sampling

        config: Any = self.model.config
        size = config.sample_size
        return Trajectory(
            lambda: sampling.scheduler(self.solver, self.steps),
            (config.in_channels, size, size),
            _classes,
            self.guidance,
        )

    def draw(self, count: int, seed: int, sigmas: Sequence[float] | None = None) -> torch.Tensor:
        labels = torch.arange(count) % len(images.CLASSES)
        return images.sample(
            self.model, labels, self.steps, seed, self.guidance, self.solver, sigmas
        )


class PolicySubject(Subject):
    """A control policy: plans for moments of demonstrations."""

    def __init__(self, model: Any, steps: int) -> None:
        self.model, self.steps = model, steps

    @property
    def trajectory(self) -> Trajectory:
        from recollect.zoo.control import rollouts, task

        return Trajectory(
            lambda: rollouts.scheduler(self.steps),
            (task.CHUNK, 2),
            lambda count, generator: (
                {"encoder_hidden_states": task.observations(count, generator)},
            ),
        )

    def draw(self, count: int, seed: int, sigmas: Sequence[float] | None = None) -> torch.Tensor:
        from recollect.zoo.control import rollouts, task

        if sigmas is not None:
            raise RecipeError("DDPM takes no noise levels: leave the steps as they are")
        seen = task.observations(count, torch.Generator().manual_seed(seed))
        return rollouts.plan(self.model, seen, seed, self.steps)


def load(
    name: str, steps: int | None = None, solver: str | None = None, guidance: float | None = None
) -> Subject:
    """A model of the zoo by its name, or from a folder that `recollect zoo train` has written.

    Args:
        name: e.g. `tiny-dit` or `tiny-policy`, or the folder.
        steps: of a trajectory; 30 for images, 100 for policies by default.
        solver: `euler` or `dpm` for images; a policy has DDPM.
        guidance: of images, 2 by default.

    Raises:
        RecipeError: no such model, or a solver or guidance that it does not have.
    """
    room = next((room for room in (images, control) if name in room.names()), None)
    folder = Path(room.path(name)) if room else Path(name)
    try:
        kind = json.loads((folder / "card.json").read_text())["name"]
    except (OSError, ValueError, KeyError):
        there = ", ".join((*images.names(), *control.names()))
        raise RecipeError(
            f"'{name}' is no model of the zoo ({there}), nor a folder of one; for other models "
            "call the functions of recollect.diffusion.learned"
        ) from None
    if kind == "tiny-policy":
        if solver is not None or guidance is not None:
            raise RecipeError("a control policy is sampled with DDPM and no guidance")
        return PolicySubject(control.load_folder(folder), steps or 100)
    return ImageSubject(
        images.load_folder(folder),
        steps or 30,
        solver or "euler",
        2.0 if guidance is None else guidance,
    )


def _classes(count: int, generator: torch.Generator) -> tuple[dict[str, torch.Tensor], ...]:
    labels = torch.randint(0, len(images.CLASSES), (count,), generator=generator)
    nobody = torch.full_like(labels, len(images.CLASSES))
    return {"class_labels": labels}, {"class_labels": nobody}
