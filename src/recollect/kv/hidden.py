"""Hidden states that attention layers are given, for scores whose `needs` name `hidden`."""

from __future__ import annotations

from typing import Any

import torch


class LayerHidden:
    """Hidden states of one layer's current forward pass."""

    def __init__(self) -> None:
        self._current: torch.Tensor | None = None

    def note(self, _module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the attention module; it only reads."""
        given = kwargs.get("hidden_states", args[0] if args else None)
        self._current = given.detach() if isinstance(given, torch.Tensor) else None

    def take(self) -> torch.Tensor | None:
        """The hidden states (B, Q, E) of this pass, once; nothing is held afterwards."""
        current, self._current = self._current, None
        return current


class HiddenTap:
    """Notes the hidden states of all attention layers while a cache that asks for them lives."""

    def __init__(self, modules: dict[int, torch.nn.Module]) -> None:
        self.layers = {index: LayerHidden() for index in modules}
        self._hooks = [
            module.register_forward_pre_hook(self.layers[index].note, with_kwargs=True)
            for index, module in modules.items()
        ]

    def remove(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
