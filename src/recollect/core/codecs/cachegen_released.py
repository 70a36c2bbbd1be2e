"""What the released CacheGen code does: direct quantization and tables shipped with every chunk.

For parity and for comparison; frames are made by `cachegen`. There are no anchors and no deltas:
each token's channels are scaled by their largest absolute value, K and V of a layer apart.
"""

from __future__ import annotations

import torch

STREAM_LENGTH_BITS = 32
CDF_BITS = 16


def bins_of(layer: int) -> tuple[int, int]:
    """Bins of K and of V at the released script's default level."""
    return (32 if layer < 10 else 16), (32 if layer < 2 else 16)


def quantize(x: torch.Tensor, bins: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Symbols (n, C) uint8 from 0 to bins - 2, and each token's largest magnitude (n, 1)."""
    q = bins // 2 - 1
    largest = x.abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest, 1)
    return torch.round(x * (q / scale) + q).to(torch.uint8), largest


def dequantize(symbols: torch.Tensor, largest: torch.Tensor, bins: int) -> torch.Tensor:
    """Values (n, C) float32."""
    q = bins // 2 - 1
    return (symbols.float() - q) / q * largest


def cumulative(symbols: torch.Tensor, bins: int) -> torch.Tensor:
    """The table of each channel (C, bins + 1) int64 on 16 bits, from the chunk's symbols (n, C).

    It is strictly increasing, so that symbols never seen can be coded.
    """
    n = len(symbols)
    counts = torch.nn.functional.one_hot(symbols.long(), bins).sum(0)
    before = torch.nn.functional.pad(counts.cumsum(-1), (1, 0))  # (C, bins + 1)
    return (2**CDF_BITS - 1 - bins) * before // n + torch.arange(bins + 1)


def payload_bits(symbols: torch.Tensor, bins: int) -> float:
    """Bits a perfect coder takes for symbols (n, C) under their own tables."""
    table = cumulative(symbols, bins).double()
    bits = torch.log2(table[:, -1:] / table.diff(dim=-1))  # (C, bins)
    return float(bits.gather(1, symbols.long().T).sum())


def chunk_bits(symbols: torch.Tensor, bins: int) -> float:
    """Bits of a chunk on the wire: payload, a table and a stream length per channel, one 16-bit
    magnitude per token. A lower bound on what the released coder writes."""
    n, channels = symbols.shape
    side = channels * (CDF_BITS * (bins + 1) + STREAM_LENGTH_BITS) + 16 * n
    return payload_bits(symbols, bins) + side
