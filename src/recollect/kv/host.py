"""The only place where transformers' attention interface appears.

`attach(model)` makes a model call our registered attention function, which redeems `KVHandle`s and
hands everything else to the implementation the model had; `detach(model)` gives that back when the
last cache of the model is gone. Both use official extension points only: `AttentionInterface`,
`AttentionMaskInterface` and `set_attn_implementation`.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from recollect.errors import HostError
from recollect.kv.handle import KVHandle

PREFIX = "recollect_"

# Attention keywords that change the numbers; our kernels compute plain softmax attention, so a
# layer that is given one of these (and means it) keeps the host's own implementation.
CHANGES_LOGITS = ("softcap", "s_aux", "position_bias", "sinks", "head_mask")

HostAttention = Callable[..., tuple[torch.Tensor, Any]]


@dataclass
class Attachment:
    """How often a model is in use, and the attention it had before."""

    original: dict[str, str]
    users: int = 0


_ATTACHED: weakref.WeakKeyDictionary[PreTrainedModel, Attachment] = weakref.WeakKeyDictionary()


def attach(model: PreTrainedModel) -> None:
    """Route the model's attention through recollect; every call needs its own `detach`.

    Raises:
        HostError: the model does not use transformers' AttentionInterface, or is an
            encoder-decoder.
    """
    attachment = _ATTACHED.get(model)
    if attachment is None:
        attachment = Attachment(_implementations(model))
        if attachment.original[""] is not None:
            _set(model, {key: _register(name) for key, name in attachment.original.items()})
        if not str(model.config._attn_implementation).startswith(PREFIX):
            raise HostError(
                f"{type(model).__name__} does not route attention through transformers' "
                "AttentionInterface; use the host's own cache for it"
            )
        _ATTACHED[model] = attachment
    attachment.users += 1


def detach(model: PreTrainedModel) -> None:
    """Undo one `attach`; the last one gives the model its own attention back."""
    attachment = _ATTACHED.get(model)
    if attachment is None:
        return
    attachment.users -= 1
    if attachment.users <= 0:
        _set(model, attachment.original)
        del _ATTACHED[model]


def check_model(model: Any) -> PreTrainedModel:
    """The model, if it is one that can be hosted. Raises HostError otherwise."""
    if not isinstance(model, PreTrainedModel):
        raise HostError(f"expected a transformers model, got {type(model).__name__}")
    if model.config.is_encoder_decoder:
        raise HostError(f"{type(model).__name__} is an encoder-decoder; only decoders are hosted")
    return model


def host_layers(model: PreTrainedModel) -> list[Any]:
    """The cache layers transformers itself would make for this model."""
    layers = DynamicCache(config=model.config).layers
    if not any(is_full_attention(layer) for layer in layers):
        raise HostError(
            f"{type(model).__name__} has no full-attention layer; there is nothing to compress"
        )
    return layers


def is_full_attention(layer: Any) -> bool:
    """Whether the host's layer keeps every token (sliding and linear ones are left to the host)."""
    return type(layer) is DynamicLayer


def attention_modules(model: PreTrainedModel) -> dict[int, torch.nn.Module]:
    """Layer index -> the attention module that updates that layer of the cache."""
    modules: dict[int, torch.nn.Module] = {}
    for name, module in model.named_modules():
        index = getattr(module, "layer_idx", None)
        named = f"{name.rsplit('.', 1)[-1]} {type(module).__name__}".lower()
        if isinstance(index, int) and ("attn" in named or "attention" in named):
            modules.setdefault(index, module)
    return modules


def _register(name: str) -> str:
    """Register our attention and mask in front of the host's `name`; returns their name."""
    ours = PREFIX + name
    if ours not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        AttentionInterface.register(ours, _attention_in_front_of(name))
        if name in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys():
            AttentionMaskInterface.register(ours, ALL_MASK_ATTENTION_FUNCTIONS[name])
    return ours


def _attention_in_front_of(name: str) -> HostAttention:
    def attention(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: Any,
        value: Any,
        attention_mask: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, Any]:
        host = ALL_ATTENTION_FUNCTIONS.get(name) or _eager_of(module)
        if isinstance(key, KVHandle):
            return key.layer.attend(module, query, attention_mask, host, kwargs)
        return host(module, query, key, value, attention_mask, **kwargs)

    return attention


def _eager_of(module: torch.nn.Module) -> HostAttention:
    return sys.modules[type(module).__module__].eager_attention_forward


def _implementations(model: PreTrainedModel) -> dict[str, str]:
    """Attention names by sub-config, in the form `set_attn_implementation` takes."""
    names = {"": model.config._attn_implementation}
    for key in model.config.sub_configs:
        config = getattr(model.config, key, None)
        if config is not None and config._attn_implementation is not None:
            names[key] = config._attn_implementation
    return names


def _set(model: PreTrainedModel, names: dict[str, str]) -> None:
    model.set_attn_implementation(names if len(names) > 1 else names[""])
