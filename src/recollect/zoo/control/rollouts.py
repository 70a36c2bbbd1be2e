"""Planning with DDPM over 100 steps, and acting on the plans in a closed loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from recollect.zoo.control.task import CHUNK, World

STEPS = 100
"""Denoising steps, as many as in training."""
_ACTED = 8  # positions of a plan that are gone to before the next plan
_PLANS = 7


def scheduler(steps: int = STEPS) -> Any:
    """DDPM as the policy was trained with, set to so many steps."""
    from diffusers import DDPMScheduler

    made = DDPMScheduler(
        num_train_timesteps=STEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=True,
    )
    made.set_timesteps(steps)
    return made


@torch.no_grad()
def plan(model: Any, observation: torch.Tensor, seed: int = 0, steps: int = STEPS) -> torch.Tensor:
    """Plans (B, 16, 2) for observations (B, 5, 2). A row's noise does not depend on its batch."""
    timeline = scheduler(steps)
    generators = [torch.Generator().manual_seed(seed + row) for row in range(len(observation))]

    sample = torch.stack([torch.randn(CHUNK, 2, generator=one) for one in generators])
    for time in timeline.timesteps:
        guess = model(sample, time.expand(len(sample)), observation, return_dict=False)[0]
        sample = timeline.step(guess, time, sample, generator=generators).prev_sample
    return sample


@torch.no_grad()
def act(
    model: Any,
    world: World,
    seed: int = 0,
    steps: int = STEPS,
    watch: Callable[[World], None] | None = None,
) -> World:
    """The world after plans have been made and followed, 8 positions of each.

    Args:
        model: the policy.
        world: where to begin.
        seed: of the plans' noise.
        steps: denoising steps of a plan.
        watch: told the world before every plan.
    """
    for number in range(_PLANS):
        if watch is not None:
            watch(world)
        chunk = plan(model, world.observation, seed + 1000 * number, steps)
        for place in chunk[:, :_ACTED].unbind(1):
            world = world.move(place)
    return world


def success(model: Any, episodes: int = 64, seed: int = 0, steps: int = STEPS) -> float:
    """Share of drawn worlds in which the point comes to its goal."""
    world = World.draw(episodes, torch.Generator().manual_seed(seed))
    return float(act(model, world, seed, steps).succeeded.float().mean())
