"""The half of a reservation that is the same on every tier: bytes are counted, and it ends once."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING

from recollect.errors import StoreError
from recollect.store.tiers.base import Reservation

if TYPE_CHECKING:
    from typing_extensions import Buffer


class CountedReservation(Reservation):
    """Exactly the bytes that were reserved, then a commit; anything else ends without an entry.

    Tiers fill in where bytes go (`_store`), how the entry becomes visible (`_publish`), what is
    given back without a commit (`_discard`), and what ends with either (`_end`).
    """

    def __init__(self, nbytes: int) -> None:
        self._nbytes, self._written = nbytes, 0
        self._ended = False

    def write(self, data: Buffer) -> None:
        self._must_be_open()
        view = memoryview(data)
        if self._written + view.nbytes > self._nbytes:
            raise StoreError(f"more than the {self._nbytes} bytes that were reserved")
        if view.nbytes:
            self._store(view.cast("B"), self._written)
            self._written += view.nbytes

    def commit(self) -> None:
        self._must_be_open()
        missing = self._nbytes - self._written
        if missing:
            self.abort()
            raise StoreError(f"{missing} of the {self._nbytes} bytes reserved were never written")
        try:
            self._publish()
        except BaseException:
            self.abort()
            raise
        self._end()

    def abort(self) -> None:
        if not self._ended:
            self._end()
            self._discard()

    def __del__(self) -> None:
        with suppress(Exception):  # of one that was never made whole, too
            self.abort()

    def _must_be_open(self) -> None:
        if self._ended:
            raise StoreError("this reservation has ended; reserve again")

    def _end(self) -> None:
        self._ended = True

    @abstractmethod
    def _store(self, view: memoryview, at: int) -> None: ...

    @abstractmethod
    def _publish(self) -> None: ...

    @abstractmethod
    def _discard(self) -> None: ...
