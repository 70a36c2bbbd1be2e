"""CacheGen's codec: quantized, predicted and entropy-coded keys or values (2310.07240).

Every channel is quantized with one step per layer, coarser in later layers and at higher levels.
A channel is coded in one of two ways, whichever is predicted to be smaller: directly, as distances
from its mean; or in groups of ten tokens, the first of which is an 8-bit anchor while the others
are distances from the anchor as decoded, which pays where neighbouring tokens resemble each other
(slowly rotating key channels) and costs where they do not. Symbols are entropy-coded under the
fixed family of `distributions`, chosen per channel by one byte; what a table cannot say is escaped
and stored whole, so that quantized values always come back as they were.

Where we differ from the paper: prediction is chosen per channel and chunk instead of always; the
step is measured on the chunk, as the geometric mean of its channels' spreads, so that a level costs
about the same bits in any model and no profile has to travel with a model (channels far wider than
that have a step some power of two larger); the released code has neither anchors nor deltas (see
`cachegen_released`).
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import numpy as np
import torch

from recollect.core.codecs import cachegen_loops, entropy
from recollect.core.codecs.distributions import (
    FAMILY,
    SHAPES,
    WIDTHS,
    codable,
    family,
    mean_sizes,
    prices,
)
from recollect.errors import StoreError

LEVELS = (0.5, 1.0, 1.5, 2.0)  # factors on the bins: level 0 is the best, 3 the smallest
BINS = (0.5, 1.0, 1.5)  # steps of the first, middle and last third of the layers, in spreads
GROUP = 10  # tokens to an anchor
ANCHOR_FINENESS = 2  # anchors are quantized this much finer than what is predicted from them

VERSION = 1
PREFIX = struct.Struct(
    "<BBBBIIIf"
)  # version, family, group, flags, tokens, channels, escapes, step
UNEVEN = 1  # flag: channels have exponents on their step
WIDE = 8.0  # spreads of a channel, in typical ones, above which its step grows
DELTA = 128  # flag on a channel's table: coded as anchors and deltas
MAD = 1.2533141  # standard deviation of a Gaussian in mean absolute deviations
SMALLEST, LARGEST_STEP = 2.0**-100, 2.0**100
LARGEST = 2.0**30  # steps from the mean
MOST = 1 << 28  # symbols of one stream
MOST_PER_BYTE = 1 << 15  # symbols: no table gives more of them to a byte


class Spreads(NamedTuple):
    """What is measured of each channel (C,) before a mode is chosen; float32.

    Attributes:
        mean: as stored, rounded to bfloat16.
        spread: mean distance from the mean, as a standard deviation.
        delta: mean distance of what is no anchor from its anchor, as a standard deviation.
        reach: largest distance from the mean as stored, or a little more.
    """

    mean: torch.Tensor
    spread: torch.Tensor
    delta: torch.Tensor
    reach: torch.Tensor


def bin_width(level: int, layer: int, layers: int) -> float:
    """The quantization step of a layer in spreads: thirds of the layers, times the level's factor.

    Raises:
        StoreError: there is no such level.
    """
    if not 0 <= level < len(LEVELS):
        raise StoreError(f"cachegen has levels 0 to {len(LEVELS) - 1}, not {level}")
    return BINS[min(2, 3 * layer // max(1, layers))] * LEVELS[level]


def encode(x: torch.Tensor, width: float, *, group: int = GROUP, mode: str = "auto") -> bytes:
    """Encode keys or values of one layer.

    Args:
        x: (K, n, D), any float dtype, finite, on the CPU.
        width: quantization step in spreads; the smaller, the better and the larger.
        group: tokens to an anchor, 2 to 255.
        mode: "auto" chooses for each channel; "direct" and "delta" are for measurements.

    Raises:
        StoreError: values too far apart for 32-bit steps, or too many for one stream.
    """
    tokens = x.shape[1]
    if x.numel() > MOST:
        raise StoreError(f"{x.numel()} elements are too many for one stream: cut chunks")
    rows = x.float().transpose(1, 2).flatten(0, 1).contiguous()
    measured = measure(rows, group)
    step, exponents = _steps(measured, width)
    steps = torch.from_numpy(np.ldexp(np.float32(step), exponents.numpy().astype(np.int32)))
    if bool(((measured.reach > LARGEST * steps) | (steps > LARGEST_STEP)).any()):
        raise StoreError("these values are too far apart to be quantized; store them dense")
    delta = _choose_modes(measured, steps, tokens, group, mode)
    lengths = _lengths(delta, tokens, group)
    which = np.empty(len(lengths), np.int64)
    symbols = np.empty(rows.numel(), np.uint8)
    escapes = np.empty(rows.numel(), np.int32)
    tables = family()
    count = cachegen_loops.encode(
        rows.numpy(), measured.mean.numpy(), delta, group, steps.numpy(), ANCHOR_FINENESS,
        mean_sizes(), prices(), codable(), which, symbols, escapes,
    )  # fmt: skip
    stream = entropy.encode(symbols, tables, lengths, which)
    last = np.cumsum(1 + delta.astype(np.int64)) - 1  # row of each channel that is not its anchors'
    uneven = bool(exponents.any())
    parts = (
        PREFIX.pack(VERSION, FAMILY, group, uneven * UNEVEN, tokens, len(rows), count, step),
        (measured.mean.numpy().view(np.uint32) >> 16).astype("<u2").tobytes(),
        exponents.numpy().astype(np.uint8).tobytes() if uneven else b"",
        (which[last] + DELTA * delta).astype(np.uint8).tobytes(),
        which[last[delta] - 1].astype(np.uint8).tobytes(),
        escapes[:count].astype("<i4").tobytes(),
        stream,
    )
    return b"".join(parts)


def decode(data: np.ndarray, heads: int, tokens: int, width: int) -> torch.Tensor:
    """The inverse of `encode`: (heads, tokens, width) float32 from bytes (N,) uint8.

    Raises:
        StoreError: these bytes are no such stream, or one of another shape.
    """
    raw = np.ascontiguousarray(data, np.uint8).data
    if len(raw) < PREFIX.size:
        raise StoreError("a CacheGen stream is truncated")
    version, known, group, uneven, n, channels, count, step = PREFIX.unpack(raw[: PREFIX.size])
    if version != VERSION or known != FAMILY or uneven not in (0, UNEVEN):
        raise StoreError(f"a CacheGen stream of version {version}.{known} is newer than this code")
    if n != tokens or channels != heads * width or group < 2 or not 0 < step < math.inf:
        raise StoreError("a CacheGen stream does not have the shape it should have")
    rest = _Reader(raw, PREFIX.size)
    mean = (rest.take("<u2", channels).astype(np.uint32) << 16).view(np.float32)
    exponents = rest.take("u1", channels) if uneven else np.zeros(channels, np.uint8)
    steps = np.ldexp(np.float64(step), exponents.astype(np.int32))
    flags = rest.take("u1", channels)
    delta = flags >= DELTA
    anchors = rest.take("u1", int(delta.sum()))
    escapes = rest.take("<i4", count)
    stream = rest.remaining()
    total = channels * tokens
    if (
        total > MOST
        or total > MOST_PER_BYTE * len(stream)
        or not np.isfinite(mean).all()
        or (steps > LARGEST_STEP).any()
    ):
        raise StoreError("a CacheGen stream claims what it cannot hold")
    which = np.empty(channels + len(anchors), np.int64)
    last = np.cumsum(1 + delta.astype(np.int64)) - 1
    which[last] = flags & (DELTA - 1)
    which[last[delta] - 1] = anchors
    if bool((which >= SHAPES * WIDTHS).any()):
        raise StoreError("a CacheGen stream names tables that do not exist")
    symbols = entropy.decode(stream, family(), _lengths(delta, tokens, group), which)
    out = torch.empty(channels, tokens)
    used = cachegen_loops.dequantize(
        symbols,
        escapes.astype(np.int32),
        mean,
        delta,
        group,
        steps.astype(np.float32),
        ANCHOR_FINENESS,
        out.numpy(),
    )
    if used != count:
        raise StoreError("a CacheGen stream is corrupt: escapes are missing or left over")
    return out.view(heads, width, tokens).transpose(1, 2).contiguous()


def measure(rows: torch.Tensor, group: int) -> Spreads:
    """Statistics of rows (C, n) float32, one row per channel."""
    statistics = np.zeros((4, len(rows)), np.float32)
    if rows.numel():
        cachegen_loops.measure(rows.numpy(), group, statistics)
    mean, spread, delta, reach = torch.from_numpy(statistics)
    constant = spread < 1e-6 * mean.abs()  # but for rounding
    stored = mean.bfloat16().float()
    reach += (mean - stored).abs_()
    return Spreads(stored, spread.masked_fill(constant, 0.0) * MAD, delta * MAD, reach)


def _steps(measured: Spreads, width: float) -> tuple[float, torch.Tensor]:
    """The layer's step, and what power of two each channel's (C,) is larger.

    The step is `width` times the geometric mean of the spreads, which neither a few wide channels
    nor (by a floor of a hundredth of the median) a few dead ones move by much.
    """
    spread = measured.spread
    moving = spread[spread > 0]
    if not len(moving):  # their rounded means are all there is to say
        largest = float(measured.mean.abs().max()) if len(spread) else 0.0
        return max(largest / 64, SMALLEST), torch.zeros_like(spread)
    floor = 0.01 * float(moving.median())
    typical = float(moving.clamp(min=floor).double().log().mean().exp())
    exponents = torch.log2(spread / (WIDE * typical)).ceil_().clamp_(0, 127)
    return max(float(np.float32(typical * width)), SMALLEST), exponents


def _choose_modes(
    measured: Spreads, steps: torch.Tensor, tokens: int, group: int, mode: str
) -> np.ndarray:
    """Which channels (C,) bool are smaller as anchors and deltas."""
    if mode != "auto":
        return np.full(len(measured.mean), mode == "delta")
    anchors = -(-tokens // group)
    direct = tokens * _bits(measured.spread / steps)
    predicted = anchors * _bits(measured.spread * ANCHOR_FINENESS / steps) + 8
    predicted += (tokens - anchors) * _bits(measured.delta / steps)
    return (predicted < direct).numpy()


def _bits(spread: torch.Tensor) -> torch.Tensor:
    """About the entropy of a Gaussian of that spread, rounded to integers."""
    return torch.log2(1 + (2 * math.pi * math.e) * spread**2) / 2


def _lengths(delta: np.ndarray, tokens: int, group: int) -> np.ndarray:
    """Symbols of each row: one row per direct channel; anchors, then deltas for the others."""
    anchors = -(-tokens // group)
    rows = np.full(len(delta) + int(delta.sum()), tokens, np.int64)
    last = np.cumsum(1 + delta.astype(np.int64)) - 1
    rows[last[delta] - 1] = anchors
    rows[last[delta]] = tokens - anchors
    return rows


class _Reader:
    """Arrays one behind the other in untrusted bytes."""

    def __init__(self, raw: memoryview, at: int) -> None:
        self.raw, self.at = raw, at

    def take(self, dtype: str, count: int) -> np.ndarray:
        end = self.at + np.dtype(dtype).itemsize * count
        if end > len(self.raw):
            raise StoreError("a CacheGen stream is truncated")
        found = np.frombuffer(self.raw[self.at : end], dtype)
        self.at = end
        return found

    def remaining(self) -> bytes:
        return bytes(self.raw[self.at :])
