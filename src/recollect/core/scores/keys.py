"""Scores from the geometry of the keys alone: no queries, linear in the number of tokens."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def key_norm(k: torch.Tensor) -> torch.Tensor:
    """Tokens with small keys receive much attention: -‖k‖₂ of k (B, K, T, D) (2406.11430)."""
    return -torch.linalg.vector_norm(k, dim=-1, dtype=torch.float32)


def keydiff(k: torch.Tensor, padding: torch.Tensor | None = None) -> torch.Tensor:
    """KeyDiff (2504.15364): keys unlike the mean direction of all keys are worth more.

    Args:
        k: (B, K, T, D).
        padding: (B,) left padding, which takes no part in the mean and scores -inf.
    """
    unit = F.normalize(k.float(), dim=-1)
    if padding is None:
        return -F.cosine_similarity(k.float(), unit.mean(2, keepdim=True), dim=-1)
    padded = torch.arange(k.shape[2], device=k.device) < padding.to(k.device)[:, None]
    unit = unit.masked_fill(padded[:, None, :, None], 0.0)  # cosine ignores the sum's scale
    scores = -F.cosine_similarity(k.float(), unit.sum(2, keepdim=True), dim=-1)
    return scores.masked_fill(padded[:, None], -torch.inf)
