"""What a decision remembers of the latest requests or users, within a fixed room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """A dictionary of the latest `capacity` keys; the oldest leave first."""

    def __init__(self, capacity: int = 4096) -> None:
        self._capacity = capacity
        self._items: OrderedDict[Hashable, Value] = OrderedDict()

    def put(self, key: Hashable, value: Value) -> None:
        """Remember, as the newest."""
        self._items[key] = value
        self._items.move_to_end(key)
        if len(self._items) > self._capacity:
            self._items.popitem(last=False)

    def get(self, key: Hashable) -> Value | None:
        """What is remembered under the key; None when nothing is."""
        return self._items.get(key)

    def pop(self, key: Hashable) -> Value | None:
        """What was remembered under the key, which is forgotten; None when nothing was."""
        return self._items.pop(key, None)
