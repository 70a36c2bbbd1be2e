"""Drawn edits: pictures of two shapes, an instruction about one of them, and the picture after it.

What an instruction leaves open (the colour of a new shape, the shade of a new colour) is drawn at
random, so an edit has many right answers inside its region and exactly one outside.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recollect.errors import RecipeError
from recollect.zoo.images.shapes import CLASSES, SIZE, distances

FAMILIES = ("red", "green", "blue", "yellow")
"""Colours of shapes; a shape has some shade of one."""
WORDS = ("replace", "recolour", *(f"the {name}" for name in CLASSES), *CLASSES, *FAMILIES)
"""Vocabulary of instructions: a verb, the shape it is about, and what that becomes."""

_SHADES = torch.tensor([[0.9, -0.6, -0.6], [-0.6, 0.8, -0.6], [-0.5, -0.3, 0.95], [0.9, 0.8, -0.6]])
_JITTER = 0.25
_OFFSET = 0.5  # pixels by which a new shape may lie beside the old one's centre
_MARGIN = 2.0  # pixels around a shape that its soft edge and offset may touch
_HALF_WIDTH = torch.tensor([1.0, 0.9, 1.2, 0.35])  # of a shape of radius 1, by class
_HALF_HEIGHT = torch.tensor([1.0, 0.9, 1.2, 1.5])


@dataclass(frozen=True)
class Edits:
    """A batch of edits.

    Attributes:
        before, after: pictures (B, 3, 16, 16) float32 in [-1, 1].
        instructions: words (B, 3) int64, indices into `WORDS`.
        region: pixels (B, 1, 16, 16) bool that the edit may change.
        others: class and colour of the shape that stays, (B, 2) int64.
        wanted: class and colour of the edited shape, (B, 2) int64; -1 where any colour will do.
        drawn: class and colour of the edited shape in `after`, (B, 2) int64.
    """

    before: torch.Tensor
    after: torch.Tensor
    instructions: torch.Tensor
    region: torch.Tensor
    others: torch.Tensor
    wanted: torch.Tensor
    drawn: torch.Tensor


def draw_edits(count: int, generator: torch.Generator) -> Edits:
    """So many random pictures, instructions and results."""

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    def index(most: int) -> torch.Tensor:
        return torch.randint(0, most, (count,), generator=generator)

    rows = torch.arange(count)
    # One shape on the left and one on the right, of different classes; either may be the target.
    classes = torch.rand(count, len(CLASSES), generator=generator).argsort(1)
    families = torch.randint(0, len(FAMILIES), (count, 2), generator=generator)
    x = torch.stack([uniform(3.5, 4.5), uniform(11.5, 12.5)], 1)
    y = uniform(4, 12, 2)
    radius = uniform(2.4, 3.1, 2)
    slope = (torch.arange(SIZE).view(1, 1, 1, -1) + torch.arange(SIZE).view(1, 1, -1, 1)) / 32
    ground = uniform(-1, -0.7, 3, 1, 1) + uniform(0, 0.3, 1, 1, 1) * slope
    colours = _shades(families, generator)
    target, verb = index(2), index(2)
    other = 1 - target

    replaced = verb == 0
    old_class, old_family = classes[rows, target], families[rows, target]
    new_family = (old_family + 1 + index(len(FAMILIES) - 1)) % len(FAMILIES)
    new_class = torch.where(replaced, classes[:, 2], old_class)
    offset = torch.where(replaced[:, None], uniform(-_OFFSET, _OFFSET, 2), 0)
    new_radius = torch.where(replaced, uniform(2.4, 3.1), radius[rows, target])
    # A replaced shape may keep its colour by chance; a recoloured one never does.
    any_family = index(len(FAMILIES))
    drawn_family = torch.where(replaced, any_family, new_family)
    new_colour = _shades(drawn_family[:, None], generator)[:, 0]

    kept = _paint(ground, classes[rows, other], x[rows, other], y[rows, other],
                  radius[rows, other], colours[rows, other])  # fmt: skip
    at = x[rows, target], y[rows, target]
    before = _paint(kept, old_class, *at, radius[rows, target], colours[rows, target])
    moved = at[0] + offset[:, 0], at[1] + offset[:, 1]
    after = _paint(kept, new_class, *moved, new_radius, new_colour)
    value = torch.where(replaced, 6 + new_class, 6 + len(CLASSES) + new_family)
    return Edits(
        before,
        after,
        torch.stack([verb, 2 + old_class, value], 1),
        _box(old_class, *at) | _box(new_class, *at),
        torch.stack([classes[rows, other], families[rows, other]], 1),
        torch.stack([new_class, torch.where(replaced, -1, new_family)], 1),
        torch.stack([new_class, drawn_family], 1),
    )


def words(text: str) -> torch.Tensor:
    """An instruction such as "replace the disc square": (3,) int64. Raises RecipeError."""
    parts = text.split()
    named = [" ".join(parts[:1]), " ".join(parts[1:3]), " ".join(parts[3:])]
    values = {"replace": CLASSES, "recolour": FAMILIES}.get(named[0], ())
    if named[1] not in WORDS[2:6] or named[2] not in values:
        raise RecipeError(
            f"an instruction reads 'replace the CLASS CLASS' or 'recolour the CLASS COLOUR' with "
            f"{', '.join(CLASSES)} and {', '.join(FAMILIES)}, not '{text}'"
        )
    return torch.tensor([WORDS.index(word) for word in named])


def _shades(families: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random shade of each colour: (..., 3)."""
    shape = (*families.shape, 3)
    jitter = _JITTER * (2 * torch.rand(shape, generator=generator) - 1)
    return (_SHADES[families] + jitter).clamp(-1, 1)


def _paint(
    ground: torch.Tensor,
    classes: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    radius: torch.Tensor,
    colour: torch.Tensor,
) -> torch.Tensor:
    """The ground (B, 3, 16, 16) with one shape on it."""
    away = distances(x, y, radius)[torch.arange(len(classes)), classes]
    cover = torch.sigmoid(-2 * away)[:, None]
    return (ground * (1 - cover) + colour[:, :, None, None] * cover).clamp(-1, 1)


def _box(classes: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Pixels that a shape of this class, however large, may touch: (B, 1, 16, 16) bool."""
    axis = torch.arange(SIZE)
    near_x = (axis - x[:, None]).abs() <= (3.1 * _HALF_WIDTH[classes] + _MARGIN)[:, None]
    near_y = (axis - y[:, None]).abs() <= (3.1 * _HALF_HEIGHT[classes] + _MARGIN)[:, None]
    return (near_y[:, :, None] & near_x[:, None, :])[:, None]
