"""Caches under test: a recipe's, and the host's own as what everything is compared with."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from transformers import DynamicCache

from recollect.errors import RecipeError
from recollect.kv import kv_cache, policy
from recollect.kv.report import CacheReport

HOST = "host"


@dataclass(frozen=True, order=True)
class Variant:
    """A recipe at one `keep`: one point on a chart.

    Attributes:
        recipe: a specification as `recollect.kv_cache` takes it, or ``host``.
        keep: fraction or number of tokens kept.
    """

    recipe: str
    keep: float | int

    @property
    def label(self) -> str:
        return self.recipe if self.keep == 1.0 else f"{self.recipe} · keep {self.keep:g}"


class HostCache(DynamicCache):
    """The host's own cache, with the few answers that ours gives too."""

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        held = (getattr(layer, name, None) for layer in self.layers for name in ("keys", "values"))
        return sum(t.numel() * t.element_size() for t in held if t is not None)

    @property
    def dense_nbytes(self) -> int:
        return self.nbytes

    def copy(self) -> HostCache:
        """An independent copy."""
        return copy.deepcopy(self)

    def report(self) -> CacheReport:
        """Totals only."""
        return CacheReport("host", (), self.nbytes, self.nbytes)

    def close(self) -> None:
        """Nothing to give back."""


def open_cache(model: Any, variant: Variant) -> Any:
    """An empty cache for a model.

    Raises RecipeError or HostError as `recollect.kv_cache` does.
    """
    if variant.recipe == HOST:
        return HostCache(config=model.config)
    return kv_cache(model, variant.recipe, keep=variant.keep)


def variants(recipes: list[str], keeps: list[float | int]) -> list[Variant]:
    """Every recipe at every keep; recipes that drop nothing are there once.

    Raises RecipeError for an unknown recipe or a keep out of range.
    """
    found = [Variant(HOST, 1.0)]
    for recipe in recipes:
        for keep in keeps if _drops(recipe) else [1.0]:
            policy(recipe, keep=keep)
            found.append(Variant(recipe, keep))
    return list(dict.fromkeys(found))


def _drops(recipe: str) -> bool:
    """Whether a recipe drops or merges tokens, so that `keep` means something."""
    if recipe == HOST:
        return False
    chosen = policy(recipe)
    return chosen.score is not None or chosen.merge is not None


def split_recipes(text: str) -> list[str]:
    """Read ``a,b(x=1, y=2),c + d``: commas inside brackets separate arguments, not recipes."""
    found, depth, start = [], 0, 0
    for place, letter in enumerate(text + ","):
        depth += {"(": 1, "{": 1, ")": -1, "}": -1}.get(letter, 0)
        if letter == "," and depth <= 0:
            found.append(text[start:place].strip())
            start = place + 1
    if not any(found):
        raise RecipeError("no recipe given; write e.g. --recipes snapkv,knorm")
    return [recipe for recipe in found if recipe]
