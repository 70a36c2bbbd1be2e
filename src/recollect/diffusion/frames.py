"""A noise level for every frame: vectorized timesteps (PUSA, arXiv:2507.16116).

Frames that are given, such as the image a video starts from, stay (almost) clean while the others
are denoised. Every policy takes such times: its clock reads the noisiest frame.
"""

from __future__ import annotations

import torch

from recollect.errors import RecipeError


def frame_levels(sigmas: torch.Tensor, given: torch.Tensor, noise: float = 0.0) -> torch.Tensor:
    """Noise levels of a trajectory, frame by frame.

    Args:
        sigmas: (T + 1,) levels of the schedule, from noise to 0.
        given: (B, F) bool, frames that are conditions.
        noise: share of the level that given frames have; 0 keeps them as they are.

    Returns:
        (T + 1, B, F) levels.

    Raises:
        RecipeError: a share outside [0, 1].
    """
    if not 0 <= noise <= 1:
        raise RecipeError(f"noise is between 0 and 1, not {noise}")
    share = torch.where(given, noise, 1.0)
    return sigmas[:, None, None] * share


def token_times(levels: torch.Tensor, tokens: int, scale: float = 1000.0) -> torch.Tensor:
    """Timesteps (B, F * tokens) for models with a time per token, from levels (B, F).

    Args:
        levels: noise levels of one step.
        tokens: visual tokens of a frame.
        scale: timesteps of training.
    """
    return scale * levels.repeat_interleave(tokens, 1)


def euler_step(
    latent: torch.Tensor, velocity: torch.Tensor, now: torch.Tensor, then: torch.Tensor
) -> torch.Tensor:
    """An Euler step of every frame by its own change of noise level.

    Args:
        latent: (B, C, F, H, W).
        velocity: the same shape, noise - data.
        now, then: levels (B, F) before and after; a frame whose level stays keeps its bits.
    """
    change = (then - now).to(latent)[:, None, :, None, None]
    return torch.where(change == 0, latent, latent + change * velocity)
