"""Attention kernels in torch: any device and float type, differentiable; the others must agree.

Tokens are read a tile at a time with a running softmax, so nothing of the cache's length times its
width is ever made, and heads are not expanded.
"""

from __future__ import annotations

import torch

from recollect.core.codecs.base import Packed

TILE = 1024  # tokens at once, at most
TILE_ELEMENTS = 1 << 22  # of keys or values at once, over all segments

Partial = tuple[torch.Tensor, torch.Tensor]


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
    starts, lengths = starts.to(q.device), lengths.to(q.device)
    segments, longest = len(lengths), int(lengths.max()) if len(k) else 0
    softmax = _RunningSoftmax(q, segments, v.shape[-1], scale)
    tile = _tile(segments, max(k.shape[-1], v.shape[-1]))
    for begin in range(0, longest, tile):
        token = torch.arange(begin, min(begin + tile, longest), device=q.device)
        valid = token < lengths[:, None]
        rows = torch.where(valid, starts[:, None] + token, 0)  # slack is not even read
        limit = _visible(lengths, q.shape[2]) if causal else lengths[:, None]
        softmax.add(
            k[rows],
            v[rows].masked_fill(~valid[..., None], 0.0),
            token < limit[..., None],
            None if bias is None else bias[rows],
        )
    return softmax.result()


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
    segments, length = k.shape[0] * k.shape[1], k.shape[2]
    softmax = _RunningSoftmax(q, segments, v.shape[-1], scale)
    tile = _tile(segments, max(k.shape[-1], v.shape[-1]))
    for begin in range(0, length, tile):
        end = min(begin + tile, length)
        visible = None
        if causal and end > length - q.shape[2] + 1:
            limit = _visible(torch.tensor([length], device=q.device), q.shape[2])
            visible = torch.arange(begin, end, device=q.device) < limit[..., None]
        softmax.add(
            k[:, :, begin:end].reshape(segments, end - begin, -1),
            v[:, :, begin:end].reshape(segments, end - begin, -1),
            visible,
            None if bias is None else bias[:, :, begin:end].reshape(segments, -1),
        )
    return softmax.result()


def packed_attention(q: torch.Tensor, packed: Packed, *, scale: float) -> Partial:
    """See `kernels.packed_attention`; decodes a tile at a time, whatever the codec."""
    segments, longest = len(packed.lengths), int(packed.lengths.max())
    probe = packed.decode_tile(0, 0)
    softmax = _RunningSoftmax(q, segments, probe.v.shape[-1], scale)
    tile = _tile(segments, max(probe.k.shape[-1], probe.v.shape[-1]))
    for begin in range(0, longest, tile):
        k, v, valid = packed.decode_tile(begin, min(begin + tile, longest))
        softmax.add(k, v, valid[:, None])
    return softmax.result()


class _RunningSoftmax:
    """Attention of q (B, H, Q, D) over tiles of tokens that come one after the other.

    All G * Q query rows of a KV head are one matrix (B*K, G*Q, D), row g * Q + i being query i of
    head g, so that a tile is read once for all of them.
    """

    def __init__(self, q: torch.Tensor, segments: int, value_width: int, scale: float) -> None:
        self.shape, self.dtype, self.new = (*q.shape[:3], value_width), q.dtype, q.shape[2]
        self.work = torch.float64 if q.dtype == torch.float64 else torch.float32
        rows = q.shape[0] * q.shape[1] * q.shape[2] // segments
        self.q = q.reshape(segments, rows, q.shape[-1]).to(self.work) * scale
        self.out = self.q.new_zeros(segments, rows, value_width)
        self.top = self.q.new_full((segments, rows, 1), float("-inf"))
        self.total = self.q.new_zeros(segments, rows, 1)

    def add(
        self,
        k: torch.Tensor,
        v: torch.Tensor,
        visible: torch.Tensor | None,
        bias: torch.Tensor | None = None,
    ) -> None:
        """Tile k (B*K, n, D), v (B*K, n, Dv), visible (B*K or 1, Q or 1, n), bias (B*K, n)."""
        logits = self.q @ k.to(self.work).transpose(-1, -2)
        if bias is not None:
            logits = logits + bias.to(self.work)[:, None]
        if visible is not None:
            heads = logits.unflatten(1, (-1, self.new))
            logits = heads.masked_fill(~visible[:, None], float("-inf")).flatten(1, 2)
        top = torch.maximum(self.top, logits.amax(-1, keepdim=True))
        anchor = top.masked_fill(top == float("-inf"), 0.0)  # nothing visible yet: no NaN
        kept, weights = (self.top - anchor).exp(), (logits - anchor).exp()
        self.total = self.total * kept + weights.sum(-1, keepdim=True)
        self.out = self.out * kept + weights @ v.to(self.work)
        self.top = top

    def result(self) -> Partial:
        out = self.out / self.total.masked_fill(self.total == 0, 1.0)
        lse = self.top + self.total.log()
        return (
            out.reshape(self.shape).to(self.dtype),
            lse.reshape(self.shape[:3]).float(),
        )


def _visible(lengths: torch.Tensor, new: int) -> torch.Tensor:
    """How many tokens each of the `new` newest queries sees, (segments, Q)."""
    return lengths[:, None] - new + 1 + torch.arange(new, device=lengths.device)


def _tile(segments: int, width: int) -> int:
    return max(16, min(TILE, TILE_ELEMENTS // (segments * width)))
