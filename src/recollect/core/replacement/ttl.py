"""TTL: entries live for a fixed time; what ends first goes first."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator

from recollect.core.replacement.base import Links, Queue, Replacement, held, nobody, widen


class TTL(Replacement):
    """Time to live, from arrival or (`renew`) from the last use.

    Args:
        capacity: bytes; entries that are still alive are evicted when it is full, oldest first.
        seconds: how long an entry lives.
        renew: whether a use starts the time anew.
        clock: seconds; monotonic, so that a changed wall clock ends nothing early.
    """

    def __init__(
        self,
        capacity: int,
        seconds: float = 3600.0,
        renew: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(capacity)
        self.seconds, self.renew, self._clock = seconds, renew, clock
        self._links = Links()
        self._queue = Queue(self._links)  # one time to live for all: order of arrival is of ending
        self._since = array("d")

    def admit(self, slot: int, value: int, size: int, cost: float = 1.0, place: int = 0) -> None:
        self._links.hold(slot)
        widen(self._since, slot)
        self._since[slot] = self._clock()
        self._queue.push(slot)

    def touch(self, slot: int) -> None:
        if self.renew:
            self._since[slot] = self._clock()
            self._queue.remove(slot)
            self._queue.push(slot)

    def forget(self, slot: int) -> None:
        self._queue.remove(slot)

    def expired(self) -> Iterator[int]:
        """Slots whose time is over; each may be forgotten as it is yielded."""
        now = self._clock()
        for slot in self._queue:
            if now - self._since[slot] < self.seconds:
                return
            yield slot

    def evict(self, pinned: Callable[[int], bool] = nobody) -> int | None:
        for slot in self._queue:
            if not pinned(slot):
                self._queue.remove(slot)
                return slot
        return None

    def nbytes(self) -> int:
        return self._links.nbytes() + held(self._since)
