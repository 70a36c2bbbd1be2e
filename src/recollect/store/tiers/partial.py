"""Entries whose bytes come when they are asked for, range by range, from tiers that can do that.

A reader that needs the first layer of every chunk first does not have to wait for all layers of the
first chunk.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from recollect.errors import StoreError
from recollect.store.tiers.base import Lease

if TYPE_CHECKING:
    from typing_extensions import Buffer

BLOCK = 1 << 16  # bytes are asked for in multiples of this


class PartialLease(Lease):
    """A lease whose `data` holds zeros where `require` has not been called.

    Args:
        nbytes: of the whole entry.
        read: bytes ``start`` to ``stop`` of the entry; raises StoreError.
        ended: as for a `Lease`.

    Attributes:
        observe: told the number of bytes and the seconds of every read.
        finished: told the bytes, at the release of a lease that got all of them.
    """

    __slots__ = ("_lock", "_missing", "_read", "_room", "finished", "observe")

    def __init__(
        self,
        nbytes: int,
        read: Callable[[int, int], Buffer],
        ended: Callable[[], None] | None = None,
    ) -> None:
        self._room = bytearray(nbytes)
        super().__init__(self._room, ended)
        self._read = read
        self._missing = np.ones(-(-nbytes // BLOCK), bool)
        self._lock = threading.Lock()
        self.observe: Callable[[int, float], None] = lambda nbytes, seconds: None
        self.finished: Callable[[memoryview], None] = lambda data: None

    def require(self, start: int, stop: int) -> None:
        """Have bytes `start` to `stop` at hand. Raises StoreError where they cannot be had."""
        first, last = start // BLOCK, -(-stop // BLOCK)
        with self._lock:
            while (wanted := np.flatnonzero(self._missing[first:last])).size:
                begin = first + int(wanted[0])
                run = int((np.diff(wanted, append=-1) != 1).argmax()) + 1  # without a gap
                self._fetch(begin, begin + run)

    def watch(self, failed: Callable[[StoreError], None]) -> None:
        """Tell of every read that fails."""
        read = self._read

        def watched(start: int, stop: int) -> Buffer:
            try:
                return read(start, stop)
            except StoreError as error:
                failed(error)
                raise

        self._read = watched

    def release(self) -> None:
        if self._view is not None and not self._missing.any():
            self.finished(self._view)
        super().release()

    def _fetch(self, first: int, last: int) -> None:
        start, stop = first * BLOCK, min(last * BLOCK, self.nbytes)
        began = time.perf_counter()
        data = memoryview(self._read(start, stop)).cast("B")
        if len(data) != stop - start:
            raise StoreError(f"{len(data)} bytes of an entry came where {stop - start} should")
        self._room[start:stop] = data
        self._missing[first:last] = False
        self.observe(stop - start, time.perf_counter() - began)
