"""Sampling from the image models with schedulers of diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from recollect.errors import RecipeError
from recollect.zoo.images.shapes import CLASSES, to_pictures

SOLVERS = ("euler", "dpm")


def scheduler(solver: str, steps: int, sigmas: Sequence[float] | None = None) -> Any:
    """A scheduler for rectified flow, set to so many steps.

    Args:
        solver: `euler` (one step back) or `dpm` (DPM-Solver++, two steps back).
        steps: denoising steps.
        sigmas: noise levels of the steps, for `euler`; its own by default.
    """
    from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

    if solver not in SOLVERS:
        raise RecipeError(f"solver is one of {', '.join(SOLVERS)}, not '{solver}'")
    if steps < 1:
        raise RecipeError(f"steps is 1 or more, not {steps}")
    if solver == "euler":
        made = FlowMatchEulerDiscreteScheduler()
    else:
        made = DPMSolverMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            algorithm_type="dpmsolver++",
            solver_order=2,
            final_sigmas_type="zero",
        )
    if sigmas is None:
        made.set_timesteps(steps)
    elif solver == "euler":
        made.set_timesteps(sigmas=list(sigmas))
    else:
        raise RecipeError(f"sigmas go with the solver euler, not '{solver}'")
    return made


@torch.no_grad()
def sample(
    model: Any,
    labels: torch.Tensor,
    steps: int = 30,
    seed: int = 0,
    guidance: float = 2.0,
    solver: str = "euler",
    sigmas: Sequence[float] | None = None,
) -> torch.Tensor:
    """Pictures of the classes `labels` (B,): (B, 3, 16, 16), about in [-1, 1].

    With guidance other than 1 the model is called twice a step, with and without the class, as
    most pipelines do. Every picture has its own noise, whatever batch it is drawn in. `sigmas`
    replace the scheduler's own noise levels.
    """
    timeline = scheduler(solver, steps, sigmas)
    device = next(model.parameters()).device
    labels = labels.to(device)
    config = model.config
    shape = (config.in_channels, config.sample_size, config.sample_size)
    nobody = torch.full_like(labels, len(CLASSES))
    noises = [
        torch.randn(shape, generator=torch.Generator().manual_seed(seed + row))
        for row in range(len(labels))
    ]
    latent = torch.stack(noises).to(device)
    for time in timeline.timesteps:
        times = time.to(device).expand(len(labels))
        velocity = model(latent, times, class_labels=labels, return_dict=False)[0]
        if guidance != 1:
            other = model(latent, times, class_labels=nobody, return_dict=False)[0]
            velocity = other + guidance * (velocity - other)
        latent = timeline.step(velocity, time, latent, return_dict=False)[0]
    return to_pictures(latent)
