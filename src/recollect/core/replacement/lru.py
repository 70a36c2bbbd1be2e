"""LRU: evict what was not used for longest."""

from __future__ import annotations

from collections.abc import Callable

from recollect.core.replacement.base import Links, Queue, Replacement, nobody


class LRU(Replacement):
    """Least recently used."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._links = Links()
        self._queue = Queue(self._links)

    def admit(self, slot: int, value: int, size: int, cost: float = 1.0, place: int = 0) -> None:
        self._links.hold(slot)
        self._queue.push(slot)

    def touch(self, slot: int) -> None:
        self._queue.remove(slot)
        self._queue.push(slot)

    def forget(self, slot: int) -> None:
        self._queue.remove(slot)

    def evict(self, pinned: Callable[[int], bool] = nobody) -> int | None:
        for slot in self._queue:
            if not pinned(slot):
                self._queue.remove(slot)
                return slot
        return None

    def nbytes(self) -> int:
        return self._links.nbytes()
