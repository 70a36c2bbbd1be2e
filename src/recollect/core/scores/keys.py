"""Scores from the geometry of the keys alone: no queries, linear in the number of tokens."""

from __future__ import annotations

import torch

_TINY = 1e-8


def key_norm(k: torch.Tensor) -> torch.Tensor:
    """Tokens with small keys receive much attention: -‖k‖₂ of k (B, K, T, D) (2406.11430)."""
    return -torch.linalg.vector_norm(k, dim=-1, dtype=torch.float32)


def keydiff(k: torch.Tensor, padding: torch.Tensor | None = None) -> torch.Tensor:
    """KeyDiff (2504.15364): keys unlike the mean direction of all keys are worth more.

    Args:
        k: (B, K, T, D).
        padding: (B,) left padding, which takes no part in the mean and scores -inf.
    """
    keys = k.float()
    norm = -key_norm(k).clamp(max=-_TINY)
    share = 1 / norm
    padded = None
    if padding is not None:
        column = torch.arange(k.shape[2], device=k.device)
        padded = (column < padding.to(k.device)[:, None])[:, None]
        share = share.masked_fill(padded, 0.0)
    anchor = share[:, :, None] @ keys  # (B, K, 1, D) sum: a cosine needs no mean
    anchor = anchor / torch.linalg.vector_norm(anchor, dim=-1, keepdim=True).clamp(min=_TINY)
    scores = -(keys @ anchor.transpose(2, 3))[..., 0] / norm
    return scores if padded is None else scores.masked_fill(padded, -torch.inf)
