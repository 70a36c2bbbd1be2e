"""GDSF: keep what is used often, costly to make again, and small."""

from __future__ import annotations

from array import array
from collections.abc import Callable

from recollect.core.replacement.base import Replacement, held, nobody, widen
from recollect.core.replacement.heap import SlotHeap

MICROSECONDS = 1e6  # the usual scale of cost


class GDSF(Replacement):
    """Cherkasova 1998: greedy dual, size, frequency. O(log n) per operation.

    Priority of an entry: ``age + uses * cost / size``, where `age` is the priority of the last
    victim, so that what is not used any more falls behind.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._heap = SlotHeap()
        self._uses = array("I")
        self._weight = array("d")  # cost / size
        self._age = 0.0

    def admit(self, slot: int, value: int, size: int, cost: float = 1.0, place: int = 0) -> None:
        widen(self._uses, slot)
        widen(self._weight, slot)
        self._uses[slot] = 1
        self._weight[slot] = MICROSECONDS * (cost or 1.0) / max(size, 1)
        self._heap.set(slot, self._age + self._weight[slot])

    def touch(self, slot: int) -> None:
        self._uses[slot] += 1
        self._heap.remove(slot)
        self._heap.set(slot, self._age + self._uses[slot] * self._weight[slot])

    def forget(self, slot: int) -> None:
        self._heap.remove(slot)

    def evict(self, pinned: Callable[[int], bool] = nobody) -> int | None:
        aside = []
        victim = None
        while self._heap and victim is None:
            slot = self._heap.lowest()
            self._heap.remove(slot)
            if pinned(slot):
                aside.append(slot)
            else:
                victim = slot
                self._age = self._heap.priority(slot)
        for slot in aside:
            self._heap.put_back(slot)
        return victim

    def nbytes(self) -> int:
        return self._heap.nbytes() + held(self._uses, self._weight)
