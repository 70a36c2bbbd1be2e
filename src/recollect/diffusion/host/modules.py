"""Attention and feed-forward modules of the blocks, found by class and by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers.models.attention import AttentionModuleMixin, FeedForward
from diffusers.models.attention_processor import Attention

from recollect.diffusion.host.blocks import Block
from recollect.diffusion.sites import Modules
from recollect.errors import HostError

_FEED_FORWARD = ("ff", "ffn", "mlp", "feed_forward", "ff_context", "mlp_context", "net")
_FUSED = ("proj_mlp", "proj_out")  # a parallel block: both branches meet in its last projection
_PAIR = ("linear1", "linear2")  # torch's own layers: the feed-forward net has no module of its own


class Submodule(NamedTuple):
    """A module that is left out on a skipped step.

    Attributes:
        name: dotted name in the model.
        module: the module.
        mute: its output is never used on a skipped step, as a later module is left out too.
        kind: `spatial`, `temporal` or `cross` attention, `feed_forward`, `fused` where one output
            has both, or `part` of a U-Net.
    """

    name: str
    module: torch.nn.Module
    mute: bool
    kind: str


def find_submodules(blocks: list[Block], site: Modules) -> list[Submodule]:
    """The modules of the blocks that a site leaves out."""
    found: list[Submodule] = []
    for block in blocks:
        module, path = block.module, block.name
        while len(inner := list(module.named_children())) == 1:  # a block in a wrapper
            path, module = f"{path}.{inner[0][0]}", inner[0][1]
        children = dict(inner)
        fused = all(name in children for name in _FUSED)
        if fused and not site.attention:
            continue  # its feed-forward part cannot be left out alone
        fused = fused and site.feed_forward
        pair = site.feed_forward and all(name in children for name in _PAIR)
        for name, child in children.items():
            attention, feed = is_attention(name, child), _is_feed_forward(name, child)
            target = (fused and name == _FUSED[1]) or (pair and name == _PAIR[1])
            mute = (fused and (attention or name == _FUSED[0])) or (pair and name == _PAIR[0])
            if mute or target or (site.attention and attention) or (site.feed_forward and feed):
                kind = "fused" if fused else _kind(f"{path}.{name}", child, attention)
                found.append(Submodule(f"{path}.{name}", child, mute, kind))
    return found


def _kind(name: str, module: torch.nn.Module, attention: bool) -> str:
    """What a module does, told by what diffusers notes on it, else by its name."""
    if not attention:
        return "feed_forward"
    if getattr(module, "is_cross_attention", False) or "cross" in name.lower():
        return "cross"
    return "temporal" if "temp" in name.lower() else "spatial"


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
    return [
        Submodule(name, module, place != last, "part") for place, (name, module) in enumerate(inner)
    ]


def numbers(found: Sequence[Submodule]) -> dict[str, int]:
    """Place of each module among those that are not mute; a mute one goes with its overwriter."""
    read = [one.name for one in found if not one.mute]
    places = {name: place for place, name in enumerate(read)}
    for one in found:
        if one.mute:
            parent = one.name.rpartition(".")[0] + "."
            beside = [
                n for n in read if n.startswith(parent) and n.count(".") == one.name.count(".")
            ]
            places[one.name] = places[(beside or read[-1:])[-1]]
    return places


def is_attention(name: str, module: torch.nn.Module) -> bool:
    known = isinstance(module, Attention | AttentionModuleMixin)
    return known or type(module).__name__.endswith(("Attention", "Attn"))


def _is_feed_forward(name: str, module: torch.nn.Module) -> bool:
    known = isinstance(module, FeedForward) or type(module).__name__.endswith(
        ("FeedForward", "MLP", "Mlp", "FFN")
    )
    return known or name in _FEED_FORWARD
