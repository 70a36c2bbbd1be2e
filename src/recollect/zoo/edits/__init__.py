"""A tiny trained editing model of drawn shapes, and a classifier that judges its edits.

model, instructions = recollect.zoo.edits.load("tiny-flux-edit")  # a FluxTransformer2DModel
prompt = instructions(recollect.zoo.edits.words("replace the disc square")[None])
pictures = recollect.zoo.edits.edit(model, pictures, prompt)  # (B, 3, 16, 16) in [-1, 1]
lora = recollect.zoo.edits.adapter("tiny-flux-edit", "outlines")  # for the recipe easycontrol
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recollect.errors import RecipeError
from recollect.zoo import images
from recollect.zoo.edits.pairs import (
    FAMILIES,
    WORDS,
    Edits,
    draw_edits,
    outline,
    overlap,
    words,
)
from recollect.zoo.edits.sampling import Instructions, edit

__all__ = [
    "FAMILIES",
    "WORDS",
    "Edits",
    "Instructions",
    "adapter",
    "draw_edits",
    "edit",
    "load",
    "load_folder",
    "names",
    "outline",
    "overlap",
    "path",
    "words",
]

_FOLDER = Path(__file__).parent / "models"


def names() -> tuple[str, ...]:
    """The models that ship with the package."""
    return tuple(sorted(card.parent.name for card in _FOLDER.glob("*/card.json")))


def path(name: str) -> str:
    """The folder of a model, as `from_pretrained` wants it. Raises RecipeError."""
    if name not in names():
        raise RecipeError(f"unknown editing model '{name}' (there are: {', '.join(names())})")
    return str(_FOLDER / name)


def adapter(name: str, condition: str) -> str:
    """The file of an adapter that lets a model follow a condition. Raises RecipeError."""
    folder = Path(path(name)) / "conditions"
    known = sorted(file.stem for file in folder.glob("*.safetensors"))
    if condition not in known:
        raise RecipeError(f"{name} has no adapter '{condition}' (there are: {', '.join(known)})")
    return str(folder / f"{condition}.safetensors")


def load(name: str) -> tuple[Any, Instructions]:
    """The model of that name, ready for inference, and its encoder of instructions."""
    return load_folder(path(name))


def load_folder(folder: str | Path) -> tuple[Any, Instructions]:
    """The same from a folder that `recollect zoo train` has written."""
    return images.load_folder(folder), Instructions.load(folder)
