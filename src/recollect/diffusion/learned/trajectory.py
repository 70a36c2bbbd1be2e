"""How a model is sampled: what training and calibration run, step by step, without a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from recollect.diffusion.host.call import Signature
from recollect.diffusion.masks import Conditions

Arguments = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Trajectory:
    """A model's sampling loop.

    Attributes:
        scheduler: makes a scheduler of diffusers, set to its steps.
        latent: shape of one sample.
        arguments: makes the model's other arguments for so many samples: first those with the
            condition, then those without where there is guidance.
        guidance: scale of classifier-free guidance; 1 for none.
        scale: what the scheduler's timesteps are multiplied by for the model (0.001 for models
            that are told noise levels).
    """

    scheduler: Callable[[], Any]
    latent: tuple[int, ...]
    arguments: Callable[[int, torch.Generator], tuple[Arguments, ...]]
    guidance: float = 1.0
    scale: float = 1.0

    @property
    def conditions(self) -> Conditions:
        """What a schedule learned on this trajectory holds for."""
        timeline = self.scheduler()
        times = tuple(float(time) * self.scale for time in timeline.timesteps)
        return Conditions(times, type(timeline).__name__, self.guidance)

    def begin(
        self, count: int, generator: torch.Generator, device: torch.device
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Noise (B, …) for so many samples, and the arguments of both branches in one batch."""
        noise = torch.randn(count, *self.latent, generator=generator)
        branches = self.arguments(count, generator)[: 1 if self.guidance == 1 else 2]
        joined = {
            name: torch.cat([branch[name] for branch in branches]).to(device)
            for name in branches[0]
        }
        return noise.to(device), joined

    def evaluate(
        self,
        model: torch.nn.Module,
        timeline: Any,
        latent: torch.Tensor,
        time: torch.Tensor,
        arguments: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """What the solver is given at a timestep: the model's output, guided."""
        names = Signature.of(model, model.forward)
        given = timeline.scale_model_input(latent, time) if _scales(timeline) else latent
        branches = 1 if self.guidance == 1 else 2
        given = torch.cat([given] * branches)
        times = (time * self.scale).to(latent.device).expand(len(given))
        output = model(**{names.latent: given, names.time: times}, **arguments, return_dict=False)
        output = output[0][:, : latent.shape[1]]  # a learned variance comes as further channels
        if branches == 1:
            return output
        with_condition, without = output.chunk(2)
        return without + self.guidance * (with_condition - without)

    @torch.no_grad()
    def run(
        self, model: torch.nn.Module, count: int, seed: int, device: torch.device | None = None
    ) -> torch.Tensor:
        """Sample once: the final latents (B, …)."""
        device = device or next(model.parameters()).device
        generator = torch.Generator().manual_seed(seed)
        latent, arguments = self.begin(count, generator, device)
        timeline = self.scheduler()
        for time in timeline.timesteps:
            output = self.evaluate(model, timeline, latent, time, arguments)
            latent = timeline.step(output, time, latent, return_dict=False)[0]
        return latent


def _scales(timeline: Any) -> bool:
    return hasattr(timeline, "scale_model_input")
