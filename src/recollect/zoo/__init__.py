"""Tiny trained language models that ship with the package, so that measurements mean something.

Two models learned, from nothing but the source of Python's standard library, to continue such
source and to find facts in it again, over up to 4,096 tokens. They load like any checkpoint:

    AutoModelForCausalLM.from_pretrained(recollect.zoo.path("tiny-llama"))

Each folder's `card.json` says how the model was trained and what it was measured to do.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from recollect.errors import RecipeError

__all__ = ["load", "names", "path"]

_FOLDER = Path(__file__).parent / "models"


def names() -> tuple[str, ...]:
    """The models that ship with the package."""
    return tuple(sorted(card.parent.name for card in _FOLDER.glob("*/card.json")))


def path(name: str) -> str:
    """The folder of a model, as `from_pretrained` wants it.

    Raises:
        RecipeError: there is no such model; names the nearest one.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise RecipeError(f"unknown zoo model '{name}'{hint} (there are: {', '.join(names())})")
    return str(_FOLDER / name)


def load(name: str) -> tuple[Any, Any]:
    """The model of that name, ready for inference, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = path(name)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, AutoTokenizer.from_pretrained(folder)
