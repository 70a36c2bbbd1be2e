"""Merging: similar neighbours become one token that stands for all of them.

Chelsea (later CentroidKV; details by our reading of its abstracts): inside a chunk, tokens at even
places look for their most similar token at an odd place, and the best of these pairs merge into
count-weighted means. A token's count is how many it stands for; adding log(count) to its logit
makes merging equal keys exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from recollect.core.budgets import share_exactly

Merged = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def bipartite_merge(
    k: torch.Tensor,
    v: torch.Tensor,
    counts: torch.Tensor,
    *,
    chunk: int,
    merges_per_chunk: int | Sequence[int],
    similarity: str = "cosine",
) -> Merged:
    """One round: the best pairs of every chunk merge, in every head the same number of them.

    Args:
        k, v: (B, K, T, D), (B, K, T, Dv).
        counts: (B, K, T) float32, tokens each one stands for; their sum is preserved.
        chunk: tokens per chunk, even; the last chunk may be shorter.
        merges_per_chunk: for all chunks or for each; at most half of a chunk's tokens merge away.
        similarity: `cosine` or `dot`.

    Returns:
        k', v', counts' of T' tokens, and which of the T each is: (B, K, T') ascending. A merged
        token takes the place of its odd member. Ties go to the lower index.
    """
    batch, heads, total, _ = k.shape
    chunks = -(-total // chunk)
    sizes = [min(chunk, total - i * chunk) for i in range(chunks)]
    wanted = [merges_per_chunk] * chunks if isinstance(merges_per_chunk, int) else merges_per_chunk
    merges = torch.tensor(
        [min(m, size // 2) for m, size in zip(wanted, sizes, strict=True)], device=k.device
    )

    even, odd = _sides(k.float(), chunk)
    partner, merged = _match(even, odd, merges, sizes[-1], similarity)
    even_count, odd_count = (c[..., 0] for c in _sides(counts[..., None], chunk))
    # How much of each even token (columns) goes into each odd one (rows).
    places = torch.arange(odd.shape[-2], device=k.device)[:, None]
    inflow = (partner[..., None, :] == places) * (merged * even_count)[..., None, :]
    new_count = odd_count + inflow.sum(-1)
    grew = new_count > odd_count

    def join(even: torch.Tensor, odd: torch.Tensor) -> torch.Tensor:
        mean = (odd * odd_count[..., None] + inflow @ even) / new_count[..., None]
        odd = torch.where(grew[..., None], mean, odd)  # the others stay bit for bit
        return torch.stack((even, odd), -2).flatten(2, 4)[:, :, :total]

    stays = torch.stack((~merged, torch.ones_like(merged)), -1).flatten(2)[:, :, :total]
    index = stays.nonzero()[:, -1].view(batch, heads, -1)
    new_counts = torch.stack((even_count, new_count), -1).flatten(2)
    return (
        _take(join(even, odd).to(k.dtype), index),
        _take(join(*_sides(v.float(), chunk)).to(v.dtype), index),
        new_counts.gather(2, index),
        index,
    )


def chelsea_rounds(
    k: torch.Tensor,
    v: torch.Tensor,
    counts: torch.Tensor,
    *,
    target: int,
    chunk: int = 64,
    similarity: str = "cosine",
) -> Merged:
    """Rounds of `bipartite_merge` until `target` tokens are left per head, exactly.

    A round removes at most half; the last one merges just as many as are needed, spread evenly
    over the chunks. Arguments and results as in `bipartite_merge`; leave sinks and recent tokens
    out of what you pass.
    """
    if target < 1:
        raise ValueError(f"target must be at least 1, got {target}")
    dtypes = k.dtype, v.dtype
    k, v = k.float(), v.float()  # centroids of centroids keep their precision
    total = k.shape[2]
    index = torch.arange(total, device=k.device).expand(*k.shape[:2], total).contiguous()
    while (total := k.shape[2]) > target:
        sizes = [min(chunk, total - start) for start in range(0, total, chunk)]
        halves = [size // 2 for size in sizes]
        merges = share_exactly(total - target, sizes, caps=halves)
        k, v, counts, kept = bipartite_merge(
            k, v, counts, chunk=chunk, merges_per_chunk=merges, similarity=similarity
        )
        index = index.gather(2, kept)
    return k.to(dtypes[0]), v.to(dtypes[1]), counts, index


def _sides(x: torch.Tensor, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Even and odd places of x (B, K, T, D), each (B, K, chunks, chunk/2, D), zeros at the end."""
    missing = -x.shape[2] % chunk
    pairs = F.pad(x, (0, 0, 0, missing)).unflatten(2, (-1, chunk // 2, 2))
    return pairs[..., 0, :], pairs[..., 1, :]


def _match(
    even: torch.Tensor, odd: torch.Tensor, merges: torch.Tensor, last: int, similarity: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """For every even place its best odd one (int64), and whether that pair merges (bool)."""
    if similarity == "cosine":
        even, odd = F.normalize(even, dim=-1), F.normalize(odd, dim=-1)
    likeness = even @ odd.transpose(-1, -2)
    likeness[:, :, -1, (last + 1) // 2 :] = -torch.inf  # places the last chunk does not have
    likeness[:, :, -1, :, last // 2 :] = -torch.inf
    best, partner = likeness.max(-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(-1)
    return partner, rank < merges[:, None]


def _take(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return x.gather(2, index[..., None].expand(-1, -1, -1, x.shape[-1]))
