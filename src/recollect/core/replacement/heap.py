"""A binary heap of slots whose priorities may change: 28 bytes per entry, no stale items."""

from __future__ import annotations

from array import array

from recollect.core.replacement.base import NONE, held, widen


class SlotHeap:
    """The slot of lowest priority first; among equals, the one whose priority was set first."""

    def __init__(self) -> None:
        self._heap = array("i")
        self._at = array("i")  # slot -> its index in the heap, NONE when it is out
        self._priority = array("d")
        self._turn = array("Q")
        self._turns = 0

    def __len__(self) -> int:
        return len(self._heap)

    def set(self, slot: int, priority: float) -> None:
        """Enter a slot that is out. O(log n)."""
        for column in (self._at, self._priority, self._turn):
            widen(column, slot)
        self._turns += 1
        self._priority[slot], self._turn[slot] = priority, self._turns
        self._heap.append(slot)
        self._up(len(self._heap) - 1)

    def priority(self, slot: int) -> float:
        """The priority of a slot, also after it went out."""
        return self._priority[slot]

    def remove(self, slot: int) -> None:
        """Take a slot out. O(log n)."""
        hole = self._at[slot]
        last = self._heap.pop()
        self._at[slot] = NONE
        if last != slot:
            self._heap[hole] = last
            self._at[last] = hole
            self._up(hole)
            self._down(self._at[last])

    def lowest(self) -> int:
        """The slot that goes first, NONE when empty."""
        return self._heap[0] if self._heap else NONE

    def put_back(self, slot: int) -> None:
        """Enter a slot that was taken out, with the priority and the turn it had."""
        self._heap.append(slot)
        self._up(len(self._heap) - 1)

    def nbytes(self) -> int:
        """Memory held."""
        return held(self._heap, self._at, self._priority, self._turn)

    def _before(self, a: int, b: int) -> bool:
        pa, pb = self._priority[a], self._priority[b]
        return pa < pb or (pa == pb and self._turn[a] < self._turn[b])

    def _up(self, i: int) -> None:
        heap, at = self._heap, self._at
        slot = heap[i]
        while i and self._before(slot, heap[(i - 1) // 2]):
            heap[i] = heap[(i - 1) // 2]
            at[heap[i]] = i
            i = (i - 1) // 2
        heap[i] = slot
        at[slot] = i

    def _down(self, i: int) -> None:
        heap, at, end = self._heap, self._at, len(self._heap)
        slot = heap[i]
        while (child := 2 * i + 1) < end:
            if child + 1 < end and self._before(heap[child + 1], heap[child]):
                child += 1
            if not self._before(heap[child], slot):
                break
            heap[i] = heap[child]
            at[heap[i]] = i
            i = child
        heap[i] = slot
        at[slot] = i
