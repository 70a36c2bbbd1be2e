"""Integer codes in bytes: planar along the last axis for our kernels, int32 words for KIVI's.

Planar means that bit plane i of a packed row holds a contiguous slice of channels: with 4 bits,
byte j holds channels j (low) and j + D/2 (high); with 2 bits, channels j, j + D/4, j + D/2 and
j + 3D/4. Unpacking a plane therefore yields neighbouring channels, with nothing to interleave.
"""

from __future__ import annotations

import torch

from recollect.errors import RecipeError

BITS = (1, 2, 4, 8)


def check_width(width: int, bits: int) -> None:
    """Raise RecipeError unless a row of `width` channels packs into whole bytes."""
    if bits not in BITS:
        raise RecipeError(f"bits is one of {', '.join(map(str, BITS))}, not {bits}")
    planes = 8 // bits
    if width % planes:
        raise RecipeError(
            f"a head width of {width} does not split into the {planes} planes of {bits}-bit codes; "
            "use 8 bits"
        )


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes (…, D) uint8 below 2**bits, as planar bytes (…, D * bits / 8)."""
    planes = codes.chunk(8 // bits, dim=-1)
    packed = planes[0].clone()
    for i, plane in enumerate(planes[1:], start=1):
        packed |= plane << (i * bits)
    return packed


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of `pack`."""
    mask = (1 << bits) - 1
    return torch.cat([(packed >> shift) & mask for shift in range(0, 8, bits)], dim=-1)


def pack_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes (…, n) as KIVI's int32 words (…, n * bits / 32): neighbours together, first lowest."""
    per_word = 32 // bits
    lanes = codes.unflatten(-1, (-1, per_word)).to(torch.int64)
    shifts = torch.arange(per_word, device=codes.device) * bits
    return (lanes << shifts).sum(-1).to(torch.int32)


def unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of `pack_words`."""
    shifts = torch.arange(0, 32, bits, device=words.device, dtype=torch.int32)
    lanes = (words[..., None] >> shifts) & ((1 << bits) - 1)
    return lanes.flatten(-2).to(torch.uint8)
