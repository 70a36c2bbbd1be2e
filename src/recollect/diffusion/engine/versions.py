"""Whether a module's weights are still those that a result was made with."""

from __future__ import annotations

import itertools
from typing import Any

import torch

_PIECE = 2**20
_ADAPTER = ("scaling", "active_adapters", "disable_adapters", "merged_adapters")


def stamp(module: torch.nn.Module) -> Any:
    """Changes with every ordinary write to the weights; reads none of them."""
    writes = ((w.data_ptr(), 0 if w.is_inference() else w._version) for _, w in _weights(module))
    return tuple(writes), _adapters(module)


def checksum(module: torch.nn.Module) -> Any:
    """Of the bits of all weights; catches writes through `.data`, which leave no trace."""
    found: list[Any] = []
    for name, weight in _weights(module):
        bits = weight.detach().reshape(-1).contiguous().view(torch.uint8)
        total = 0
        for piece in bits.split(_PIECE):
            places = torch.arange(1, len(piece) + 1, device=piece.device)
            total = (total * 31 + int((piece.long() * places).sum())) % 2**61
        found.append((name, str(weight.dtype), total))
    return tuple(found), _adapters(module)


def _weights(module: torch.nn.Module) -> Any:
    return itertools.chain(module.named_parameters(), module.named_buffers())


def _adapters(module: torch.nn.Module) -> str:
    """Settings of adapters (peft) that change results without touching a weight."""
    return repr([getattr(m, n) for m in module.modules() for n in _ADAPTER if hasattr(m, n)])
