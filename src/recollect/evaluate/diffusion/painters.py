"""What draws: a trained model of the zoo, or a pipeline of diffusers with prompts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from recollect.diffusion.engine.attach import denoisers
from recollect.diffusion.policy import DiffusionPolicy
from recollect.errors import HostError, RecipeError
from recollect.evaluate.pictures import psnr, ssim
from recollect.zoo import control, edits, images, videos

if TYPE_CHECKING:
    from recollect.diffusion.learned.trajectory import Trajectory

CEILING = 100.0
"""Decibels of equal pictures."""


class Painter(ABC):
    """Draws with one model.

    Attributes:
        kind: which recipes are tried by default, see `settings.BY_KIND`.
        name: for reports.
        target: what `recollect.accelerate` takes.
        solvers: names that `draw` accepts.
        steps: denoising steps that are usual.
        grid: frames, rows and columns of visual tokens, of models of video.
        base: what the model is drawn with where nothing is cached, if it is drawn with anything.
    """

    kind: ClassVar[str]
    name: str
    target: Any
    solvers: tuple[str, ...]
    steps: int = 30
    grid: tuple[int, int, int] | None = None
    base: DiffusionPolicy | None = None

    @abstractmethod
    def draw(
        self,
        steps: int,
        solver: str,
        seed: int,
        count: int,
        sigmas: Sequence[float] | None = None,
    ) -> torch.Tensor:
        """Samples (count, …), pictures (count, C, H, W) in [-1, 1] unless said.

        Args:
            steps: denoising steps.
            solver: of `solvers`.
            seed: of the first sample's noise; the others count on from it.
            count: of samples.
            sigmas: noise levels instead of the scheduler's own.

        Raises:
            HostError: noise levels for a model that is not given any.
        """

    def calibrate(
        self, steps: int, solver: str, count: int, sigmas: Sequence[float] | None = None
    ) -> None:
        """Draw so many samples to calibrate on; their noise is not judged later."""
        self.draw(steps, solver, _CALIBRATION, count, sigmas)

    def judge(self, drawn: torch.Tensor, plain: torch.Tensor, seed: int) -> dict[str, float]:
        """Measures of samples beside the uncached ones of the same seed."""
        return {"psnr": decibels(drawn, plain), "ssim": float(ssim(drawn, plain).mean())}

    def shown(self, drawn: torch.Tensor, seed: int) -> torch.Tensor:
        """The samples as pictures (count, 3, H, W) to look at."""
        return drawn

    def trajectory(self, steps: int, solver: str) -> Trajectory:
        """How a router is trained and a scheduler is had. Raises HostError where nobody knows."""
        raise HostError(f"no trajectory of {self.name} is known; learn the schedule beforehand")

    @property
    def model(self) -> torch.nn.Module:
        """The first denoiser."""
        return next(iter(denoisers(self.target).values()))


OUTLINES = "tiny-flux-edit-outlines"
"""The editing model with its adapter."""
_CALIBRATION = 5_000  # seed


def decibels(drawn: torch.Tensor, plain: torch.Tensor) -> float:
    """Mean PSNR of pictures (B, C, H, W) in [-1, 1]; equal ones count as `CEILING`."""
    return float(psnr(drawn, plain).clamp_max(CEILING).mean())


class PipelinePainter(Painter):
    """Any text-to-image pipeline of diffusers, with its own scheduler.

    Args:
        name: folder or hub id, for `DiffusionPipeline.from_pretrained`.
        prompts: drawn in turn, one picture at a time.
        dtype: of the weights.
        device: torch device.
        arguments: further arguments of the pipeline's call (height, guidance_scale …).
    """

    kind = "pipelines"
    solvers = ("own",)

    def __init__(
        self,
        name: str,
        prompts: Sequence[str],
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        **arguments: Any,
    ) -> None:
        from diffusers import DiffusionPipeline

        if not prompts:
            raise RecipeError("a pipeline needs prompts to draw: --prompt 'a lighthouse at dusk'")
        try:
            self.target = DiffusionPipeline.from_pretrained(name, dtype=dtype).to(device)
        except (OSError, ValueError) as error:
            raise HostError(f"cannot load a pipeline from {name}: {error}") from error
        self.target.set_progress_bar_config(disable=True)
        self.name, self.prompts, self.arguments = Path(name).name, tuple(prompts), arguments

    def draw(
        self,
        steps: int,
        solver: str,
        seed: int,
        count: int,
        sigmas: Sequence[float] | None = None,
    ) -> torch.Tensor:
        levels = {} if sigmas is None else {"sigmas": list(sigmas)}
        pictures = []
        for row in range(count):
            made = self.target(
                self.prompts[row % len(self.prompts)],
                num_inference_steps=steps,
                generator=torch.Generator().manual_seed(seed + row),
                output_type="pt",
                **levels,
                **self.arguments,
            )
            pictures.append(made.images.float().cpu())
        return 2 * torch.cat(pictures) - 1


def painter(name: str, prompts: Sequence[str] = (), **how: Any) -> Painter:
    """The painter of a zoo model or of a pipeline.

    Args:
        name: of a model of the zoo, or a pipeline's folder or hub id.
        prompts: for a pipeline.
        how: `dtype`, `device` and arguments of a pipeline's call.

    Raises:
        RecipeError: a pipeline without prompts.
        HostError: nothing can be loaded from that name.
    """
    from recollect.evaluate.diffusion import zoo_painters

    rooms: dict[Any, Any] = {
        images: zoo_painters.ImagePainter,
        videos: zoo_painters.VideoPainter,
        edits: zoo_painters.EditPainter,
        control: zoo_painters.ControlPainter,
    }
    for room, made in rooms.items():
        if name in room.names():
            return made(name)
    if name == OUTLINES:
        return zoo_painters.OutlinePainter(name)
    return PipelinePainter(name, prompts, **how)


def zoo_names() -> tuple[str, ...]:
    """Models of the zoo that can be drawn with."""
    return (*(name for room in (images, videos, edits, control) for name in room.names()), OUTLINES)
