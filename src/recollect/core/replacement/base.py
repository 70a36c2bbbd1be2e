"""What a replacement policy is: it learns what enters, is used and leaves, and names a victim.

A policy knows entries by *slot*, a small integer that their owner hands out and reuses, so that it
can keep its state in arrays of a few bytes per entry. It holds no entry and counts no bytes of its
own accord: its owner asks for victims until there is room.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator

NONE = -1


def nobody(slot: int) -> bool:
    """No entry is pinned."""
    return False


class Replacement(ABC):
    """Which entry goes next. Every operation is O(1), or O(log n) where a class says so.

    For a miss the owner calls `place`, then `evict` until there is room, then `admit` with the
    place; for a hit `touch`; for a deletion `forget`.

    Args:
        capacity: bytes there is room for; some policies split it.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity

    def place(self, value: int, size: int) -> int:
        """Where an entry of `size` bytes with key hash `value` (64 bits) will go.

        Asked once before room is made, since that may change the answer. The number means
        something to `admit` alone.
        """
        return 0

    @abstractmethod
    def admit(self, slot: int, value: int, size: int, cost: float = 1.0, place: int = 0) -> None:
        """A new entry: key hash, size in bytes, cost of computing it again in seconds."""

    @abstractmethod
    def touch(self, slot: int) -> None:
        """An entry was used."""

    @abstractmethod
    def forget(self, slot: int) -> None:
        """An entry was deleted by its owner."""

    @abstractmethod
    def evict(self, pinned: Callable[[int], bool] = nobody) -> int | None:
        """Choose a victim that is not pinned and forget it; None when there is none."""

    @abstractmethod
    def nbytes(self) -> int:
        """Memory the policy's own state takes."""


class Links:
    """Doubly linked lists through slots: two arrays of 4 bytes per slot, shared by all lists."""

    def __init__(self) -> None:
        self.newer = array("i")
        self.older = array("i")

    def hold(self, slot: int) -> None:
        """Make room for a slot."""
        widen(self.newer, slot)
        widen(self.older, slot)

    def nbytes(self) -> int:
        """Memory held."""
        return held(self.newer, self.older)


class Queue:
    """One list of `links`, from the oldest to the newest end. A slot is in one list at most."""

    def __init__(self, links: Links) -> None:
        self.links = links
        self.oldest = self.newest = NONE

    def push(self, slot: int) -> None:
        """Enter at the newest end."""
        newer, older = self.links.newer, self.links.older
        newer[slot], older[slot] = NONE, self.newest
        if self.newest == NONE:
            self.oldest = slot
        else:
            newer[self.newest] = slot
        self.newest = slot

    def remove(self, slot: int) -> None:
        """Take out, wherever it is."""
        newer, older = self.links.newer, self.links.older
        after, before = newer[slot], older[slot]
        if before == NONE:
            self.oldest = after
        else:
            newer[before] = after
        if after == NONE:
            self.newest = before
        else:
            older[after] = before

    def __bool__(self) -> bool:
        return self.oldest != NONE

    def __iter__(self) -> Iterator[int]:
        """From oldest to newest; the slot just yielded may be removed."""
        slot = self.oldest
        while slot != NONE:
            after = self.links.newer[slot]
            yield slot
            slot = after


def widen(column: array, slot: int) -> None:
    """Make `column[slot]` exist: grow by a quarter, filled with zeros."""
    if slot >= len(column):
        more = slot + 1 - len(column) + len(column) // 4 + 64
        column.frombytes(bytes(more * column.itemsize))


def held(*columns: array) -> int:
    """Memory arrays take."""
    return sum(len(column) * column.itemsize for column in columns)
