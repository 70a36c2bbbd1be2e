"""Attention in FLUX's layout, opened where keys and values of other tokens come in.

Double-stream blocks are given image tokens and text beside them, single-stream blocks both in one
sequence, text first; this is the only place that knows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_flux import FluxAttention

from recollect.diffusion.host.hook import Hook
from recollect.errors import HostError

Rotary = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines (N, D), or (B, N, D) where samples differ."""
Keys = Callable[[str, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""(module, keys, values of the image tokens at hand) -> those that are attended to."""


@dataclass(frozen=True)
class Plan:
    """What attention does during one evaluation.

    Attributes:
        text: number of text tokens.
        keys: exchanges keys and values (B, n, W) of image tokens, before norm and rotation.
        queries: rotary embedding of text and the image tokens at hand; None for the model's own.
        attended: that of text and the tokens that are attended to; None for the same.
        mask: which of those count (B, 1, 1, M) bool; None for all.
    """

    text: int
    keys: Keys
    queries: Rotary | None = None
    attended: Rotary | None = None
    mask: torch.Tensor | None = None


class Plans:
    """The plan of the evaluation in progress on this thread."""

    def __init__(self) -> None:
        self._here = threading.local()

    @property
    def current(self) -> Plan | None:
        """None where attention is the model's own."""
        return getattr(self._here, "plan", None)

    @contextmanager
    def using(self, plan: Plan | None) -> Iterator[None]:
        """Make a plan the current one."""
        before, self._here.plan = self.current, plan
        try:
            yield
        finally:
            self._here.plan = before


class FluxAttentionHook(Hook):
    """Runs an attention module under the current plan."""

    def __init__(self, name: str, plans: Plans) -> None:
        super().__init__()
        self.name, self.plans = name, plans

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        plan = self.plans.current
        if plan is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        return attend(module, self.name, plan, *args, **kwargs)


def attention_modules(model: torch.nn.Module) -> dict[str, FluxAttention]:
    """Attention modules by name. Raises HostError for models of another layout."""
    found = {n: m for n, m in model.named_modules() if isinstance(m, FluxAttention)}
    if not found or not hasattr(model, "pos_embed"):
        raise HostError(
            f"{type(model).__name__} has no attention in FLUX's layout (FluxAttention), "
            "which banks of keys and values need"
        )
    return found


def rotary(model: Any, text_ids: torch.Tensor, image_ids: torch.Tensor) -> Rotary:
    """Rotary embedding of text and image tokens: cosines and sines (E + N, D)."""
    cosine, sine = model.pos_embed(torch.cat([flat(text_ids), flat(image_ids)]))
    return cosine, sine


def flat(ids: torch.Tensor) -> torch.Tensor:
    """Position ids (N, 3), also where they are given per sample."""
    return ids[0] if ids.ndim == 3 else ids


def attend(
    attn: Any,
    name: str,
    plan: Plan,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    image_rotary_emb: Rotary | None = None,
    **others: Any,
) -> Any:
    """What `FluxAttnProcessor` does, with the keys and values of a plan.

    Arguments after `plan` are those of the module; raises HostError for an IP-Adapter's.
    """
    if others.get("ip_hidden_states") is not None:
        raise HostError("banks of keys and values do not work with an IP-Adapter; unload it")
    text, double = plan.text, encoder_hidden_states is not None
    query, key, value = _project(attn, hidden_states, "to_q", "to_k", "to_v", "to_qkv")
    if double:
        added = ("add_q_proj", "add_k_proj", "add_v_proj", "to_added_qkv")
        first = _project(attn, encoder_hidden_states, *added)
        key, value = plan.keys(name, key, value)
        query = torch.cat(
            [attn.norm_added_q(_heads(attn, first[0])), attn.norm_q(_heads(attn, query))], 1
        )
        key = torch.cat(
            [attn.norm_added_k(_heads(attn, first[1])), attn.norm_k(_heads(attn, key))], 1
        )
        value = torch.cat([_heads(attn, first[2]), _heads(attn, value)], 1)
    else:
        keys, values = plan.keys(name, key[:, text:], value[:, text:])
        key = torch.cat([key[:, :text], keys], 1)
        value = _heads(attn, torch.cat([value[:, :text], values], 1))
        query, key = attn.norm_q(_heads(attn, query)), attn.norm_k(_heads(attn, key))
    own = plan.queries or image_rotary_emb
    if own is not None:
        query, key = _rotate(query, own), _rotate(key, plan.attended or own)
    mask = attention_mask if plan.mask is None else plan.mask
    output = dispatch_attention_fn(
        query,
        key,
        value,
        attn_mask=mask,
        backend=getattr(attn.processor, "_attention_backend", None),
        parallel_config=getattr(attn.processor, "_parallel_config", None),
    )
    output = output.flatten(2, 3).to(query.dtype)
    if not double:
        return output
    image = attn.to_out[1](attn.to_out[0](output[:, text:].contiguous()))
    return image, attn.to_add_out(output[:, :text].contiguous())


def _project(attn: Any, tokens: Any, q: str, k: str, v: str, fused: str) -> Any:
    """Queries, keys and values (B, n, W)."""
    if attn.fused_projections:
        return getattr(attn, fused)(tokens).chunk(3, dim=-1)
    return tuple(getattr(attn, name)(tokens) for name in (q, k, v))


def _heads(attn: Any, tokens: torch.Tensor) -> torch.Tensor:
    return tokens.unflatten(-1, (-1, attn.head_dim))


def _rotate(tokens: torch.Tensor, table: Rotary) -> torch.Tensor:
    """Rotate pairs of neighbouring channels of tokens (B, n, H, D)."""
    cosine, sine = (t.unsqueeze(-2).to(tokens.device) for t in table)
    real, imaginary = tokens.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-imaginary, real], -1).flatten(-2)
    return (tokens.float() * cosine + turned.float() * sine).to(tokens.dtype)
