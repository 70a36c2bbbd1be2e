"""Attention kernels for CPUs: numba loops, shared out over threads by runs of tokens.

Threads are plain Python threads around loops that release the interpreter lock, as many as
``torch.get_num_threads()``: numba's own threads cannot be used from two threads at once, and would
compete with torch's while idle.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from recollect.core.codecs.affine import PackedKV
from recollect.core.kernels import cpu_loops
from recollect.core.kernels.lanes import LANES

Partial = tuple[torch.Tensor, torch.Tensor]

KINDS = {
    torch.float32: cpu_loops.FLOAT32,
    torch.bfloat16: cpu_loops.BFLOAT16,
    torch.float16: cpu_loops.FLOAT16,
}
NO_FLOATS, NO_HALVES = np.empty(0, np.float32), np.empty(0, np.uint16)

UNITS_PER_THREAD = 4  # so that a thread that was held up does not hold up the others
SHORTEST_UNIT = 256  # tokens
ALONE = 1 << 19  # elements of the cache below which waking another thread costs more than it saves


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
    """See `kernels.ragged_attention`."""
    first = _integers(starts)
    return _attend_rows(
        q, k, v, first * k.stride(0), k.stride(0), first * v.stride(0), v.stride(0),
        _integers(lengths), bias, first, scale, causal,
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
    segment = np.arange(batch * heads)
    return _attend_rows(
        q, k, v, _head_offsets(k), k.stride(2), _head_offsets(v), v.stride(2),
        np.full(batch * heads, length), bias, segment * length, scale, causal,
    )  # fmt: skip


def packed_attention(q: torch.Tensor, packed: PackedKV, *, scale: float) -> Partial:
    """See `kernels.packed_attention`."""
    arguments = (
        _queries(q, len(packed.lengths), scale),
        *(_numpy(getattr(packed, name)) for name in ("k_codes", "k_scale", "k_min")),
        *(_numpy(getattr(packed, name)) for name in ("v_codes", "v_scale", "v_min")),
        _integers(packed.starts),
        packed.group,
        packed.value_group,
        packed.bits_k,
        packed.bits_v,
    )
    units = _units(_integers(packed.lengths), packed.group)
    elements = int(packed.lengths.sum()) * (packed.width + packed.value_width)
    return _run(cpu_loops.attend_packed, arguments, units, q, packed.value_width, elements)


def _attend_rows(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_offsets: np.ndarray,
    k_stride: int,
    v_offsets: np.ndarray,
    v_stride: int,
    lengths: np.ndarray,
    bias: torch.Tensor | None,
    bias_offsets: np.ndarray,
    scale: float,
    causal: bool,
) -> Partial:
    flat = _flat(k), _flat(v)
    halves = k.dtype != torch.float32
    width, value_width = k.shape[-1], v.shape[-1]
    arguments = (
        _queries(q, len(lengths), scale),
        (NO_FLOATS, NO_FLOATS) if halves else flat,
        flat if halves else (NO_HALVES, NO_HALVES),
        KINDS[k.dtype],
        k_offsets,
        k_stride,
        v_offsets,
        v_stride,
        value_width,
        width,
        lengths,
        NO_FLOATS if bias is None else bias.detach().reshape(-1).float().numpy(),
        bias_offsets,
        q.shape[2] if causal and q.shape[2] > 1 else 0,
    )
    elements = int(lengths.sum()) * (width + value_width)
    return _run(cpu_loops.attend_rows, arguments, _units(lengths, 1), q, value_width, elements)


def _run(
    loop: Callable[..., None],
    arguments: tuple[object, ...],
    units: np.ndarray,
    q: torch.Tensor,
    value_width: int,
    elements: int,
) -> Partial:
    """Run a loop over all units, on one thread or several, and merge what they return."""
    queries = arguments[0]
    assert isinstance(queries, np.ndarray)
    segments, rows, _ = queries.shape
    out = np.empty((len(units), rows, _padded(value_width)), np.float32)
    top, mass = np.empty((2, len(units), rows), np.float32)
    threads = 1 if elements < ALONE else min(torch.get_num_threads(), len(units))
    if threads <= 1:
        loop(*arguments, units, 0, len(units), out, top, mass)
    else:
        waiting = deque(range(len(units)))

        def work() -> None:
            while True:
                try:
                    u = waiting.popleft()
                except IndexError:
                    return
                loop(*arguments, units, u, u + 1, out, top, mass)

        helpers = [_pool().submit(work) for _ in range(threads - 1)]
        work()
        for helper in helpers:
            helper.result()
    merged = np.empty((segments, rows, out.shape[2]), np.float32)
    lse = np.empty((segments, rows), np.float32)
    cpu_loops.reduce_units(units, out, top, mass, merged, lse)
    shape = q.shape[:3]
    return (
        torch.from_numpy(merged)[..., :value_width].to(q.dtype).reshape(*shape, value_width),
        torch.from_numpy(lse).view(shape),
    )


def _units(lengths: np.ndarray, granule: int) -> np.ndarray:
    """Runs of tokens of about equal length (U, 3): segment, begin, end; segments in order."""
    share = int(lengths.sum()) // (UNITS_PER_THREAD * torch.get_num_threads())
    size = -(-max(share, SHORTEST_UNIT) // granule) * granule
    parts = -(-lengths // size)
    segment = np.repeat(np.arange(len(lengths)), parts)
    begin = (np.arange(len(segment)) - np.repeat(np.cumsum(parts) - parts, parts)) * size
    return np.stack((segment, begin, np.minimum(begin + size, lengths[segment])), axis=1)


def _queries(q: torch.Tensor, segments: int, scale: float) -> np.ndarray:
    """Scaled float32 queries (B*K, G*Q, D): row g * Q + i is query i of head g of its group.

    Widths are rounded up to whole vectors with zeros.
    """
    width = q.shape[-1]
    rows = q.detach().reshape(segments, -1, width).float() * scale
    return torch.nn.functional.pad(rows, (0, _padded(width) - width)).numpy()


def _padded(width: int) -> int:
    return -(-width // LANES) * LANES


def _flat(x: torch.Tensor) -> np.ndarray:
    """All memory of a strided tensor from its first element on, without copying."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return _numpy(x.as_strided((last + 1 if x.numel() else 0,), (1,)))


def _numpy(x: torch.Tensor) -> np.ndarray:
    """An array that shares memory; 16-bit floats as uint16, which numba can read."""
    x = x.detach()
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.view(torch.int16)
        return x.numpy().view(np.uint16)
    return x.numpy()


def _integers(x: torch.Tensor) -> np.ndarray:
    return x.cpu().to(torch.int64).numpy()


def _head_offsets(x: torch.Tensor) -> np.ndarray:
    """Where the first token of every segment of x (B, K, T, D) lies, in elements from the first."""
    batch, heads = np.indices(x.shape[:2])
    return (batch * x.stride(0) + heads * x.stride(1)).reshape(-1)


_threads: ThreadPoolExecutor | None = None


def _pool() -> ThreadPoolExecutor:
    global _threads
    if _threads is None:
        _threads = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="recollect-attention")
    return _threads


def _forget_pool() -> None:
    global _threads
    _threads = None  # threads do not survive a fork


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
