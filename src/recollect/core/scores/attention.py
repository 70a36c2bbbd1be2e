"""Scores from attention that was really paid: by the last queries, the newest one, or all."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def snapkv(
    window_attn: torch.Tensor,
    n_kv_heads: int,
    pool: str = "avg",
    kernel: int = 5,
    reduce: str = "mean",
    group: str = "mean",
) -> torch.Tensor:
    """SnapKV (2404.14469): attention of the last w queries, smoothed along the sequence.

    Args:
        window_attn: (B, H, w, T) from `attention_stats.window_attention`.
        reduce: over the w queries, `mean` (kvpress) or `sum` (authors): the ranking is the same.
        n_kv_heads, pool, kernel, group: see `window_votes`.
    """
    votes = window_attn.sum(2) if reduce == "sum" else window_attn.mean(2)
    return window_votes(votes, n_kv_heads, window_attn.shape[2], pool, kernel, group)


def window_votes(
    votes: torch.Tensor,
    n_kv_heads: int,
    window: int,
    pool: str = "avg",
    kernel: int = 5,
    group: str = "mean",
) -> torch.Tensor:
    """SnapKV from attention already summed (or averaged) over the window's queries.

    `attention_stats.column_mass` of the last w queries gives such votes in a fraction of the memory
    of the attention itself.

    The window's own tokens get the row's highest score plus 1, so they rank first. Pooling pads
    with zeros, which lowers both ends, as in the authors' code; it smears attention over the
    neighbouring columns of left padding, so mask those afterwards (`select.protect`).

    Args:
        votes: (B, H, T).
        n_kv_heads: K.
        window: w, how many tokens at the end are the window.
        pool: `avg`, `max` or `none`.
        kernel: width of the pooling, odd.
        group: over the G query heads of a KV head, `mean`, `sum` or `max`.
    """
    batch, _, total = votes.shape
    if total <= window:
        return votes.new_ones(batch, n_kv_heads, total)
    votes = votes[..., : total - window]
    if pool == "avg":
        votes = F.avg_pool1d(votes, kernel, stride=1, padding=kernel // 2)
    elif pool == "max":
        votes = F.max_pool1d(votes, kernel, stride=1, padding=kernel // 2)
    scores = _over_group(votes, n_kv_heads, group)
    best = scores.amax((1, 2), keepdim=True) + 1
    return torch.cat((scores, best.expand(batch, n_kv_heads, window)), -1)


def tova(last_row: torch.Tensor, n_kv_heads: int) -> torch.Tensor:
    """TOVA (2401.06104): attention of the newest query, averaged over all heads of the layer.

    All heads share the result, so they keep the same tokens. The newest token has the weight it
    gave itself; kvpress forces it to stay, which is `select.protect(recent=1)` here.

    Args:
        last_row: (B, H, T) from `attention_stats.last_row`.
        n_kv_heads: K.
    """
    shared = last_row.mean(1, keepdim=True)
    return shared.expand(-1, n_kv_heads, -1).contiguous()


def heavy_hitters(mass: torch.Tensor, n_kv_heads: int) -> torch.Tensor:
    """H2O (2306.14048): attention received from all queries, group mean.

    Args:
        mass: (B, H, T) from `attention_stats.column_mass`.
        n_kv_heads: K.
    """
    return _over_group(mass, n_kv_heads, "mean")


def _over_group(votes: torch.Tensor, n_kv_heads: int, how: str) -> torch.Tensor:
    """(B, H, T) → (B, K, T)."""
    grouped = votes.unflatten(1, (n_kv_heads, -1))
    if how == "max":
        return grouped.amax(2)
    return grouped.sum(2) if how == "sum" else grouped.mean(2)
