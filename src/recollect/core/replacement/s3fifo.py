"""S3-FIFO: three queues; a small one filters what is used once before it reaches the main one."""

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
from recollect.core.slot_table import EMPTY, SlotTable

SMALL, MAIN = 0, 1
MOST = 3  # what the counter of an entry in the main queue goes up to


class S3FIFO(Replacement):
    """Yang et al. 2023, SOSP: FIFO queues are all you need for cache eviction.

    New entries enter the small queue (a tenth of the bytes). Its oldest moves to the main queue if
    it was used twice since, else it is evicted and its key remembered in the ghost queue; a key
    found there enters the main queue at once. The main queue re-inserts what was used.

    The authors' simulator refuses an entry as large as the small queue. A chunk of keys and values
    often is, so here it enters the main queue. Pinned entries count as used.
    """

    def __init__(self, capacity: int, small: float = 0.1) -> None:
        super().__init__(capacity)
        self._links = Links()
        self._queues = (Queue(self._links), Queue(self._links))
        self._limits = (int(capacity * small), capacity - int(capacity * small))
        self._bytes = [0, 0]
        self._ghost = _Ghost(self._limits[MAIN])
        self._entries = 0
        self._uses = array("B")
        self._home = array("B")
        self._size = array("Q")
        self._value = array("Q")

    def place(self, value: int, size: int) -> int:
        seen = self._ghost.take(value)
        return MAIN if seen or size >= self._limits[SMALL] else SMALL

    def admit(self, slot: int, value: int, size: int, cost: float = 1.0, place: int = 0) -> None:
        if slot >= len(self._uses):
            self._links.hold(slot)
            for column in (self._uses, self._home, self._size, self._value):
                widen(column, slot)
        self._uses[slot], self._size[slot], self._value[slot] = 0, size, value
        self._enter(slot, place)

    def touch(self, slot: int) -> None:
        if self._uses[slot] < 255:
            self._uses[slot] += 1

    def forget(self, slot: int) -> None:
        home = self._home[slot]
        self._queues[home].remove(slot)
        self._bytes[home] -= self._size[slot]
        self._entries -= 1

    def evict(self, pinned: Callable[[int], bool] = nobody) -> int | None:
        small = self._queues[SMALL]
        if small and self._bytes[MAIN] <= self._limits[MAIN]:
            victim = self._from_small(pinned)
            return self._from_main(pinned) if victim is None else victim
        victim = self._from_main(pinned)
        return self._from_small(pinned) if victim is None and small else victim

    def nbytes(self) -> int:
        own = held(self._uses, self._home, self._size, self._value)
        return self._links.nbytes() + own + self._ghost.nbytes()

    def _enter(self, slot: int, home: int) -> None:
        self._home[slot] = home
        self._queues[home].push(slot)
        self._bytes[home] += self._size[slot]
        self._entries += 1

    def _from_small(self, pinned: Callable[[int], bool]) -> int | None:
        for slot in self._queues[SMALL]:
            self.forget(slot)
            if self._uses[slot] < 2 and not pinned(slot):
                self._ghost.add(self._value[slot], self._size[slot])
                return slot
            self._uses[slot] = 0
            self._enter(slot, MAIN)
        return None

    def _from_main(self, pinned: Callable[[int], bool]) -> int | None:
        for _ in range((MOST + 1) * self._entries):  # enough rounds to use up every counter
            slot = self._queues[MAIN].oldest
            if slot == NONE:
                return None
            self.forget(slot)
            uses = min(self._uses[slot], MOST)
            if uses == 0 and not pinned(slot):
                return slot
            self._uses[slot] = max(uses - 1, 0)
            self._enter(slot, MAIN)
        return None


class _Ghost:
    """Key hashes of entries that are gone, up to a sum of their sizes; first in, first out."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._bytes = 0
        self._links = Links()
        self._queue = Queue(self._links)
        self._value = array("Q")
        self._size = array("Q")
        self._table = SlotTable(self._value)
        self._free = array("i")

    def add(self, value: int, size: int) -> None:
        """Remember a key, and forget the oldest ones for it."""
        self.take(value)
        if size > self._capacity:
            return
        while self._bytes + size > self._capacity:
            self._drop(self._queue.oldest)
        slot = self._free.pop() if self._free else len(self._table)
        self._links.hold(slot)
        widen(self._value, slot)
        widen(self._size, slot)
        self._value[slot], self._size[slot] = value, size
        self._table.insert(slot)
        self._queue.push(slot)
        self._bytes += size

    def take(self, value: int) -> bool:
        """Whether a key is remembered; if so, not any more."""
        slot = self._table.find(value)
        if slot == EMPTY:
            return False
        self._drop(slot)
        return True

    def nbytes(self) -> int:
        columns = held(self._value, self._size, self._free)
        return self._links.nbytes() + columns + self._table.nbytes()

    def _drop(self, slot: int) -> None:
        self._queue.remove(slot)
        self._table.remove(slot)
        self._bytes -= self._size[slot]
        self._free.append(slot)
