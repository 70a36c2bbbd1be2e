"""What a tier is: bytes by key, all or nothing, wherever they lie.

Everything above (the Store, its background work, the hosts) and every place below (memory, disk,
Redis, object stores) meets in these few classes.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from recollect.errors import StoreError

if TYPE_CHECKING:
    from typing_extensions import Buffer

KEY_BYTES = 32


@dataclass(frozen=True)
class Facts:
    """What is known about an entry besides its bytes; a tier may use it or not.

    Attributes:
        namespace: whose quota it counts against.
        cost_seconds: what computing it again would take; GDSF weighs by it.
        tokens: how many tokens it stands for.
    """

    namespace: str = "default"
    cost_seconds: float = 0.0
    tokens: int = 0


NO_FACTS = Facts()


@dataclass(frozen=True)
class TierStat:
    """A tier at one moment. Bytes are payload; `capacity` is 0 where a tier has no limit.

    `leases` and `writing` are leases and reservations that live now; `corrupt` entries were set
    aside; `refused` reservations found no room; `errors` are failures of the medium.
    """

    name: str
    entries: int = 0
    bytes: int = 0
    capacity: int = 0
    hits: int = 0
    misses: int = 0
    evictions: int = 0
    errors: int = 0
    corrupt: int = 0
    refused: int = 0
    leases: int = 0
    writing: int = 0


class Tier(ABC):
    """Bytes by key; safe to use from several threads.

    States of an entry: absent -> writing -> ready. Ready entries never change. A key is 32 bytes.
    """

    name: str

    @abstractmethod
    def reserve(self, key: bytes, nbytes: int, facts: Facts = NO_FACTS) -> Reservation | None:
        """Room for `nbytes` under `key`. None: no room, or it is there or being written already.

        Raises StoreError where the tier cannot be reached.
        """

    @abstractmethod
    def get(self, key: bytes) -> Lease | None:
        """The entry, or None for a miss. Raises StoreError where the tier cannot be reached."""

    @abstractmethod
    def contains(self, key: bytes) -> bool:
        """Whether the entry is committed and readable. Cheap; counts as no access."""

    @abstractmethod
    def delete(self, key: bytes) -> bool:
        """Forget an entry; bytes under a lease stay readable until it ends. False: not there."""

    @abstractmethod
    def keys(self) -> Iterator[bytes]:
        """The keys of all ready entries, as of some moment during the call."""

    @abstractmethod
    def stat(self) -> TierStat:
        """Counts and sizes now."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections. Idempotent."""

    def open(self, key: bytes) -> Lease | None:
        """`get`, but the bytes may come later: a `PartialLease`, where the tier can read ranges."""
        return self.get(key)

    def peek(self, key: bytes) -> Lease | None:
        """`get` that counts as no access, where the tier can tell the difference."""
        return self.get(key)

    def leading(self, keys: Sequence[bytes]) -> int:
        """How many of the first `keys` are present, up to the first that is not.

        A tier behind a network answers for all of them in one round trip.
        """
        for count, key in enumerate(keys):
            if not self.contains(key):
                return count
        return len(keys)

    def set_aside(self, key: bytes) -> None:
        """Take a corrupt entry out of sight; a tier that can keeps the bytes for inspection."""
        self.delete(key)

    def put(self, key: bytes, data: Buffer, facts: Facts = NO_FACTS) -> bool:
        """Reserve, write and commit in one step. False where there is no room."""
        view = memoryview(data).cast("B")
        reservation = self.reserve(key, view.nbytes, facts)
        if reservation is None:
            return False
        with reservation:
            reservation.write(view)
            reservation.commit()
        return True


class Reservation(ABC):
    """An entry being written: invisible until `commit`, gone without it.

    A context manager: leaving the block without a commit aborts, and so does losing the last
    reference (an implementation sees to that in `__del__`, without taking a lock).
    """

    @abstractmethod
    def write(self, data: Buffer) -> None:
        """Append. Raises StoreError when the total would exceed what was reserved."""

    @abstractmethod
    def commit(self) -> None:
        """Make the entry readable. Raises StoreError when bytes are missing, or it was aborted."""

    @abstractmethod
    def abort(self) -> None:
        """Give the room back. Idempotent, and nothing after a commit."""

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()


class Lease:
    """Read-only bytes of an entry, guaranteed to stay as they are.

    The guarantee lasts as long as any view of the bytes: an array or tensor made from `data`
    without a copy keeps the entry in its place even after `release`, so late readers never see
    another entry's bytes.

    Args:
        data: the bytes; kept alive, and not copied.
        ended: called once, when `release` was called and no view of the bytes is left; in any
            thread, wherever the last view dies, so it must take no lock.

    Attributes:
        nbytes: how many bytes these are.
        tier: name of the tier they came from, where a Store says so.
    """

    __slots__ = ("__weakref__", "_view", "nbytes", "tier")

    def __init__(self, data: Buffer, ended: Callable[[], None] | None = None) -> None:
        # An array of its own for each lease: every view of the bytes refers to it, so that its end
        # is the end of all of them.
        view = memoryview(data)
        owner = np.frombuffer(view, np.uint8) if view.nbytes else np.empty(0, np.uint8)
        owner.flags.writeable = False
        self.nbytes = owner.nbytes
        self.tier = ""
        self._view: memoryview | None = owner.data
        if ended is not None:
            weakref.finalize(owner, ended).atexit = False

    @property
    def data(self) -> memoryview:
        """The bytes, read-only. Raises StoreError after `release`."""
        if self._view is None:
            raise StoreError("this lease was released; get the entry again")
        return self._view

    def release(self) -> None:
        """Let go. Idempotent."""
        self._view = None

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def check_key(key: bytes) -> None:
    """Raises StoreError for anything but a digest of 32 bytes."""
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        raise StoreError(f"a key is a digest of {KEY_BYTES} bytes; make it with Store.chunk_keys")
