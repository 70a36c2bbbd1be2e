"""Expected attention: what future queries will look at, if they are distributed like past ones.

Queries before RoPE are taken as Gaussian. Rotated to the coming positions (on average), their
attention logits against a key are Gaussian too, and the mean of the exponential has a closed form:
log E[exp(q·k/√D)] = μ·k/√D + kᵀΣk/2D (Expected Attention, 2510.00636).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from recollect.core.rope import unapply_rope
from recollect.core.scores.values import value_reweight

_TILE_ELEMENTS = 1 << 19  # of products held at once: 2 MiB stay in the processor's cache


def query_sums(
    q: torch.Tensor,
    n_sink: int = 0,
    padding: torch.Tensor | None = None,
    *,
    angles: tuple[torch.Tensor, torch.Tensor] | None = None,
    interleaved: bool = False,
) -> dict[str, torch.Tensor]:
    """Sums over queries from which moments follow; the sums of several chunks add up.

    Args:
        q: (B, H, Q, D) queries before RoPE, or after it if their angles are given.
        n_sink: leave out the first queries of each row: the outliers at the start of a text.
        padding: (B,) left padding among these queries, left out as well.
        angles: cos and sin, (Q, R) or broadcasting to (B, H, Q, R), by which q was rotated. Undoing
            it here, block by block, holds no second copy of a long prompt's queries.
        interleaved: layout of the angles, see `rope`.

    Returns:
        `count` (B,), `sum` (B, H, D) and `outer` (B, H, D, D), float64: the covariance is a small
        difference of large sums where queries have a common offset.
    """
    batch, heads, queries, width = q.shape
    first = torch.zeros(batch, dtype=torch.int64) if padding is None else padding
    first = (first.to(q.device) + n_sink).clamp(max=queries)
    start = int(first.min())
    column = torch.arange(queries, device=q.device)
    pivot = None
    total = torch.zeros(batch, heads, 1, width, device=q.device)
    scatter = torch.zeros(batch, heads, width, width, device=q.device)
    step = max(16, _TILE_ELEMENTS // (batch * heads * width))
    for begin in range(start, queries, step):
        block = slice(begin, min(begin + step, queries))
        part = q[:, :, block].float()
        if angles is not None:
            cos, sin = (a[..., block, :] for a in angles)
            part = unapply_rope(part, cos, sin, interleaved=interleaved)
        used = (column[block] >= first[:, None])[:, None, :, None]
        if pivot is None:  # any point amid the queries will do to keep float32 products small
            pivot = (part * used).sum(2, keepdim=True) / used.sum(2, keepdim=True).clamp(min=1)
        part = part - pivot
        if not bool(used.all()):
            part *= used
        total += part.sum(2, keepdim=True)
        scatter += part.transpose(2, 3) @ part
    centre = torch.zeros_like(total) if pivot is None else pivot
    return _about_origin(queries - first, centre[:, :, 0], total[:, :, 0], scatter)


def _about_origin(
    count: torch.Tensor, pivot: torch.Tensor, total: torch.Tensor, scatter: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Sums of x and of x xᵀ from those of x - pivot, in float64."""
    n, c, s = count.double()[:, None, None], pivot.double(), total.double()
    mixed = s[..., :, None] * c[..., None, :]
    constant = n[..., None] * c[..., :, None] * c[..., None, :]
    outer = scatter.double() + mixed + mixed.transpose(-1, -2) + constant
    return {"count": count.double(), "sum": s + n * c, "outer": outer}


def query_moments(sums: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (B, H, D) and biased covariance (B, H, D, D), float32, of added `query_sums`."""
    n = sums["count"].clamp(min=1)[:, None, None]
    mean = sums["sum"] / n
    covariance = sums["outer"] / n[..., None] - mean[..., :, None] * mean[..., None, :]
    return mean.float(), covariance.float()


def query_statistics(
    q_pre: torch.Tensor, n_sink: int = 4, padding: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of queries seen at once; arguments as in `query_sums`."""
    return query_moments(query_sums(q_pre, n_sink, padding))


def expected_attention(
    q_pre_mean: torch.Tensor,
    q_pre_cov: torch.Tensor | None,
    k: torch.Tensor,
    v: torch.Tensor,
    rotation_mean: torch.Tensor,
    *,
    padding: torch.Tensor | None = None,
    epsilon: float = 0.0,
    n_sink: int = 4,
    scale: float | None = None,
) -> torch.Tensor:
    """Expected attention to every token, times the norm of its value.

    Args:
        q_pre_mean: (B, H, D) mean of the queries before RoPE.
        q_pre_cov: (B, H, D, D) their covariance, or None to use the mean alone.
        k, v: (B, K, T, D) post-RoPE keys, (B, K, T, Dv) values.
        rotation_mean: (D, D) or (B, D, D) from `rope.mean_rotation` of the coming positions; with
            left padding these differ by row.
        padding: (B,) left padding, which scores -inf.
        epsilon: added to the expected attention before it is weighted.
        n_sink: first real tokens: outside the softmax, and at the row's highest score plus 1.
        scale: of the logits, 1/√D unless given.

    Returns:
        (B, K, T) float32.
    """
    batch, _, total, width = k.shape
    scale = 1 / math.sqrt(width) if scale is None else scale
    rotation = rotation_mean.expand(batch, width, width)[:, None].to(k.device)
    keys = k.float()
    logits = _logits(q_pre_mean, q_pre_cov, keys, rotation, scale)

    start = torch.zeros(batch, dtype=torch.int64) if padding is None else padding
    start = start.to(k.device)[:, None, None]
    column = torch.arange(total, device=k.device)
    outside = column < start + n_sink
    attention = logits.masked_fill_(outside[:, :, None], -torch.inf).softmax(-1).mean(2)
    attention = attention.nan_to_num_(0.0)  # a row of sinks only
    scores = value_reweight(attention, v, epsilon).masked_fill(outside, -torch.inf)
    best = scores.amax((1, 2), keepdim=True).clamp(min=0.0) + 1
    scores = torch.where(outside, best, scores)
    return scores.masked_fill(column < start, -torch.inf)


def _logits(
    mean: torch.Tensor,
    cov: torch.Tensor | None,
    keys: torch.Tensor,
    rotation: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Log of the expected exponential, (B, K, G, T)."""
    batch, kv_heads, _, width = keys.shape
    rotated = (mean.float()[:, :, None] @ rotation.transpose(2, 3)).view(batch, kv_heads, -1, width)
    logits = scale * (rotated @ keys.transpose(2, 3))
    if cov is None:
        return logits
    turned = rotation @ cov.float() @ rotation.transpose(2, 3)
    turned = turned.view(batch, kv_heads, -1, width, width)
    step = max(16, _TILE_ELEMENTS // (batch * logits.shape[2] * kv_heads * width))
    for block, part in zip(keys[:, :, None].split(step, 3), logits.split(step, 3), strict=True):
        part += 0.5 * scale * scale * ((block @ turned) * block).sum(-1)
    return logits
