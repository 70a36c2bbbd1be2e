"""Prefixes that arrive while the model computes: layers of the host's cache wait for their part.

Layer k + 1 is read, checked and decoded while the model computes layer k. What cannot be had midway
is computed: the model runs once more over the prefix, inside the call that asked, and its answer is
the one of a miss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from recollect.errors import StoreError
from recollect.store.prefix.chunks import KV
from recollect.store.prefix.found import Found


class Arrival:
    """A prefix on its way into one cache.

    Args:
        found: the prefix.
        devices: where each layer lives.
        compute: keys and values (B, K, columns, D) of all layers of the prefix, by the model.

    Attributes:
        was_computed: the prefix, or a part of it, could not be had from the store.
    """

    def __init__(
        self, found: Found, devices: Sequence[torch.device], compute: Callable[[], list[KV]]
    ) -> None:
        self.found, self.was_computed = found, False
        self._devices, self._compute = devices, compute
        self._computed: list[KV] = []

    def into(self, cache: Cache) -> None:
        """Have an empty cache of the host wait for the prefix."""
        cache.layers[:] = [ArrivingLayer(self, index) for index in range(len(self._devices))]

    def settle(self, cache: Cache) -> None:
        """Leave layers of the host's own kind, with all that has arrived."""
        cache.layers[:] = [
            layer.settled() if isinstance(layer, ArrivingLayer) else layer for layer in cache.layers
        ]

    def layer(self, index: int) -> KV:
        """Keys and values of a layer, on its device."""
        if not self.was_computed:
            try:
                return self._on_device(self.found.layer(index), index)
            except StoreError:
                self.was_computed = True
                self._computed = self._compute()
        return self._on_device(self._computed[index], index)

    def _on_device(self, kv: KV, index: int) -> KV:
        k, v = (x.to(self._devices[index]) for x in kv)
        return k, v


class ArrivingLayer(DynamicLayer):
    """As long as its prefix from the start; gets its tensors when it is first used."""

    def __init__(self, arrival: Arrival, index: int) -> None:
        super().__init__()
        self._arrival: Arrival | None = arrival
        self._index = index

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> KV:
        self._arrive()
        return super().update(key_states, value_states, *args, **kwargs)

    def get_seq_length(self) -> int:
        if self._arrival is not None:
            return self._arrival.found.columns
        return super().get_seq_length()

    def settled(self) -> DynamicLayer:
        """A plain layer with the same tensors."""
        self._arrive()
        assert self.keys is not None
        assert self.values is not None
        plain = DynamicLayer()
        plain.lazy_initialization(self.keys, self.values)
        plain.keys, plain.values = self.keys, self.values
        return plain

    def _arrive(self) -> None:
        if self._arrival is not None:
            k, v = self._arrival.layer(self._index)
            self._arrival = None
            super().update(k, v)
