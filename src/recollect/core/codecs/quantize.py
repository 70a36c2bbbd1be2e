"""Affine group quantization: codes, and a scale and minimum per group, stored in fp16.

A group is either G consecutive tokens of one channel (for keys, whose outliers sit in channels) or
neighbouring channels of one token (for values). Codes are computed in float32 against the scale and
minimum as stored, so encoding what was decoded changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

FP16_MAX = 65504.0
FP16_HALF_STEP = 2.0**-11  # relative


class Quantized(NamedTuple):
    """codes uint8 shaped as the input; scale and minimum fp16, one per group."""

    codes: torch.Tensor
    scale: torch.Tensor
    minimum: torch.Tensor


def quantize_channels(x: torch.Tensor, bits: int, group: int) -> Quantized:
    """Quantize x (…, n, D) over `group` tokens of a channel; parameters are (…, n / group, D)."""
    codes, scale, minimum = _quantize(x.unflatten(-2, (-1, group)), bits, dim=-2)
    return Quantized(codes.flatten(-3, -2), scale.squeeze(-2), minimum.squeeze(-2))


def quantize_tokens(x: torch.Tensor, bits: int, group: int) -> Quantized:
    """Quantize x (…, D) over `group` channels of each token; parameters are (…, D / group)."""
    codes, scale, minimum = _quantize(x.unflatten(-1, (-1, group)), bits, dim=-1)
    return Quantized(codes.flatten(-2), scale.squeeze(-1), minimum.squeeze(-1))


def dequantize_channels(
    codes: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor, group: int
) -> torch.Tensor:
    """Float32 values of codes (…, n, D) with parameters (…, n / group, D)."""
    x = codes.unflatten(-2, (-1, group)).float()
    return x.mul_(scale.float().unsqueeze(-2)).add_(minimum.float().unsqueeze(-2)).flatten(-3, -2)


def dequantize_tokens(
    codes: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor, group: int
) -> torch.Tensor:
    """Float32 values of codes (…, D) with parameters (…, D / group)."""
    x = codes.unflatten(-1, (-1, group)).float()
    return x.mul_(scale.float().unsqueeze(-1)).add_(minimum.float().unsqueeze(-1)).flatten(-2)


def _quantize(x: torch.Tensor, bits: int, dim: int) -> Quantized:
    """Quantize x over axis `dim`, which the parameters keep with size 1."""
    levels = (1 << bits) - 1
    # Not torch.aminmax, which is ten times slower on CPUs.
    lowest, highest = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    lowest, highest = lowest.float(), highest.float()
    minimum = lowest.clamp(-FP16_MAX, FP16_MAX).half()
    offset = minimum.float()
    scale = ((highest - offset) / levels).clamp(max=FP16_MAX).half()
    # Narrower than the stored minimum can resolve: one value, as if all were equal.
    constant = (highest - offset < offset.abs() * FP16_HALF_STEP) | (scale <= 0)
    scale = scale.masked_fill(constant, 1.0)
    step = scale.float()
    levels_of = torch.sub(x, offset) if x.dtype == torch.float32 else x.float().sub_(offset)
    codes = levels_of.div_(step).round_().clamp_(0, levels)
    # A minimum that fp16 rounded far down would get a code above 0, and the group other parameters
    # when encoded again.
    drifted = ((lowest - offset) > step / 2) | constant
    if bool(drifted.any()):
        codes.masked_fill_((x == lowest) & drifted, 0.0)
        codes.masked_fill_(constant, 0.0)
    return Quantized(codes.to(torch.uint8), scale, minimum)
