"""SIEVE: a queue in order of arrival, one bit per entry, and a hand that remembers its place."""

from __future__ import annotations

from array import array
from collections.abc import Callable

from recollect.core.replacement.base import (
    NONE,
    Links,
    Queue,
    Replacement,
    held,
    nobody,
    widen,
)


class SIEVE(Replacement):
    """Zhang et al. 2024, NSDI: SIEVE is simpler than LRU.

    The hand goes from the oldest to the newest entry and around; it clears the bit of visited
    entries and takes the first unvisited one. Eviction is O(1) amortized over the hits.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._links = Links()
        self._queue = Queue(self._links)
        self._visited = array("B")
        self._hand = NONE
        self._entries = 0

    def admit(self, slot: int, value: int, size: int, cost: float = 1.0, place: int = 0) -> None:
        self._links.hold(slot)
        widen(self._visited, slot)
        self._visited[slot] = 0
        self._queue.push(slot)
        self._entries += 1

    def touch(self, slot: int) -> None:
        self._visited[slot] = 1

    def forget(self, slot: int) -> None:
        if self._hand == slot:
            self._hand = self._links.newer[slot]
        self._queue.remove(slot)
        self._entries -= 1

    def evict(self, pinned: Callable[[int], bool] = nobody) -> int | None:
        slot = self._hand
        for _ in range(2 * self._entries):  # the second round finds every bit cleared
            slot = self._queue.oldest if slot == NONE else slot
            if not self._visited[slot] and not pinned(slot):
                self._hand = slot
                self.forget(slot)
                return slot
            self._visited[slot] = 0
            slot = self._links.newer[slot]
        return None

    def nbytes(self) -> int:
        return self._links.nbytes() + held(self._visited)
