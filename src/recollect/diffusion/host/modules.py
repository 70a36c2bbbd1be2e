"""Attention and feed-forward modules of the blocks, found by class and by name."""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers.models.attention import AttentionModuleMixin, FeedForward
from diffusers.models.attention_processor import Attention

from recollect.diffusion.host.blocks import Block
from recollect.diffusion.sites import Modules

_FEED_FORWARD = ("ff", "ffn", "mlp", "feed_forward", "ff_context", "mlp_context", "net")
_FUSED = ("proj_mlp", "proj_out")  # a parallel block: both branches meet in its last projection


class Submodule(NamedTuple):
    """A module that is left out on a skipped step.

    Attributes:
        name: dotted name in the model.
        module: the module.
        mute: its output is never used on a skipped step, as a later module is left out too.
    """

    name: str
    module: torch.nn.Module
    mute: bool


def find_submodules(blocks: list[Block], site: Modules) -> list[Submodule]:
    """The modules of the blocks that a site leaves out."""
    found: list[Submodule] = []
    for block in blocks:
        module, path = block.module, block.name
        while len(inner := list(module.named_children())) == 1:  # a block in a wrapper
            path, module = f"{path}.{inner[0][0]}", inner[0][1]
        children = dict(inner)
        fused = all(name in children for name in _FUSED)
        if fused and not (site.attention and site.feed_forward):
            continue  # one output for both: neither can be left out alone
        for name, child in children.items():
            attention, feed = _is_attention(name, child), _is_feed_forward(name, child)
            target = fused and name == _FUSED[1]
            mute = fused and (attention or name == _FUSED[0])
            if mute or target or (site.attention and attention) or (site.feed_forward and feed):
                found.append(Submodule(f"{path}.{name}", child, mute))
    return found


def _is_attention(name: str, module: torch.nn.Module) -> bool:
    known = isinstance(module, Attention | AttentionModuleMixin)
    return known or type(module).__name__.endswith(("Attention", "Attn"))


def _is_feed_forward(name: str, module: torch.nn.Module) -> bool:
    known = isinstance(module, FeedForward) or type(module).__name__.endswith(
        ("FeedForward", "MLP", "Mlp", "FFN")
    )
    return known or name in _FEED_FORWARD
