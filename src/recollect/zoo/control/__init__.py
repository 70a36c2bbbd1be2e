"""A tiny trained diffusion policy, and the control task that it learned from demonstrations.

model = recollect.zoo.control.load("tiny-policy")      # a transformer over plans of 16 positions
rollouts.success(model, episodes=64)                   # share of episodes that end at the goal
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recollect.errors import RecipeError

__all__ = ["load", "load_folder", "names", "path"]

_FOLDER = Path(__file__).parent / "models"


def names() -> tuple[str, ...]:
    """The models that ship with the package."""
    return tuple(sorted(card.parent.name for card in _FOLDER.glob("*/card.json")))


def path(name: str) -> str:
    """The folder of a model. Raises RecipeError."""
    if name not in names():
        raise RecipeError(f"unknown control model '{name}' (there are: {', '.join(names())})")
    return str(_FOLDER / name)


def load(name: str) -> Any:
    """The model of that name, ready for inference."""
    return load_folder(path(name))


def load_folder(folder: str | Path) -> Any:
    """The same from a folder that `recollect zoo train` has written."""
    from recollect.zoo.control.model import PolicyTransformer

    return PolicyTransformer.from_pretrained(str(folder), low_cpu_mem_usage=False).float().eval()
