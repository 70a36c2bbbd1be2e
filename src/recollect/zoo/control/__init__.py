"""A tiny trained diffusion policy, and the control task that it learned from demonstrations.

model = recollect.zoo.control.load("tiny-policy")      # a transformer over plans of 16 positions
recollect.zoo.control.success(model, episodes=64)      # share of episodes that end at the goal
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recollect.errors import RecipeError

__all__ = ["load", "names", "path"]

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
    from recollect.zoo.control.model import PolicyTransformer

    found = PolicyTransformer.from_pretrained(path(name), low_cpu_mem_usage=False)
    return found.float().eval()
