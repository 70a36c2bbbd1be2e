"""Reweighting: attention to a token moves the output by as much as its value is long."""

from __future__ import annotations

import torch


def value_reweight(scores: torch.Tensor, v: torch.Tensor, eps: float = 0.0) -> torch.Tensor:
    """(s + eps)·‖v‖₂ from scores (B, K, T) and values (B, K, T, Dv)."""
    return (scores + eps) * torch.linalg.vector_norm(v, dim=-1, dtype=torch.float32)
