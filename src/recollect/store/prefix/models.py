"""Which models' prefixes can be kept, and where their layers live."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from recollect.errors import HostError
from recollect.kv import host

KEEPABLE = (DynamicLayer, DynamicSlidingWindowLayer)
LENGTH_DEPENDENT = ("dynamic", "longrope")  # rotations that change with the prompt's length


def check_layers(model: PreTrainedModel) -> list[Any]:
    """The layers of the host's cache. Raises HostError where a prefix means nothing later."""
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise HostError(
            f"{type(model).__name__} computes all logits in every call (no logits_to_keep), so the "
            "prefill of a prompt cannot be told from other calls"
        )
    layers = host.host_layers(model)
    other = sorted({type(x).__name__ for x in layers if type(x) not in KEEPABLE})
    if other:
        raise HostError(
            f"{type(model).__name__} has layers that cannot be kept: {', '.join(other)}"
        )
    if kinds := sorted(_rope_types(model) & {*LENGTH_DEPENDENT}):
        raise HostError(
            f"{type(model).__name__} rotates keys by the length of the prompt "
            f"({', '.join(kinds)}); they hold for that length only"
        )
    return layers


def devices(model: PreTrainedModel, layers: int) -> list[torch.device]:
    """Where each layer of the cache lives."""
    modules = host.attention_modules(model)
    homes = {index: next(module.parameters()).device for index, module in modules.items()}
    return [homes.get(index, model.device) for index in range(layers)]


def _rope_types(model: PreTrainedModel) -> set[str]:
    """Kinds of rotary embedding; layers of different kinds may each have their own."""
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)]
    return {str(inner.get("rope_type")) for inner in [rope, *nested]}
