"""Host memory: one arena, reserved once, in which entries lie side by side.

Its pages become resident as they are first used and are never given back, so that a steady cache
writes into warm memory: a fresh buffer for each entry would cost as much as the copy itself.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from recollect.errors import StoreError
from recollect.store.holdings import Claim, ClaimedReservation, Holdings
from recollect.store.index import MISSING
from recollect.store.tiers.base import NO_FACTS, Facts, Lease, Reservation, Tier, TierStat
from recollect.store.tiers.free_space import FreeSpace

SLACK = 1 << 16  # for rounding up to 64 bytes, so that a small tier holds what its capacity says


class HostTier(Tier):
    """Entries in this process's memory. Reads are views of the arena.

    Args:
        capacity: bytes of payload at most, and of memory within 64 KiB.
        replacement, quotas, ttl, clock: see `Holdings`.
    """

    def __init__(
        self,
        capacity: int,
        *,
        replacement: str = "s3fifo",
        quotas: Mapping[str, int] | None = None,
        ttl: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        name: str = "host",
    ) -> None:
        self.name = name
        self._books = Holdings(
            name,
            capacity,
            replacement=replacement,
            quotas=quotas,
            ttl=ttl,
            clock=clock,
            vacate=self._vacate,
        )
        size = capacity + SLACK
        try:
            arena = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError, OverflowError) as error:
            raise StoreError(f"cannot reserve {size} bytes of memory: {error}") from error
        if hasattr(mmap, "MADV_HUGEPAGE"):
            arena.madvise(mmap.MADV_HUGEPAGE)
        self._arena = np.frombuffer(arena, np.uint8)
        self._free = FreeSpace(size)
        self._start = self._books.index.column("Q")

    def reserve(self, key: bytes, nbytes: int, facts: Facts = NO_FACTS) -> Reservation | None:
        books = self._books
        with books.lock:
            claim = books.claim(key, nbytes, facts)
            if claim is None:
                return None
            while (start := self._free.take(nbytes)) is None:  # room, but in pieces
                if not books.evict():
                    books.cancel(claim)
                    books.refused += 1
                    return None
        return _HostReservation(self, claim, start)

    def get(self, key: bytes) -> Lease | None:
        books = self._books
        with books.lock:
            slot = books.find(key)
            if slot == MISSING:
                books.misses += 1
                return None
            books.touch(slot)
            return self._lease(slot)

    def peek(self, key: bytes) -> Lease | None:
        with self._books.lock:
            slot = self._books.find(key)
            return None if slot == MISSING else self._lease(slot)

    def contains(self, key: bytes) -> bool:
        with self._books.lock:
            return self._books.find(key) != MISSING

    def delete(self, key: bytes) -> bool:
        with self._books.lock:
            slot = self._books.find(key)
            if slot == MISSING:
                return False
            self._books.remove(slot)
            self._books.settle()
            return True

    def set_aside(self, key: bytes) -> None:
        with self._books.lock:
            self._books.corrupt += self.delete(key)

    def keys(self) -> Iterator[bytes]:
        index = self._books.index
        with self._books.lock:
            found = [index.key(slot) for slot in index.slots()]
        return iter(found)

    def stat(self) -> TierStat:
        with self._books.lock:
            return self._books.stat()

    def close(self) -> None:
        """Nothing to let go of: the memory goes with the last view of it."""

    def _lease(self, slot: int) -> Lease:
        start = self._start[slot]
        data = self._arena[start : start + self._books.nbytes[slot]].data
        return Lease(data, self._books.pin(slot))

    def _vacate(self, slot: int) -> None:
        self._free.give(self._start[slot], self._books.nbytes[slot])


class _HostReservation(ClaimedReservation):
    def __init__(self, tier: HostTier, claim: Claim, start: int) -> None:
        super().__init__(tier._books, claim)
        self._tier, self._start = tier, start
        self._room = tier._arena[start : start + claim.nbytes]

    def _store(self, view: memoryview, at: int) -> None:
        self._room[at : at + view.nbytes] = np.frombuffer(view, np.uint8)  # lets other threads run

    def _publish(self) -> None:
        with self._books.lock:
            self._tier._start[self._books.admit(self._claim)] = self._start

    def _discard(self) -> None:
        self._books.cancel(self._claim)
        self._tier._free.give(self._start, self._claim.nbytes)
