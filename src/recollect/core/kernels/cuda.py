"""Attention kernels for GPUs, in Triton.

One program attends to one run of tokens of one KV head for all its G * Q query rows, so that keys
and values are read once. Partial results are float32 and merged by a second, small kernel.
"""

from __future__ import annotations

import torch

from recollect.core.codecs.affine import PackedKV
from recollect.core.kernels import cuda_loops

Partial = tuple[torch.Tensor, torch.Tensor]

TILE = 64  # tokens
PROGRAMS = 512  # aimed at: two to four per multiprocessor of a large GPU
SHORTEST_SPLIT = 256  # tokens


def ragged_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    *,
    scale: float,
    bias: torch.Tensor | None = None,
    causal: bool = True,
) -> Partial:
    """See `kernels.ragged_attention`. Lengths on the CPU spare a wait for the device."""
    longest = int(lengths.max())
    starts, lengths = _addresses(starts, q), _addresses(lengths, q)
    return _attend_rows(
        q, k, v, starts * k.stride(0), k.stride(0), starts * v.stride(0), v.stride(0),
        lengths, longest, bias, starts, scale, causal,
    )  # fmt: skip


def dense_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    bias: torch.Tensor | None = None,
    causal: bool = True,
) -> Partial:
    """See `kernels.dense_attention`."""
    batch, heads, length, _ = k.shape
    segment = torch.arange(batch * heads, device=q.device)
    lengths = torch.full_like(segment, length)
    return _attend_rows(
        q, k, v, _head_offsets(k, segment), k.stride(2), _head_offsets(v, segment), v.stride(2),
        lengths, length, None if bias is None else bias.contiguous(), segment * length,
        scale, causal,
    )  # fmt: skip


def packed_attention(q: torch.Tensor, packed: PackedKV, *, scale: float) -> Partial:
    """See `kernels.packed_attention`."""
    longest = int(packed.lengths.max())
    queries, rows = _queries(q, len(packed.lengths))
    splits, size = _splits(len(packed.lengths), longest, packed.group)
    partial = _partials(q, len(packed.lengths), rows, splits, packed.value_width)
    cuda_loops.attend_packed[(len(packed.lengths), splits)](
        queries, packed.k_codes, packed.k_scale, packed.k_min,
        packed.v_codes, packed.v_scale, packed.v_min,
        _addresses(packed.starts, q), _addresses(packed.lengths, q), *partial,
        scale, rows, size,
        WIDTH=packed.width, VALUE_WIDTH=packed.value_width,
        ROWS=_padded(rows), GROUP=packed.group, VALUE_GROUP=packed.value_group,
        BITS_K=packed.bits_k, BITS_V=packed.bits_v,
        TILE=min(_padded(packed.group), TILE),
        PLANE_K=_padded(packed.k_codes.shape[1]), PLANE_V=_padded(packed.v_codes.shape[1]),
    )  # fmt: skip
    return _merged(q, partial, rows, splits, packed.value_width)


def _attend_rows(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_offsets: torch.Tensor,
    k_stride: int,
    v_offsets: torch.Tensor,
    v_stride: int,
    lengths: torch.Tensor,
    longest: int,
    bias: torch.Tensor | None,
    bias_offsets: torch.Tensor,
    scale: float,
    causal: bool,
) -> Partial:
    segments, value_width = len(lengths), v.shape[-1]
    queries, rows = _queries(q, segments)
    splits, size = _splits(segments, longest, TILE)
    partial = _partials(q, segments, rows, splits, value_width)
    cuda_loops.attend_rows[(segments, splits)](
        queries, k, v, k_offsets, k_stride, v_offsets, v_stride, lengths,
        lengths if bias is None else bias, bias_offsets, *partial,
        scale, rows, size, q.shape[2],
        WIDTH=k.shape[-1], VALUE_WIDTH=value_width, ROWS=_padded(rows), TILE=TILE,
        D=_padded(k.shape[-1]), DV=_padded(value_width),
        BIASED=bias is not None, CAUSAL=causal,
    )  # fmt: skip
    return _merged(q, partial, rows, splits, value_width)


def _splits(segments: int, longest: int, granule: int) -> tuple[int, int]:
    """How many programs share a segment, and how many tokens each takes."""
    wanted = max(1, PROGRAMS // segments)
    size = max(-(-longest // wanted), SHORTEST_SPLIT)
    size = -(-size // granule) * granule
    return max(1, -(-longest // size)), size


def _queries(q: torch.Tensor, segments: int) -> tuple[torch.Tensor, int]:
    """Queries (B*K, G*Q, D), and G*Q: row g * Q + i is query i of head g of its group."""
    queries = q.reshape(segments, -1, q.shape[-1]).contiguous()
    return queries, queries.shape[1]


def _partials(
    q: torch.Tensor, segments: int, rows: int, splits: int, value_width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for normalized outputs (segments, splits, rows, Dv) and their log-sum-exps."""
    shape = (segments, splits, rows)
    out = torch.empty(*shape, value_width, dtype=torch.float32, device=q.device)
    return out, torch.empty(shape, dtype=torch.float32, device=q.device)


def _merged(
    q: torch.Tensor,
    partial: tuple[torch.Tensor, torch.Tensor],
    rows: int,
    splits: int,
    value_width: int,
) -> Partial:
    out, lse = partial
    shape = q.shape[:3]
    if splits > 1:
        segments = len(out)
        parts = partial
        out = torch.empty(segments, rows, value_width, dtype=torch.float32, device=q.device)
        lse = torch.empty(segments, rows, dtype=torch.float32, device=q.device)
        cuda_loops.reduce_splits[(segments, rows)](
            *parts, out, lse, rows, splits,
            VALUE_WIDTH=value_width, DV=_power_of_two(value_width), SPLITS=_power_of_two(splits),
        )  # fmt: skip
    return out.reshape(*shape, value_width).to(q.dtype), lse.reshape(shape)


def _addresses(x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return x.to(q.device, torch.int64, non_blocking=True)


def _head_offsets(x: torch.Tensor, segment: torch.Tensor) -> torch.Tensor:
    """Where the first token of every segment of x (B, K, T, D) lies, in elements from the first."""
    heads = x.shape[1]
    return segment // heads * x.stride(0) + segment % heads * x.stride(1)


def _padded(n: int) -> int:
    """The next power of two; at least 16, the least that a tensor core multiplies."""
    return max(16, _power_of_two(n))


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()
