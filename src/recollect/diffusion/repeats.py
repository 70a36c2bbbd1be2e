"""Modules that are given the same input at every step: what they gave is kept, to the bit.

Keys and values of cross-attention depend on the text or the observation alone; so does whatever
encodes it inside the model. None of it changes over a trajectory.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers.hooks.hooks import ModelHook
from diffusers.models.attention_processor import Attention

from recollect.diffusion.companions import Companion
from recollect.errors import HostError

if TYPE_CHECKING:
    from recollect.diffusion.host.hooks import Installed
    from recollect.diffusion.session import Session

_NAME = "recollect-repeats"
_INPUTS = 8  # inputs remembered at once: branches of a few requests


@dataclass(frozen=True)
class Repeats(Companion):
    """Keeps what modules give for inputs that return.

    Attributes:
        repeated: dotted names of modules with one tensor as input and one as output, beside the
            key and value projections of cross-attention, which are found. A model without any is
            left as it is.
    """

    repeated: tuple[str, ...] = ()

    def install(self, model: torch.nn.Module, session: Session, installed: Installed) -> None:
        seen = _Inputs()
        found = [_named(model, name) for name in self.repeated] + _cross_attention(model)
        for module in dict.fromkeys(found):
            hook = _RepeatHook(seen)
            installed.add(module, hook, _NAME)
            session.on_reset.append(hook.kept.clear)
        session.on_reset.append(seen.clear)


class _Inputs:
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
        while len(self._known) > _INPUTS:
            self._known.popitem(last=False)
        return self._next


class _RepeatHook(ModelHook):
    """Gives back what the module gave for the same input."""

    def __init__(self, seen: _Inputs) -> None:
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
            while len(self.kept) > _INPUTS:
                self.kept.popitem(last=False)
        return output


_UNKNOWN = -1


def _version(tensor: torch.Tensor) -> int:
    """Counts the writes into a tensor; unknown for tensors of inference mode."""
    return _UNKNOWN if tensor.is_inference() else tensor._version


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    alike = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
    return alike and torch.equal(one, other)


def _cross_attention(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Key and value projections of everything that attends to something else."""
    return [
        getattr(module, name)
        for module in model.modules()
        if isinstance(module, Attention) and module.is_cross_attention
        for name in ("to_k", "to_v")
        if isinstance(getattr(module, name, None), torch.nn.Module)
    ]


def _named(model: torch.nn.Module, name: str) -> torch.nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise HostError(f"{type(model).__name__} has no module '{name}'") from error
