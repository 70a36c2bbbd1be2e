"""Distances between clips: to the uncached ones of the same noise, one number each."""

from __future__ import annotations

import torch

from recollect.evaluate import pictures


def psnr(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of clips (B, C, F, H, W) in [-1, 1], mean over frames: (B,)."""
    frames = (clips.transpose(1, 2).flatten(0, 1) for clips in (one, other))
    return pictures.psnr(*frames).unflatten(0, (len(one), -1)).mean(1)


def flicker(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The same of the differences between successive frames, (B,): motion that is not theirs."""
    moved = (clips.clamp(-1, 1).diff(dim=2) / 2 for clips in (one, other))
    return psnr(*moved)
