"""Expected attention: what future queries will look at, if they are distributed like past ones.

Queries before RoPE are taken as Gaussian. Rotated to the coming positions (on average), their
attention logits against a key are Gaussian too, and the mean of the exponential has a closed form:
log E[exp(q·k/√D)] = μ·k/√D + kᵀΣk/2D (Expected Attention, 2510.00636).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from recollect.core.scores.values import value_reweight


def query_sums(
    q_pre: torch.Tensor, n_sink: int = 0, padding: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Sums over queries from which moments follow; the sums of several chunks add up.

    Args:
        q_pre: (B, H, Q, D) queries before RoPE.
        n_sink: leave out the first queries of each row: the outliers at the start of a text.
        padding: (B,) left padding among these queries, left out as well.

    Returns:
        `count` (B,), `sum` (B, H, D) and `outer` (B, H, D, D), float64: the covariance is a small
        difference of large sums where queries have a common offset.
    """
    batch, _, queries, _ = q_pre.shape
    if padding is None:
        q = q_pre[:, :, n_sink:].float()
        count = torch.full((batch,), q.shape[2], dtype=torch.float64, device=q.device)
        mean = q.mean(2, keepdim=True) if q.shape[2] else q.new_zeros(*q.shape[:2], 1, q.shape[3])
        centred = q - mean
    else:
        first = padding.to(q_pre.device)[:, None] + n_sink
        used = torch.arange(queries, device=q_pre.device) >= first
        count = used.sum(-1).double()
        q = q_pre.float() * used[:, None, :, None]
        mean = q.sum(2, keepdim=True) / count.clamp(min=1).float()[:, None, None, None]
        centred = (q - mean) * used[:, None, :, None]
    # Large products in float32 around the mean, then shifted to the origin in float64.
    n = count[:, None, None]
    centre = mean[:, :, 0].double()
    scatter = (centred.transpose(2, 3) @ centred).double()
    offset = n[..., None] * centre[..., :, None] * centre[..., None, :]
    return {"count": count, "sum": n * centre, "outer": scatter + offset}


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
    """Log of the expected exponential, (B, K, G, T), one group member at a time."""
    batch, kv_heads, _, width = keys.shape
    rotated = (mean.float()[:, :, None] @ rotation.transpose(2, 3)).view(batch, kv_heads, -1, width)
    logits = scale * (rotated @ keys.transpose(2, 3))
    if cov is None:
        return logits
    turned = rotation @ cov.float() @ rotation.transpose(2, 3)
    turned = turned.view(batch, kv_heads, -1, width, width)
    for member in range(logits.shape[2]):  # the products of one member are as large as the keys
        quadratic = ((keys @ turned[:, :, member]) * keys).sum(-1)
        logits[:, :, member] += 0.5 * scale * scale * quadratic
    return logits
