"""Caching as a first-class, composable thing across generative-AI inference."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from recollect.errors import GatewayError, HostError, RecipeError, RecollectError, StoreError

if TYPE_CHECKING:
    from recollect import zoo
    from recollect.diffusion import accelerate, accelerated, restore
    from recollect.kv import KVPolicy, RecollectCache, kv_cache, load_cache, use
    from recollect.recipe import Composition, Recipe, recipes
    from recollect.store import Store
    from recollect.store.prefix import prefix_cache

__version__ = "0.1.0"

__all__ = [
    "Composition",
    "GatewayError",
    "HostError",
    "KVPolicy",
    "Recipe",
    "RecipeError",
    "RecollectCache",
    "RecollectError",
    "Store",
    "StoreError",
    "accelerate",
    "accelerated",
    "kv_cache",
    "load_cache",
    "prefix_cache",
    "recipes",
    "restore",
    "use",
    "zoo",
]

# Public name -> module that has it. Loaded on first use: torch and transformers take seconds.
_HOMES = {
    "Composition": "recollect.recipe",
    "KVPolicy": "recollect.kv",
    "Recipe": "recollect.recipe",
    "RecollectCache": "recollect.kv",
    "Store": "recollect.store",
    "accelerate": "recollect.diffusion",
    "accelerated": "recollect.diffusion",
    "kv_cache": "recollect.kv",
    "load_cache": "recollect.kv",
    "prefix_cache": "recollect.store.prefix",
    "recipes": "recollect.recipe",
    "restore": "recollect.diffusion",
    "use": "recollect.kv",
}


def __getattr__(name: str) -> Any:
    if name == "zoo":
        return importlib.import_module("recollect.zoo")
    if name not in _HOMES:
        raise AttributeError(f"module 'recollect' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
