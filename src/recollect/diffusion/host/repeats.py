"""Outputs of modules by the content of their inputs, which return at every step."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from diffusers.models.attention_processor import Attention

from recollect.diffusion.host.hook import Hook
from recollect.errors import HostError

INPUTS = 8
"""Inputs remembered at once: branches of a few requests."""


class Inputs:
    """Numbers for tensors by their content: the same content has the same number.

    Several modules are given one tensor; only the first of a step compares contents.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[int, tuple[torch.Tensor, int, torch.Tensor]] = OrderedDict()
        self._next = 0

    def clear(self) -> None:
        self._known.clear()

    def number(self, tensor: torch.Tensor) -> int:
        version = _version(tensor)
        for number, (latest, its_version, content) in reversed(self._known.items()):
            if latest is tensor and version == its_version != _UNKNOWN:
                return number
            if _equal(content, tensor):
                self._known[number] = (tensor, version, content)
                self._known.move_to_end(number)
                return number
        self._next += 1
        self._known[self._next] = (tensor, version, tensor.detach().clone())
        while len(self._known) > INPUTS:
            self._known.popitem(last=False)
        return self._next


class RepeatHook(Hook):
    """Gives back what the module gave for the same input."""

    def __init__(self, seen: Inputs) -> None:
        super().__init__()
        self.seen = seen
        self.kept: OrderedDict[int, tuple[torch.Tensor, int]] = OrderedDict()

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        forward = self.fn_ref.original_forward
        plain = len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor)
        if not plain or torch.is_grad_enabled():
            return forward(*args, **kwargs)
        number = self.seen.number(args[0])
        output, version = self.kept.get(number, (None, _UNKNOWN))
        if output is None or _version(output) != version:  # somebody wrote into it
            output = forward(args[0])
            self.kept[number] = (output, _version(output))
            while len(self.kept) > INPUTS:
                self.kept.popitem(last=False)
        return output


_UNKNOWN = -1


def _version(tensor: torch.Tensor) -> int:
    """Counts the writes into a tensor; unknown for tensors of inference mode."""
    return _UNKNOWN if tensor.is_inference() else tensor._version


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    alike = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
    return alike and torch.equal(one, other)


def cross_attention(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Key and value projections of everything that attends to something else."""
    return [
        getattr(module, name)
        for module in model.modules()
        if isinstance(module, Attention) and module.is_cross_attention
        for name in ("to_k", "to_v")
        if isinstance(getattr(module, name, None), torch.nn.Module)
    ]


def named(model: torch.nn.Module, name: str) -> torch.nn.Module:
    """The module of that dotted name. Raises HostError."""
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise HostError(f"{type(model).__name__} has no module '{name}'") from error
