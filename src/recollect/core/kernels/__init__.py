"""Attention over cached tokens as they are stored: dense, of different lengths per head, encoded.

Every function returns ``(out, lse)``: the attention output (B, H, Q, Dv) in the query's dtype and
the log-sum-exp of the logits (B, H, Q) in float32, which is all that is needed to merge attention
over one part of the tokens with attention over another (`merge_partials`). Each exists three times
with one signature: `reference` (torch), `cpu` (numba) and `cuda` (Triton).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Sequence
from types import ModuleType

import torch

from recollect.core.codecs.base import Packed
from recollect.errors import RecipeError

Partial = tuple[torch.Tensor, torch.Tensor]

IMPLEMENTATIONS = {"reference": "reference", "numba": "cpu", "triton": "cuda"}
NUMBA_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NUMBA_ROWS = 128  # query rows per KV head above which torch's matrix products win

# Where a numba kernel beats torch's own on a dense cache of some thousands of tokens (measured with
# heads of 64 and 128): a lone float32 row shares its keys with nobody, and torch is as fast.
FAST_ROWS = {
    torch.float32: range(2, 65),
    torch.bfloat16: range(1, 65),
    torch.float16: range(1, 65),
}


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
    implementation: str | None = None,
) -> Partial:
    """Attention over heads that hold different numbers of tokens.

    Args:
        q: (B, H, Q, D).
        k, v: rows (N, D) and (N, Dv); segment s = b * K + h owns ``starts[s] : starts[s] +
            lengths[s]``. Other rows are never read.
        starts, lengths: (B*K,) integers.
        scale: factor on the logits.
        bias: (N,) added to the logits of each row, such as the log-count of a merged token.
        causal: the last Q rows of every segment are the queries' own tokens, and query i sees rows
            j < length - Q + 1 + i. Otherwise every query sees every row.
        implementation: "reference", "numba" or "triton" instead of the fastest that applies.

    Returns:
        out (B, H, Q, Dv), lse (B, H, Q); a query that sees nothing gets 0 and -inf.
    """
    module = _choose(implementation, q, len(lengths), k, v)
    return module.ragged_attention(q, k, v, starts, lengths, scale=scale, bias=bias, causal=causal)


def dense_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    bias: torch.Tensor | None = None,
    causal: bool = True,
    implementation: str | None = None,
) -> Partial:
    """Attention of q (B, H, Q, D) over k (B, K, T, D), v (B, K, T, Dv) and bias (B, K, T).

    Strides are free but for the last axis: a view into a growing buffer is read in place. See
    `ragged_attention` for the rest.
    """
    module = _choose(implementation, q, k.shape[0] * k.shape[1], k, v)
    return module.dense_attention(q, k, v, scale=scale, bias=bias, causal=causal)


def packed_attention(
    q: torch.Tensor, packed: Packed, *, scale: float, implementation: str | None = None
) -> Partial:
    """Attention of q (B, H, Q, D) over encoded tokens, all of them in the past of every query."""
    from recollect.core.codecs.affine import PackedKV

    fused = isinstance(packed, PackedKV)
    name = implementation or (None if fused else "reference")
    module = _choose(name, q, len(packed.lengths))
    return module.packed_attention(q, packed, scale=scale)


def merge_partials(partials: Sequence[Partial]) -> Partial:
    """Attention over the union of disjoint parts, from attention over each."""
    return functools.reduce(_merge_two, partials)


def available(device: torch.device | str, dtype: torch.dtype, rows: int = 1) -> str:
    """The implementation used for `rows` = G * Q query rows per KV head."""
    kind = torch.device(device).type
    if kind == "cpu" and dtype in NUMBA_DTYPES and rows <= NUMBA_ROWS:
        return "numba"
    if kind == "cuda" and dtype in NUMBA_DTYPES and _has_triton():
        return "triton"
    return "reference"


def is_fast(
    device: torch.device | str, dtype: torch.dtype, rows: int, *, ragged: bool = False
) -> bool:
    """Whether a kernel of ours beats torch's own for `rows` = G * Q query rows per KV head.

    Heads of different lengths are slower to pad than to read, whatever the number of rows. On GPUs
    torch's kernels for dense caches are good.
    """
    if ragged:
        return True
    return torch.device(device).type == "cpu" and rows in FAST_ROWS.get(dtype, ())


def _merge_two(one: Partial, other: Partial) -> Partial:
    (out_one, lse_one), (out_other, lse_other) = one, other
    weight = torch.sigmoid(lse_other - lse_one).nan_to_num_(0.0)  # NaN where both are empty
    out = torch.lerp(out_one.float(), out_other.float(), weight[..., None])
    return out.to(out_one.dtype), torch.logaddexp(lse_one, lse_other)


def _choose(
    implementation: str | None, q: torch.Tensor, segments: int, *tensors: torch.Tensor
) -> ModuleType:
    if implementation is None:
        rows = q.shape[0] * q.shape[1] * q.shape[2] // segments
        implementation = available(q.device, q.dtype, rows)
        if torch.is_grad_enabled() and any(x.requires_grad for x in (q, *tensors)):
            implementation = "reference"  # the only one that can be differentiated
    if implementation not in IMPLEMENTATIONS:
        raise RecipeError(
            f"implementation is one of {', '.join(IMPLEMENTATIONS)}, not {implementation!r}"
        )
    return importlib.import_module(f"{__name__}.{IMPLEMENTATIONS[implementation]}")


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
