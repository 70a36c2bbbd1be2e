"""`use`: for pipelines and scripts that build their own cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from recollect.kv.cache import RecollectCache, kv_cache
from recollect.kv.policy import KVPolicy, policy
from recollect.recipe import Composition


@contextmanager
def use(
    model: PreTrainedModel,
    spec: str | Composition | KVPolicy = "full",
    *,
    kernel: str = "auto",
    **arguments: Any,
) -> Iterator[list[RecollectCache]]:
    """Give every new cache of the model inside the block the recipe's behaviour.

    A forward pre-hook (torch's official one) replaces each *empty* cache the model is called with;
    caches that hold something already, and calls with ``use_cache=False``, pass untouched. On exit
    the hook is removed and the model is as before.

    Yields the list of caches made, newest last, so that their `report()` can be read.

    Raises:
        RecipeError, HostError: as `kv_cache` does, at once.
    """
    chosen = policy(spec, **arguments)
    made: list[RecollectCache] = [kv_cache(model, chosen, kernel=kernel)]  # fails early, if at all

    def swap(
        _module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        given = kwargs.get("past_key_values")
        if isinstance(given, RecollectCache) or kwargs.get("use_cache") is False:
            return None
        if given is None and not kwargs.get("use_cache", model.config.use_cache):
            return None
        if isinstance(given, Cache) and given.get_seq_length() > 0:
            return None
        if made[-1].get_seq_length() > 0:
            made.append(kv_cache(model, chosen, kernel=kernel))
        return args, {**kwargs, "past_key_values": made[-1]}

    hook = model.register_forward_pre_hook(swap, with_kwargs=True)
    try:
        yield made
    finally:
        hook.remove()
        for cache in made:
            cache._release()
