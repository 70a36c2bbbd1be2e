"""Edit pictures with a bare transformer, where there is no pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from recollect.diffusion.engine.attach import Acceleration, accelerate
from recollect.diffusion.policy import DiffusionPolicy
from recollect.errors import RecipeError
from recollect.recipe import Composition

Spec = str | Composition | DiffusionPolicy


def euler(sigmas: Sequence[float]) -> Any:
    """An Euler scheduler on these noise levels.

    Args:
        sigmas: falling, above 0; the step after the last one ends at 0.

    Raises:
        RecipeError: no levels, or levels that do not fall.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    falling = all(a > b for a, b in zip(sigmas, [*sigmas[1:], 0.0], strict=True))
    if not len(sigmas) or not falling:
        raise RecipeError("sigmas are one or more falling noise levels above 0")
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=list(sigmas))
    return scheduler


@torch.no_grad()
def edit(
    transformer: torch.nn.Module,
    noise: torch.Tensor,
    picture: torch.Tensor,
    sigmas: Sequence[float],
    spec: Spec | None = "regione",
    *,
    ids: torch.Tensor,
    text: torch.Tensor,
    pooled: torch.Tensor,
    guidance: torch.Tensor | None = None,
    **arguments: Any,
) -> torch.Tensor:
    """Edit pictures with Euler steps, under a policy.

    Args:
        transformer: a model in FLUX.1 Kontext's layout.
        noise: tokens (B, S, C) to start from.
        picture: tokens (B, R, C) of the pictures to edit.
        sigmas: noise levels of the steps, falling.
        spec: recipe or policy; None for uncached.
        ids: position ids (S + R, 3): flag, row, column; flag 0 for the result.
        text: encoded instructions (B, E, W).
        pooled: their pooled form (B, P).
        guidance: guidance scale (B,) for distilled models that take one.
        arguments: any parameter of the recipe.

    Returns:
        Tokens (B, S, C) of the edited pictures.

    Raises:
        RecipeError: wrong sigmas, recipe or argument.
        HostError: the model or the tokens do not fit the recipe.
    """
    scheduler = euler(sigmas)
    with editing(transformer, scheduler, spec, **arguments):
        latent = noise
        for time in scheduler.timesteps:
            velocity = transformer(
                hidden_states=torch.cat([latent, picture], 1),
                encoder_hidden_states=text,
                pooled_projections=pooled,
                timestep=(time / 1000).expand(len(latent)).to(latent),
                img_ids=ids,
                txt_ids=torch.zeros(text.shape[1], 3, device=latent.device),
                guidance=guidance,
                return_dict=False,
            )[0][:, : latent.shape[1]]
            latent = scheduler.step(velocity, time, latent, return_dict=False)[0]
    return latent


@contextmanager
def editing(
    transformer: torch.nn.Module, scheduler: Any, spec: Spec | None = "regione", **arguments: Any
) -> Iterator[Acceleration | None]:
    """Accelerate a transformer that a loop of yours calls, with that loop's scheduler."""
    if spec is None:
        yield None
        return
    pipe = SimpleNamespace(transformer=transformer, scheduler=scheduler)
    with accelerate(pipe, spec, **arguments) as acceleration:
        yield acceleration
