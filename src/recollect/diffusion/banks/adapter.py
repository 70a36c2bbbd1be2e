"""Adapters of conditions on the linear layers of a model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from recollect.diffusion.banks.lora import Weights
from recollect.diffusion.host.hook import Hook
from recollect.errors import HostError

if TYPE_CHECKING:
    from recollect.diffusion.host.hooks import Installed


class ConditionAdapter:
    """Adapters on the linear layers of a model, added while `active`."""

    def __init__(
        self, model: torch.nn.Module, weights: Weights, installed: Installed, name: str
    ) -> None:
        self._here = threading.local()
        modules = dict(model.named_modules())
        for layer, (down, up) in weights.items():
            module = modules.get(layer)
            if module is None:
                raise HostError(f"the adapter has weights for {layer}, which the model lacks")
            installed.add(module, _LoraHook(self, down, up), name)

    @property
    def on(self) -> bool:
        """Whether this thread is running a condition."""
        return getattr(self._here, "on", False)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Add the adapters to whatever this thread runs."""
        self._here.on = True
        try:
            yield
        finally:
            self._here.on = False


class _LoraHook(Hook):
    def __init__(self, adapter: ConditionAdapter, down: torch.Tensor, up: torch.Tensor) -> None:
        super().__init__()
        self.adapter, self.down, self.up = adapter, down, up

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = self.fn_ref.original_forward(*args, **kwargs)
        if not self.adapter.on:
            return output
        given = args[0] if args else next(iter(kwargs.values()))
        down, up = (w.to(device=given.device, dtype=given.dtype) for w in (self.down, self.up))
        return output + given @ down.T @ up.T
