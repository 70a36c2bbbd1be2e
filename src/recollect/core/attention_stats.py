"""What attention says about cached tokens, in float32 and without the whole matrix.

The Q queries are always the last Q of the T cached tokens and see those before them and themselves.
Query heads are grouped over their KV head, keys are never expanded. `padding` (B,) counts the left
padding of each row: such columns get no attention, such queries give none.
"""

from __future__ import annotations

import torch

# Attention weights held at once in `column_mass`: 16 MiB. Larger blocks come fresh from the system
# every time, and touching their pages costs as much as the arithmetic.
_TILE_ELEMENTS = 1 << 22


def window_attention(
    q: torch.Tensor, k: torch.Tensor, scale: float, padding: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention weights of the last queries.

    Args:
        q: (B, H, w, D) post-RoPE queries.
        k: (B, K, T, D) post-RoPE keys.
        scale: multiplies q·k.
        padding: (B,) or None.

    Returns:
        (B, H, w, T) float32; each row sums to 1, or is 0 where the query is padding.
    """
    batch, heads, queries, _ = q.shape
    total = k.shape[2]
    return _attend(q, k.float(), scale, total - queries, padding).view(batch, heads, queries, total)


def last_row(
    q: torch.Tensor, k: torch.Tensor, scale: float, padding: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention weights (B, H, T) of the newest query; arguments as in `window_attention`."""
    return window_attention(q[:, :, -1:], k, scale, padding)[:, :, 0]


def column_mass(
    q: torch.Tensor,
    k: torch.Tensor,
    scale: float,
    padding: torch.Tensor | None = None,
    *,
    tile: int = 256,
) -> torch.Tensor:
    """Attention each token receives from all queries, summed: H2O's statistic (2306.14048).

    Args:
        q: (B, H, Q, D) post-RoPE queries.
        k: (B, K, T, D) post-RoPE keys.
        scale: multiplies q·k.
        padding: (B,) or None.
        tile: queries per block at most; never more than tile x T weights per head are held.

    Returns:
        (B, H, T) float32.
    """
    batch, heads, queries, _ = q.shape
    total = k.shape[2]
    keys = k.float()
    mass = torch.zeros(batch, heads, total, device=q.device)
    block = max(1, min(tile, queries, _TILE_ELEMENTS // (batch * heads * total)))
    for start in range(0, queries, block):
        part = q[:, :, start : start + block]
        first = total - queries + start
        seen = first + part.shape[2]
        weights = _attend(part, keys[:, :, :seen], scale, first, padding)
        mass[:, :, :seen] += weights.view(batch, heads, part.shape[2], seen).sum(2)
    return mass


def _attend(
    q: torch.Tensor, k: torch.Tensor, scale: float, first: int, padding: torch.Tensor | None
) -> torch.Tensor:
    """Causal softmax (B, K, G*n, T) of n queries that are tokens first … first+n-1 = T-1."""
    batch, heads, n, width = q.shape
    kv_heads, total = k.shape[1:3]
    grouped = (q.float() * scale).reshape(batch, kv_heads, -1, width)
    logits = grouped @ k.transpose(2, 3)
    by_query = logits.view(batch, heads, n, total)
    if n > 1:
        future = torch.ones(n, n, dtype=torch.bool, device=q.device).triu_(1)
        by_query[..., first:].masked_fill_(future, -torch.inf)
    if padding is None:
        return logits.softmax(-1)
    column = torch.arange(total, device=q.device)
    padded = column < padding.to(q.device)[:, None]
    by_query.masked_fill_(padded[:, None, None, :], -torch.inf)
    weights = logits.softmax(-1)
    weights.view_as(by_query).masked_fill_(padded[:, None, first:, None], 0.0)
    return weights
