"""Tiny trained diffusion models of drawn shapes, and a classifier that judges what they draw.

model = recollect.zoo.images.load("tiny-dit")          # a DiTTransformer2DModel of diffusers
pictures = recollect.zoo.images.sample(model, labels)  # (B, 3, 16, 16) in [-1, 1]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recollect.errors import RecipeError
from recollect.zoo.images.sampling import sample
from recollect.zoo.images.shapes import CLASSES, draw

__all__ = ["CLASSES", "draw", "load", "load_folder", "names", "path", "sample"]

_FOLDER = Path(__file__).parent / "models"


def names() -> tuple[str, ...]:
    """The models that ship with the package."""
    return tuple(sorted(card.parent.name for card in _FOLDER.glob("*/card.json")))


def path(name: str) -> str:
    """The folder of a model, as `from_pretrained` wants it. Raises RecipeError."""
    if name not in names():
        raise RecipeError(f"unknown image model '{name}' (there are: {', '.join(names())})")
    return str(_FOLDER / name)


def load(name: str) -> Any:
    """The model of that name, ready for inference."""
    return load_folder(path(name))


def load_folder(folder: str | Path) -> Any:
    """The same from a folder that `recollect zoo train` has written."""
    from diffusers import AutoModel

    return AutoModel.from_pretrained(str(folder), low_cpu_mem_usage=False).float().eval()
