"""Integers for weights and activations: scales, codes, and the layers that multiply them.

Weights are symmetric with a scale per output channel; activations have one scale and zero point
for a whole tensor, told per timestep. Products of codes are added up in float32, which holds the
integers of an 8-bit layer of 500 inputs exactly and larger sums to one part in 16 million.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.nn import functional

from recollect.core.codecs.packing import pack, unpack
from recollect.errors import RecipeError

WEIGHT_BITS = (4, 8)
_CLIPS = torch.linspace(0.5, 1.0, 26)  # shares of a channel's largest weight tried as its range


class Codes(NamedTuple):
    """A weight as integers.

    Attributes:
        codes: int8 (out, …) for 8 bits; for 4 bits uint8 (out, n / 2), two codes a byte.
        scale: (out,) float32.
        shape: of the weight.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    shape: tuple[int, ...]

    def integers(self) -> torch.Tensor:
        """The codes as float32, in the weight's shape."""
        if self.codes.dtype == torch.int8:
            return self.codes.float().view(self.shape)
        rows = unpack(self.codes, 4).float() - 8
        return rows[:, : math.prod(self.shape[1:])].reshape(self.shape)

    def to(self, device: torch.device) -> Codes:
        """The same on another device."""
        return Codes(self.codes.to(device), self.scale.to(device), self.shape)


class Range(NamedTuple):
    """Scale and zero point of an activation: integers are ``round(x / scale) + zero``."""

    scale: float
    zero: int
    levels: int


def encode_weight(weight: torch.Tensor, bits: int) -> Codes:
    """Integers of a weight (out, …), each channel clipped where its squared error is least."""
    if bits not in WEIGHT_BITS:
        raise RecipeError(f"weight_bits is 4 or 8, not {bits}")
    rows = weight.detach().float().flatten(1)
    top = 2 ** (bits - 1) - 1
    largest = rows.abs().amax(1).clamp_min(1e-12)
    best, scale = torch.full_like(largest, torch.inf), largest / top
    for clip in _CLIPS.tolist() if bits < 8 else [1.0]:
        step = clip * largest / top
        codes = (rows / step[:, None]).round().clamp(-top, top)
        error = (codes * step[:, None] - rows).square().sum(1)
        scale = torch.where(error < best, step, scale)
        best = torch.minimum(best, error)
    codes = (rows / scale[:, None]).round().clamp(-top, top)
    if bits == 8:
        return Codes(codes.to(torch.int8), scale, tuple(weight.shape))
    unsigned = (codes + 8).to(torch.uint8)
    if unsigned.shape[1] % 2:
        unsigned = functional.pad(unsigned, (0, 1))
    return Codes(pack(unsigned, 4), scale, tuple(weight.shape))


def activation_range(low: float, high: float, bits: int) -> Range:
    """The range that holds `low` to `high`; 0 is always one of its values, for padding."""
    low, high = min(low, 0.0), max(high, 0.0)
    levels = 2**bits - 1
    scale = max(high - low, 1e-12) / levels
    return Range(scale, round(-low / scale), levels)


def encode_activation(x: torch.Tensor, to: Range) -> torch.Tensor:
    """Integers less their zero point, as float32: a padded 0 stays 0."""
    codes = torch.div(x.float(), to.scale).round_().add_(to.zero).clamp_(0, to.levels)
    return codes.sub_(to.zero)


def multiply(layer: torch.nn.Module, integers: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What a linear or convolutional layer makes of integers, with this weight and no bias."""
    if isinstance(layer, torch.nn.Conv2d):
        return functional.conv2d(
            integers, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups
        )
    return functional.linear(integers, weight)


def per_output(layer: torch.nn.Module, vector: torch.Tensor) -> torch.Tensor:
    """A number per output channel, shaped for the layer's output."""
    return vector.view(-1, 1, 1) if isinstance(layer, torch.nn.Conv2d) else vector
