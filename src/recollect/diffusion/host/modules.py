"""Attention and feed-forward modules of the blocks, found by class and by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from diffusers.models.attention import AttentionModuleMixin, FeedForward
from diffusers.models.attention_processor import Attention
from torch import nn

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
        block: number of its block, in the order of the lists.
    """

    name: str
    module: torch.nn.Module
    mute: bool
    kind: str
    block: int


def find_submodules(blocks: list[Block], site: Modules, first: int = 0) -> list[Submodule]:
    """The modules that a site leaves out, of the blocks from number `first` on."""
    found: list[Submodule] = []
    for number, block in enumerate(blocks[first:], start=first):
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
                found.append(Submodule(f"{path}.{name}", child, mute, kind, number))
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
        Submodule(name, module, place != last, "part", place)
        for place, (name, module) in enumerate(inner)
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


class Rows(NamedTuple):
    """How a module is run for some of its tokens.

    Attributes:
        tokens: all of them (B, S, C).
        call: makes, from the module's forward, a function of the chosen rows (B, n, C).
    """

    tokens: torch.Tensor
    call: Callable[[Callable[..., Any]], Callable[[torch.Tensor], Any]]


def rows_alone(part: Submodule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Rows | None:
    """How this module gives the same for a token, whichever others are run with it; None if never.

    Feed-forward layers do, and attention of image tokens to a text. In plain self-attention the
    queries do, as long as keys and values are those of all tokens.
    """
    tokens = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(tokens, torch.Tensor) or tokens.ndim != 3:
        return None
    others = {name: value for name, value in kwargs.items() if name != "hidden_states"}
    rest = args[1:]
    if part.kind == "feed_forward":
        if any(isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) for m in part.module.modules()):
            return None
    elif part.kind not in ("cross", "spatial") or any(
        value is not None and ("rotary" in name or ("mask" in name and part.kind == "spatial"))
        for name, value in others.items()
    ):
        return None
    elif part.kind == "spatial":
        joint = rest or others.get("encoder_hidden_states") is not None
        if joint or not isinstance(part.module, Attention):
            return None
        others["encoder_hidden_states"] = tokens
    return Rows(tokens, lambda forward: lambda rows: forward(rows, *rest, **others))


def is_attention(name: str, module: torch.nn.Module) -> bool:
    """Whether a module is attention, by diffusers' classes or by the name of its own."""
    known = isinstance(module, Attention | AttentionModuleMixin)
    return known or type(module).__name__.endswith(("Attention", "Attn"))


def _is_feed_forward(name: str, module: torch.nn.Module) -> bool:
    known = isinstance(module, FeedForward) or type(module).__name__.endswith(
        ("FeedForward", "MLP", "Mlp", "FFN")
    )
    return known or name in _FEED_FORWARD
