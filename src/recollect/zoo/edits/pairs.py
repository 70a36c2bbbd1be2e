"""Drawn edits: pictures of two shapes, an instruction about one of them, and the picture after it.

What an instruction leaves open (the colour of a new shape, the shade of a new colour) is drawn at
random, so an edit has many right answers inside its region and exactly one outside. An outline of
the new shape is what conditions of EasyControl's kind add: where it goes, and how large it is.
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
_FAR = torch.tensor([0.5, 3.0])  # the same across and down where only an outline can tell
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
        cover: how much of a pixel the edited shape covers in `after`, (B, 1, 16, 16) in [0, 1].
        rest: `after` without the edited shape, (B, 3, 16, 16).
    """

    before: torch.Tensor
    after: torch.Tensor
    instructions: torch.Tensor
    region: torch.Tensor
    others: torch.Tensor
    wanted: torch.Tensor
    drawn: torch.Tensor
    cover: torch.Tensor
    rest: torch.Tensor


def draw_edits(count: int, generator: torch.Generator, far: bool = False) -> Edits:
    """So many random pictures, instructions and results.

    Args:
        count: edits to draw.
        generator: where they come from.
        far: replacements only, by shapes that may lie elsewhere and be smaller than instructions
            let the model expect; `outline` shows them.
    """

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
    target, verb = index(2), index(2) * (not far)
    other = 1 - target

    replaced = verb == 0
    old_class, old_family = classes[rows, target], families[rows, target]
    new_family = (old_family + 1 + index(len(FAMILIES) - 1)) % len(FAMILIES)
    new_class = torch.where(replaced, classes[:, 2], old_class)
    offset = torch.where(replaced[:, None], uniform(-1, 1, 2) * (_FAR if far else _OFFSET), 0)
    new_radius = torch.where(replaced, uniform(2.2 if far else 2.4, 3.1), radius[rows, target])
    # A replaced shape may keep its colour by chance; a recoloured one never does.
    any_family = index(len(FAMILIES))
    drawn_family = torch.where(replaced, any_family, new_family)
    new_colour = _shades(drawn_family[:, None], generator)[:, 0]

    kept = _cover(classes[rows, other], x[rows, other], y[rows, other], radius[rows, other])
    rest = _paint(ground, kept, colours[rows, other])
    at = x[rows, target], y[rows, target]
    old_cover = _cover(old_class, *at, radius[rows, target])
    moved = at[0] + offset[:, 0], at[1] + offset[:, 1]
    if far:
        moved = moved[0], moved[1].clamp(4, 12)
    cover = _cover(new_class, *moved, new_radius)
    value = torch.where(replaced, 6 + new_class, 6 + len(CLASSES) + new_family)
    return Edits(
        _paint(rest, old_cover, colours[rows, target]),
        _paint(rest, cover, new_colour),
        torch.stack([verb, 2 + old_class, value], 1),
        _box(old_class, *at) | _box(new_class, *(moved if far else at)),
        torch.stack([classes[rows, other], families[rows, other]], 1),
        torch.stack([new_class, torch.where(replaced, -1, new_family)], 1),
        torch.stack([new_class, drawn_family], 1),
        cover,
        rest,
    )


def outline(cover: torch.Tensor) -> torch.Tensor:
    """A line drawing (B, 3, 16, 16) in [-1, 1] of shapes that cover pixels (B, 1, 16, 16)."""
    return (8 * cover * (1 - cover) - 1).expand(-1, 3, -1, -1)


def overlap(pictures: torch.Tensor, edits: Edits) -> torch.Tensor:
    """Of the edited shapes in pictures and in `edits.after`, intersection over union: (B,).

    A picture's shape is where it differs from what is around by half of its largest difference.
    """
    found, wanted = (
        change > 0.5 * change.amax((1, 2, 3), keepdim=True)
        for change in ((pictures - edits.rest).abs().amax(1, keepdim=True), edits.cover)
    )
    both, either = ((found & wanted).sum((1, 2, 3)), (found | wanted).sum((1, 2, 3)))
    return both / either


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


def _cover(
    classes: torch.Tensor, x: torch.Tensor, y: torch.Tensor, radius: torch.Tensor
) -> torch.Tensor:
    """How much of every pixel a shape covers: (B, 1, 16, 16)."""
    away = distances(x, y, radius)[torch.arange(len(classes)), classes]
    return torch.sigmoid(-2 * away)[:, None]


def _paint(ground: torch.Tensor, cover: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
    """The ground (B, 3, 16, 16) with a shape of this colour (B, 3) on it."""
    return (ground * (1 - cover) + colour[:, :, None, None] * cover).clamp(-1, 1)


def _box(classes: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Pixels that a shape of this class, however large, may touch: (B, 1, 16, 16) bool."""
    axis = torch.arange(SIZE)
    near_x = (axis - x[:, None]).abs() <= (3.1 * _HALF_WIDTH[classes] + _MARGIN)[:, None]
    near_y = (axis - y[:, None]).abs() <= (3.1 * _HALF_HEIGHT[classes] + _MARGIN)[:, None]
    return (near_y[:, :, None] & near_x[:, None, :])[:, None]
