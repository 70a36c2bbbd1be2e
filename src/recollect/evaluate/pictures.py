"""Distances between pictures: to the uncached ones of the same noise, one number each."""

from __future__ import annotations

import torch


def psnr(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of pictures (B, C, H, W) in [-1, 1]: (B,) decibels.

    Infinite where two pictures are equal. Averages over pictures are taken in decibels.
    """
    error = (one.clamp(-1, 1) - other.clamp(-1, 1)).square().mean((1, 2, 3))
    return 10 * torch.log10(4 / error)


def ssim(one: torch.Tensor, other: torch.Tensor, window: int = 11) -> torch.Tensor:
    """Structural similarity of pictures (B, C, H, W) in [-1, 1]: (B,), 1 where they are equal.

    Gaussian window of sigma 1.5 (Wang et al. 2004), at most 7 pixels wide for pictures of 16.
    """
    one, other = one.clamp(-1, 1), other.clamp(-1, 1)
    channels, size = one.shape[1], min(window, 7 if one.shape[-1] <= 16 else window)
    axis = torch.arange(size, dtype=one.dtype) - (size - 1) / 2
    line = torch.exp(-axis.square() / (2 * 1.5**2))
    line = line / line.sum()
    kernel = (line[:, None] * line).expand(channels, 1, size, size)

    def blur(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(x, kernel, groups=channels)

    a, b = blur(one), blur(other)
    aa, bb, ab = blur(one * one) - a * a, blur(other * other) - b * b, blur(one * other) - a * b
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    similarity = ((2 * a * b + c1) * (2 * ab + c2)) / ((a * a + b * b + c1) * (aa + bb + c2))
    return similarity.mean((1, 2, 3))
