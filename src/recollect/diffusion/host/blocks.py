"""The blocks of a denoiser, found by structure, and the streams that run through them.

A stream is a tensor that a block takes and gives back changed: image tokens, text tokens. Which
output belongs to which argument is read from diffusers' block metadata; where there is none, it is
seen on the first computed step, when one block's output is the next one's argument.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks._helpers import TransformerBlockRegistry

from recollect.diffusion.engine.values import Template, split
from recollect.errors import HostError

_SHARE = 0.01  # a list of blocks with less of the parameters is an embedder or a refiner
_SIDE = ("refiner", "embed", "text_", "context_", "caption", "norms", "controlnet", "final")
_NESTED = ("down_blocks", "up_blocks")  # of a U-Net: resolutions change inside them


Streams = dict[str, torch.Tensor]
"""Tensors by the name of the block argument that they are."""


@dataclass
class Block:
    """One block: its module, its list, and how its outputs follow from its arguments.

    Attributes:
        name: dotted name in the model.
        module: the block.
        group: name of the list it is in.
        names: parameters of its forward.
        streams: place in the output -> name of the argument it continues; empty until known.
        template: the output around its tensors, from the last computed step.
    """

    name: str
    module: torch.nn.Module
    group: str
    names: tuple[str, ...]
    streams: dict[int, str]
    template: Template | None = None

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by name."""
        return {**dict(zip(self.names, args, strict=False)), **kwargs}

    def inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Streams:
        """The streams as they come in."""
        named = self.bind(args, kwargs)
        found = {name: named.get(name) for name in self.streams.values()}
        return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}

    def outputs(self, output: Any) -> Streams:
        """The streams as they go out; notes the shape around them."""
        value, self.template = split(output)
        return {
            self.streams[place]: tensor
            for place, tensor in zip(self.template.places, value, strict=True)
        }

    def passed(self, streams: Mapping[str, torch.Tensor]) -> Any:
        """An output with these streams in it."""
        assert self.template is not None
        return self.template.fill([streams[self.streams[p]] for p in self.template.places])


def find_blocks(model: torch.nn.Module) -> list[Block]:
    """The model's blocks in the order of its lists; empty when none can be recognized."""
    total = sum(p.numel() for p in model.parameters()) or 1
    found: list[Block] = []
    for group, children in model.named_children():
        if isinstance(children, torch.nn.TransformerDecoder):  # torch's own, in diffusion policies
            group, children = f"{group}.layers", children.layers
        if not isinstance(children, torch.nn.ModuleList) or not len(children):
            continue
        share = sum(p.numel() for p in children.parameters()) / total
        if share < _SHARE or group in _NESTED or any(part in group for part in _SIDE):
            continue
        for number, module in enumerate(children):
            names = tuple(inspect.signature(type(module).forward).parameters)[1:]
            found.append(Block(f"{group}.{number}", module, group, names, {}))
    return found


def recognize(
    block: Block,
    named: Mapping[str, Any],
    output: Any,
    following: Mapping[str, Any] | None,
    alike: dict[int, str] | None = None,
) -> None:
    """Find a block's streams from a computed step.

    Args:
        block: the block.
        named: its arguments by name.
        output: what it returned.
        following: arguments by name of the next block, if it is of the same list.
        alike: streams of an earlier block of the same class.

    Raises:
        HostError: neither metadata nor the flow of tensors tells the streams.
    """
    value, block.template = split(output)
    places = block.template.places
    flow = _flow(places, value, following)
    for candidate in (_registered(block), flow, alike or {}, _only(value, named)):
        if (
            candidate
            and set(places) <= set(candidate)
            and all(
                isinstance(named.get(candidate[p]), torch.Tensor)
                and named[candidate[p]].shape == tensor.shape
                for p, tensor in zip(places, value, strict=True)
            )
        ):
            block.streams = {place: candidate[place] for place in places}
            return
    raise HostError(
        f"cannot tell which arguments of {block.name} ({type(block.module).__name__}) its outputs "
        "continue; register the class in diffusers' TransformerBlockRegistry, or use a site of the "
        "whole model (Velocity or Transform)"
    )


def _registered(block: Block) -> dict[int, str]:
    """Streams by diffusers' metadata; nothing where the class is not registered."""
    try:
        metadata = TransformerBlockRegistry.get(type(block.module))
    except ValueError:
        return {}
    places = {
        metadata.return_hidden_states_index: metadata.hidden_states_argument_name,
        metadata.return_encoder_hidden_states_index: metadata.encoder_hidden_states_argument_name,
    }
    return {place: name for place, name in places.items() if place is not None}


def _flow(
    places: tuple[int, ...], value: tuple[torch.Tensor, ...], following: Mapping[str, Any] | None
) -> dict[int, str]:
    """Streams seen: an output that is, as the same object, an argument of the next block."""
    found: dict[int, str] = {}
    for place, tensor in zip(places, value, strict=True):
        for name, given in (following or {}).items():
            if given is tensor:
                found[place] = name
    return found


def _only(value: tuple[torch.Tensor, ...], named: Mapping[str, Any]) -> dict[int, str]:
    """A block with one output continues its first tensor."""
    first = next((n for n, given in named.items() if isinstance(given, torch.Tensor)), None)
    return {0: first} if len(value) == 1 and first is not None else {}
