"""Codecs: in what form old tokens are held. Recent ones stay exact in the slab."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recollect.core.codecs.affine import PackedKV
from recollect.errors import RecipeError
from recollect.kv.slab import Slab


@dataclass(frozen=True)
class IntCodec:
    """KIVI: affine integers, keys per channel over `group` tokens, values per token (2402.02750).

    Keys and values leave the exact window together: whenever `recent + group` tokens are exact, the
    oldest group is encoded. (The paper lets the key window run down to zero and slides the value
    window token by token; one boundary for both holds a few more exact tokens and keeps attention a
    single pass.)

    Attributes:
        bits: 2, 4 or 8, for keys and values.
        value_bits: for values, if different.
        group: tokens per key group, and channels per value group.
        recent: newest tokens that stay exact, at least.
    """

    bits: int = 4
    value_bits: int | None = None
    group: int = 32
    recent: int = 128

    def __post_init__(self) -> None:
        for bits in (self.bits, self.value_bits or self.bits):
            if bits not in (2, 4, 8):
                raise RecipeError(f"bits is one of 2, 4, 8, not {bits}")
        if self.group < 1:
            raise RecipeError(f"group must be at least 1, got {self.group}")
        if self.recent < 0:
            raise RecipeError(f"recent must be at least 0, got {self.recent}")

    def encodable(self, lengths: torch.Tensor) -> torch.Tensor:
        """How many of the oldest exact tokens of each segment are to be encoded now."""
        return (lengths - self.recent).clamp_min(0) // self.group * self.group

    def encode(self, slab: Slab, counts: torch.Tensor) -> PackedKV:
        """Encode the oldest `counts` (B*K,) tokens of every segment of a slab."""
        return PackedKV.encode_ragged(
            slab.k,
            slab.v,
            slab.starts,
            counts,
            batch=slab.batch,
            heads=slab.heads,
            bits_k=self.bits,
            bits_v=self.value_bits or self.bits,
            group=self.group,
        )

    def append(self, packed: PackedKV, slab: Slab, count: int) -> None:
        """Encode the oldest `count` tokens of every segment behind what is packed already."""
        rows = (slab.starts[:, None] + torch.arange(count)).to(slab.k.device)
        shape = (slab.batch, slab.heads, count)
        packed.append(slab.k[rows].view(*shape, -1), slab.v[rows].view(*shape, -1))
