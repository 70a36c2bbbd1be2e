"""Sampling from the video models with schedulers of diffusers."""

from __future__ import annotations

from typing import Any

import torch

from recollect.errors import RecipeError
from recollect.zoo.images.sampling import scheduler
from recollect.zoo.videos.captions import Captions
from recollect.zoo.videos.clips import FRAMES, MOTIONS, SHAPES, to_clips, with_places

LATENT = (48, FRAMES, 4, 4)


@torch.no_grad()
def sample(
    model: Any,
    captions: Captions,
    shapes: torch.Tensor,
    motions: torch.Tensor,
    steps: int = 30,
    seed: int = 0,
    guidance: float = 2.0,
    solver: str = "euler",
    together: bool = False,
) -> torch.Tensor:
    """Clips of `shapes` (B,) moving as `motions` (B,) say: (B, 3, 8, 16, 16), about in [-1, 1].

    Every clip has its own noise, whatever batch it is drawn in.

    Args:
        model: a video model of the zoo, accelerated or not.
        captions: its table.
        shapes, motions: what to draw.
        steps: denoising steps.
        seed: of the first clip; the others count on from it.
        guidance: 1 calls the model with the caption alone.
        solver: `euler` or `dpm`.
        together: guidance as one call with both halves in a batch (without and with the caption)
            instead of two calls.

    Raises:
        RecipeError: labels that do not pair up or do not exist, no steps, an unknown solver.
    """
    if shapes.shape != motions.shape:
        raise RecipeError(f"{len(shapes)} shapes and {len(motions)} motions do not pair up")
    if int(shapes.max()) >= len(SHAPES) or int(motions.max()) >= len(MOTIONS):
        raise RecipeError(f"shapes are 0 to {len(SHAPES) - 1}, motions 0 to {len(MOTIONS) - 1}")
    timeline = scheduler(solver, steps)
    device = next(model.parameters()).device
    count = len(shapes)
    text = captions(shapes, motions).to(device)
    empty = captions.empty(count).to(device)
    both = torch.cat([empty, text])
    noises = [
        torch.randn(LATENT, generator=torch.Generator().manual_seed(seed + row))
        for row in range(count)
    ]
    latent = torch.stack(noises).to(device)
    for time in timeline.timesteps:
        times, given = time.to(device).expand(count), with_places(latent)
        if guidance == 1:
            velocity = model(given, times, text, return_dict=False)[0]
        else:
            if together:
                doubled = (torch.cat([given, given]), torch.cat([times, times]))
                without, told = model(*doubled, both, return_dict=False)[0].chunk(2)
            else:
                told = model(given, times, text, return_dict=False)[0]
                without = model(given, times, empty, return_dict=False)[0]
            velocity = without + guidance * (told - without)
        latent = timeline.step(velocity, time, latent, return_dict=False)[0]
    return to_clips(latent)
