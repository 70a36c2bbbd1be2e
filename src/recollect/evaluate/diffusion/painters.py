"""What draws: a trained model of the zoo, or a pipeline of diffusers with prompts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from recollect.errors import HostError, RecipeError
from recollect.zoo import images


class Painter(ABC):
    """Draws pictures with one model.

    Attributes:
        name: for reports.
        target: what `recollect.accelerate` takes.
        solvers: names that `draw` accepts.
    """

    name: str
    target: Any
    solvers: tuple[str, ...]

    @abstractmethod
    def draw(self, steps: int, solver: str, seed: int, count: int) -> torch.Tensor:
        """Pictures (count, C, H, W) in [-1, 1]; each has its own noise, whatever the count."""

    def judge(self, pictures: torch.Tensor, plain: torch.Tensor) -> dict[str, float]:
        """More measures of pictures beside PSNR and SSIM, where a judge is at hand."""
        return {}


class ZooPainter(Painter):
    """A class-conditional image model of the zoo, judged by the classifier trained beside it."""

    solvers = ("euler", "dpm")

    def __init__(self, name: str) -> None:
        from recollect.zoo.images import classifier

        self.name, self.target = name, images.load(name)
        self._measures = classifier
        self._net = classifier.load(images.path(name))

    def draw(self, steps: int, solver: str, seed: int, count: int) -> torch.Tensor:
        return images.sample(self.target, self._labels(count), steps, seed=seed, solver=solver)

    @torch.no_grad()
    def judge(self, pictures: torch.Tensor, plain: torch.Tensor) -> dict[str, float]:
        labels = self._labels(len(pictures))
        real = images.draw(labels, torch.Generator().manual_seed(99))
        found = {
            "perceptual": float(self._measures.perceptual(self._net, pictures, plain).mean()),
            "recognized": float((self._net(pictures).argmax(1) == labels).float().mean()),
        }
        if len(pictures) > 1:  # a distance between distributions
            found["frechet"] = self._measures.frechet(self._net, pictures, real)
        return found

    def _labels(self, count: int) -> torch.Tensor:
        return torch.arange(count) % len(images.CLASSES)


class PipelinePainter(Painter):
    """Any text-to-image pipeline of diffusers, with its own scheduler.

    Args:
        name: folder or hub id, for `DiffusionPipeline.from_pretrained`.
        prompts: drawn in turn, one picture at a time.
        dtype: of the weights.
        device: torch device.
        arguments: further arguments of the pipeline's call (height, guidance_scale …).
    """

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

    def draw(self, steps: int, solver: str, seed: int, count: int) -> torch.Tensor:
        pictures = []
        for row in range(count):
            made = self.target(
                self.prompts[row % len(self.prompts)],
                num_inference_steps=steps,
                generator=torch.Generator().manual_seed(seed + row),
                output_type="pt",
                **self.arguments,
            )
            pictures.append(made.images.float().cpu())
        return 2 * torch.cat(pictures) - 1


def painter(name: str, prompts: Sequence[str] = (), **how: Any) -> Painter:
    """The painter of a zoo model or of a pipeline.

    Raises:
        RecipeError: a pipeline without prompts.
        HostError: nothing can be loaded from that name.
    """
    if name in images.names():
        return ZooPainter(name)
    return PipelinePainter(name, prompts, **how)
