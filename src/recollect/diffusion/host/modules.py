"""Attention and feed-forward modules of the blocks, found by class and by name."""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers.models.attention import AttentionModuleMixin, FeedForward
from diffusers.models.attention_processor import Attention

from recollect.diffusion.host.blocks import Block
from recollect.diffusion.sites import Modules
from recollect.errors import HostError

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


def find_deep_part(model: torch.nn.Module, depth: int) -> list[Submodule]:
    """What lies between the first `depth + 1` down-blocks of a U-Net and as many last up-blocks.

    Raises HostError where the model has no such parts, or none that deep.
    """
    down, up = (getattr(model, name, None) for name in ("down_blocks", "up_blocks"))
    if not isinstance(down, torch.nn.ModuleList) or not isinstance(up, torch.nn.ModuleList):
        raise HostError(
            f"{type(model).__name__} has no down_blocks and up_blocks: DeepCache is for U-Nets"
        )
    outer = depth + 1
    if len(up) <= outer:
        raise HostError(
            f"depth={depth} leaves nothing to reuse: {type(model).__name__} has {len(up)} up-blocks"
        )
    middle = getattr(model, "mid_block", None)
    inner = [(f"down_blocks.{n}", b) for n, b in enumerate(down) if n >= outer]
    inner += [("mid_block", middle)] if middle is not None else []
    inner += [(f"up_blocks.{n}", b) for n, b in enumerate(up) if n < len(up) - outer]
    last = len(inner) - 1
    return [Submodule(name, module, place != last) for place, (name, module) in enumerate(inner)]


def _is_attention(name: str, module: torch.nn.Module) -> bool:
    known = isinstance(module, Attention | AttentionModuleMixin)
    return known or type(module).__name__.endswith(("Attention", "Attn"))


def _is_feed_forward(name: str, module: torch.nn.Module) -> bool:
    known = isinstance(module, FeedForward) or type(module).__name__.endswith(
        ("FeedForward", "MLP", "Mlp", "FFN")
    )
    return known or name in _FEED_FORWARD
