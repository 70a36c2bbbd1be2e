"""LFU: evict what was used least often; among those, what has that count for longest."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator

from recollect.core.replacement.base import Links, Queue, Replacement, held, nobody, widen


class LFU(Replacement):
    """Least frequently used, with one queue for each count (Shah et al. 2010, arXiv 2110.11602).

    Counts live as long as the entry. Eviction is O(1), and O(distinct counts) after deletions or
    while whole counts are pinned.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._links = Links()
        self._count = array("I")
        self._queues: dict[int, Queue] = {}
        self._lowest = 1

    def admit(self, slot: int, value: int, size: int, cost: float = 1.0, place: int = 0) -> None:
        self._links.hold(slot)
        widen(self._count, slot)
        self._enter(slot, 1)
        self._lowest = 1

    def touch(self, slot: int) -> None:
        count = self._count[slot]
        self.forget(slot)
        self._enter(slot, count + 1)
        if self._lowest == count and count not in self._queues:
            self._lowest = count + 1

    def forget(self, slot: int) -> None:
        count = self._count[slot]
        queue = self._queues[count]
        queue.remove(slot)
        if not queue:
            del self._queues[count]

    def evict(self, pinned: Callable[[int], bool] = nobody) -> int | None:
        for count in self._counts():
            for slot in self._queues[count]:
                if not pinned(slot):
                    self.forget(slot)
                    return slot
        return None

    def nbytes(self) -> int:
        return self._links.nbytes() + held(self._count) + 200 * len(self._queues)

    def _enter(self, slot: int, count: int) -> None:
        self._count[slot] = count
        if count not in self._queues:
            self._queues[count] = Queue(self._links)
        self._queues[count].push(slot)

    def _counts(self) -> Iterator[int]:
        """Counts that entries have, the lowest first."""
        if self._lowest not in self._queues and self._queues:
            self._lowest = min(self._queues)
        if self._lowest in self._queues:
            yield self._lowest
            yield from sorted(count for count in self._queues if count != self._lowest)
