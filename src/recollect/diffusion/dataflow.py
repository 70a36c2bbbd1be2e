"""Modules of a denoiser that see neither the latent nor any token: time, class, pooled text.

One evaluation is watched operation by operation. What touches a latent or a sequence of tokens is
marked, and so is all that follows from it; modules that are only ever given unmarked tensors are
functions of the time and of what sums up the prompt, whatever the family calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from recollect.diffusion.host.call import Signature

LAYERS = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
"""Layers whose weights make up a denoiser."""


@dataclass
class Seen:
    """What one evaluation showed.

    Attributes:
        output: what the model returned.
        layers: names of the layers that ran, in order, each once.
        free: names of the modules (all kinds) that were given unmarked tensors only, with the
            arguments of their calls.
    """

    output: Any = None
    layers: list[str] = field(default_factory=list)
    free: dict[str, list[tuple[Any, Any]]] = field(default_factory=dict)


def watch(
    model: torch.nn.Module,
    signature: Signature,
    forward: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Seen:
    """Run one call of the model and see which modules depend on the latent or on tokens.

    Args:
        model: the denoiser.
        signature: which of its arguments are the latent and the time.
        forward: runs it; `args` and `kwargs` are its arguments.
    """
    seen, bound = Seen(), set[str]()
    marks = _Marks(list(_tokens(signature.bind(args, kwargs), signature)))

    def before(name: str) -> Callable[..., None]:
        def note(module: torch.nn.Module, given: Any, named: Any) -> None:
            tensors = [x for x in pytree.tree_leaves((given, named)) if _is_tensor(x)]
            if not tensors or any(marks.marked(tensor) for tensor in tensors):
                bound.add(name)
                seen.free.pop(name, None)
            elif name not in bound:
                seen.free.setdefault(name, []).append((given, named))
            if isinstance(module, LAYERS) and name not in seen.layers:
                seen.layers.append(name)

        return note

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name:
                handle = module.register_forward_pre_hook(before(name), with_kwargs=True)
                stack.callback(handle.remove)
        stack.enter_context(marks)
        seen.output = forward(*args, **kwargs)
    return seen


def outermost(model: torch.nn.Module, seen: Seen) -> Iterator[tuple[str, torch.nn.Module]]:
    """The free modules that have layers in them and are in no other free module."""
    ran = set(seen.layers)

    def descend(prefix: str, module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
        for child, inner in module.named_children():
            name = f"{prefix}{child}"
            inside = {f"{name}.{n}" if n else name for n, _ in inner.named_modules()}
            if name in seen.free and inside & ran:
                yield name, inner
            else:
                yield from descend(f"{name}.", inner)

    return descend("", model)


class _Marks(TorchDispatchMode):
    """Follows marks from tensor to tensor, by the memory they lie in."""

    def __init__(self, seeds: list[torch.Tensor]) -> None:
        super().__init__()
        self._marked: dict[int, StorageWeakRef] = {}
        self._all = False
        for seed in seeds:
            self._mark(seed)

    def marked(self, value: Any) -> bool:
        """Whether a value follows from a latent or from tokens."""
        if not _is_tensor(value):
            return False
        found = self._marked.get(value.untyped_storage()._cdata)
        return self._all or (found is not None and not found.expired())

    def _mark(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        self._marked[storage._cdata] = StorageWeakRef(storage)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        touched = any(self.marked(value) for value in pytree.tree_leaves((args, kwargs)))
        output = func(*args, **kwargs)
        if touched and func is torch.ops.aten._local_scalar_dense.default:
            self._all = True  # a number leaves our sight: nothing after it can be vouched for
        for value in pytree.tree_leaves(output):
            if _is_tensor(value) and touched:
                self._mark(value)
        return output


def _tokens(named: dict[str, Any], signature: Signature) -> Iterator[torch.Tensor]:
    """The latent, sequences of tokens, and everything given in lists."""
    for name, value in named.items():
        if name == signature.time:
            continue
        for leaf in pytree.tree_leaves(value):
            listed = isinstance(value, list | tuple)
            if _is_tensor(leaf) and (listed or leaf.ndim > 2 or name == signature.latent):
                yield leaf


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
