"""Moving shapes: the data that the video models of the zoo learn.

A shape of a random colour and size crosses a still ground, sideways or up and down; the caption
names shape and motion (not which way), and the ground is what a cache may hope to keep.
"""

from __future__ import annotations

import torch

from recollect.zoo.images.shapes import CLASSES as SHAPES
from recollect.zoo.images.shapes import SIZE, distances

MOTIONS = ("sideways", "up and down")
FRAMES = 8
_PATCH = 4
_WAYS = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # x, y


def asked(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Random shapes and motions to draw, each (B,) int64."""
    shapes = torch.randint(0, len(SHAPES), (count,), generator=generator)
    return shapes, torch.randint(0, len(MOTIONS), (count,), generator=generator)


def draw(
    shapes: torch.Tensor, motions: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips of `shapes` (B,) moving as `motions` (B,) say, both int64.

    Returns:
        The clips (B, 3, 8, 16, 16) float32 in [-1, 1], and how far the shape covers each pixel
        (B, 8, 16, 16) in [0, 1].
    """
    count = len(shapes)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    moment = torch.arange(FRAMES, dtype=torch.float32) - (FRAMES - 1) / 2
    way = _WAYS[motions] * uniform(0.6, 1.0, 1) * (uniform(-1, 1, 1) < 0).float().mul(2).sub(1)
    place = uniform(6.5, 9.5, 2)[:, None] + moment.view(1, -1, 1) * way[:, None]  # (B, F, 2)
    place = place.flatten(0, 1)
    radius = uniform(2.5, 4).repeat_interleave(FRAMES)
    every = distances(place[:, 0], place[:, 1], radius).unflatten(0, (count, FRAMES))
    chosen = every[torch.arange(count), :, shapes]  # (B, F, 16, 16), negative inside
    cover = torch.sigmoid(-2 * chosen)
    axis = torch.arange(SIZE, dtype=torch.float32)
    slope = (axis.view(1, -1) + axis.view(-1, 1)) / (2 * SIZE)
    ground = uniform(-1, -0.7, 3, 1, 1, 1) + uniform(0, 0.3, 1, 1, 1, 1) * slope
    colour = uniform(-0.2, 1, 3, 1, 1, 1)
    covered = cover[:, None]
    return (ground * (1 - covered) + colour * covered).clamp(-1, 1), cover


def to_latent(clips: torch.Tensor) -> torch.Tensor:
    """Clips (B, 3, F, 16, 16) as latents (B, 48, F, 4, 4): patches become channels."""
    packed = torch.nn.functional.pixel_unshuffle(clips.transpose(1, 2), _PATCH)
    return packed.transpose(1, 2)


def to_clips(latents: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_latent`."""
    return torch.nn.functional.pixel_shuffle(latents.transpose(1, 2), _PATCH).transpose(1, 2)


def with_places(latents: torch.Tensor) -> torch.Tensor:
    """What the model is given: (B, 64, F, 4, 4), the latents and where each token is.

    Wan's positions are relative alone, and a tiny model is long in finding out frame, row and
    column from them. They come as further channels, like the first frame of image-to-video models.
    """
    batch, _, frames, rows, columns = latents.shape
    sizes = (FRAMES, SIZE // _PATCH, SIZE // _PATCH)
    axes = torch.meshgrid(*map(torch.arange, (frames, rows, columns)), indexing="ij")
    ones = [torch.nn.functional.one_hot(axis, size) for axis, size in zip(axes, sizes, strict=True)]
    places = torch.cat(ones, -1).movedim(-1, 0).to(latents)
    return torch.cat([latents, places.expand(batch, -1, -1, -1, -1)], 1)


__all__ = ["FRAMES", "MOTIONS", "SHAPES", "asked", "draw", "to_clips", "to_latent", "with_places"]
