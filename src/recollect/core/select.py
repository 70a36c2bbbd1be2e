"""Selection: from scores and numbers of tokens to the indices that stay, ascending.

Ties go to the lower index, so the same scores select the same tokens on every device. Protected
tokens carry +inf: they stay even where they exceed the budget, and the caller learns of it from
the size of the result (a wider index, longer segments).
"""

from __future__ import annotations

import torch


def protect(
    scores: torch.Tensor,
    sinks: int | torch.Tensor = 0,
    recent: int | torch.Tensor = 0,
    padding: torch.Tensor | None = None,
) -> torch.Tensor:
    """A copy of `scores` with forced tokens at +inf and padding at -inf.

    Args:
        scores: (B, K, T).
        sinks, recent: real tokens that must stay at the start and the end, one number or (B,).
        padding: (B,) or (B, K) columns of left padding, or None.
    """
    total = scores.shape[-1]
    column = torch.arange(total, device=scores.device)
    start = _column(padding, scores)
    forced = (column < start + _column(sinks, scores)) | (column >= total - _column(recent, scores))
    return scores.masked_fill(forced, torch.inf).masked_fill(column < start, -torch.inf)


def _column(value: int | torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """A number for all rows, for each (B,) or for each head (B, K), to compare with columns."""
    number = torch.as_tensor(0 if value is None else value, device=like.device)
    return number[..., None] if number.dim() == 2 else number.reshape(-1, 1, 1)


def protected_counts(scores: torch.Tensor) -> torch.Tensor:
    """How many tokens of each head must stay: (B, K) int64 from scores (B, K, T)."""
    return (scores == torch.inf).sum(-1)


def top_indices(scores: torch.Tensor, n: int) -> torch.Tensor:
    """The n best tokens of every head, ascending: (B, K, n) int64 from scores (B, K, T).

    Where some head has more than n protected tokens, all heads get that many: compare the width of
    the result with `n`. Keep n within the real tokens of the shortest row: dense results have no
    room for rows of different lengths (`ragged_indices` has).
    """
    batch, heads, total = scores.shape
    width = min(max(n, int(protected_counts(scores).max())), total)
    if width == total:
        return torch.arange(total, device=scores.device).expand(batch, heads, total).contiguous()
    counts = torch.full((batch, heads), width, device=scores.device)
    return top_mask(scores, counts).nonzero()[:, -1].view(batch, heads, width)


def ragged_indices(scores: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The best tokens of every head, each head its own number.

    Args:
        scores: (B, K, T); protected tokens at +inf, padding at -inf.
        counts: (B, K) tokens wanted.

    Returns:
        Token indices (N,) int64, segment after segment in (b, k) order and ascending in each, and
        the segments' lengths (B*K,) int64. A length exceeds its count where there are more
        protected tokens, and falls short where there are fewer real ones.
    """
    real = (scores > -torch.inf).sum(-1)
    counts = counts.maximum(protected_counts(scores)).minimum(real)
    return top_mask(scores, counts).nonzero()[:, -1], counts.flatten()


def top_mask(scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Which tokens are among the best `counts` (...) of scores (..., T); ties: lower index."""
    wanted = counts[..., None]
    threshold = nth_largest(scores, counts.clamp(min=1))[..., None]
    above = scores > threshold
    ties = scores == threshold
    room = wanted - above.sum(-1, keepdim=True)
    # A running count of ties costs a pass over all scores: skip it where every tie has room.
    if bool((ties.sum(-1, keepdim=True) > room).any()):
        ties &= ties.cumsum(-1) <= room
    return (above | ties) & (wanted > 0)


def nth_largest(scores: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    """The n-th largest value of every row: (...) from scores (..., T) and n (...) in [1, T]."""
    most, least = int(n.max()), int(n.min())
    if most == least:
        return scores.topk(most, dim=-1, sorted=False).values.amin(-1)
    return scores.topk(most, dim=-1).values.gather(-1, n[..., None] - 1)[..., 0]
