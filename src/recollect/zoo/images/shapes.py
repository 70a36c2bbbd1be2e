"""Drawn shapes: the data that the image models of the zoo learn.

A shape of a random colour, place and size on a dark ground with a mild gradient; its edges are
soft, so that small errors of a sample show as small differences.
"""

from __future__ import annotations

import math

import torch

CLASSES = ("disc", "square", "diamond", "bar")
SIZE = 16
"""Pixels along an edge."""


def draw(labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures of the classes `labels` (B,) int64: (B, 3, 16, 16) float32 in [-1, 1]."""
    count = len(labels)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    x, y, radius = uniform(4, 12), uniform(4, 12), uniform(2.5, 5)
    chosen = distances(x, y, radius)[torch.arange(count), labels]  # (B, 16, 16), negative inside
    cover = torch.sigmoid(-2 * chosen)[:, None]
    axis = torch.arange(SIZE, dtype=torch.float32)
    slope = (axis.view(1, 1, 1, -1) + axis.view(1, 1, -1, 1)) / (2 * SIZE)
    ground = uniform(-1, -0.7, 3, 1, 1) + uniform(0, 0.3, 1, 1, 1) * slope
    colour = uniform(-0.2, 1, 3, 1, 1)
    return (ground * (1 - cover) + colour * cover).clamp(-1, 1)


def distances(x: torch.Tensor, y: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Distance of every pixel to the edge of each class of shape, negative inside.

    Args:
        x, y: centres (B,) in pixels.
        radius: sizes (B,) in pixels.

    Returns:
        (B, 4, 16, 16), by class.
    """
    axis = torch.arange(SIZE, dtype=torch.float32)
    x = axis.view(1, 1, -1) - x.view(-1, 1, 1)
    y = axis.view(1, -1, 1) - y.view(-1, 1, 1)
    radius = radius.view(-1, 1, 1)
    return torch.stack(
        [
            (x * x + y * y).sqrt() - radius,
            torch.maximum(x.abs(), y.abs()) - 0.9 * radius,
            x.abs() + y.abs() - 1.2 * radius,
            torch.maximum(x.abs() - 0.35 * radius, y.abs() - 1.5 * radius),
        ],
        1,
    )


def to_latent(pictures: torch.Tensor, channels: int = 48) -> torch.Tensor:
    """Pictures (B, 3, 16, 16) as latents: patches become channels.

    Of 48 channels (B, 48, 4, 4) a patch has 4 x 4 pixels, of 12 channels (B, 12, 8, 8) 2 x 2.
    """
    return torch.nn.functional.pixel_unshuffle(pictures, math.isqrt(channels // 3))


def to_pictures(latents: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_latent`."""
    return torch.nn.functional.pixel_shuffle(latents, math.isqrt(latents.shape[1] // 3))
