"""A tier that may fail without anyone noticing: a circuit breaker around it.

After a failure the tier is left alone for a while and answers "miss" and "no room" at once; then a
background thread tries it again. A dead Redis costs one timeout, not one per request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from recollect.errors import StoreError
from recollect.store.tiers.base import NO_FACTS, Facts, Lease, Reservation, Tier, TierStat
from recollect.store.tiers.partial import PartialLease

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")
NOBODY = bytes(32)  # a key that no digest has


class Denied(StoreError):
    """The tier answers, and refuses us: waiting will not help, the configuration must change."""


class Unreachable(StoreError):
    """The tier does not answer, or not in time: waiting may help."""


def in_thread(task: Callable[[], None]) -> None:
    """Run `task` in a thread of its own that does not keep the process alive."""
    threading.Thread(target=task, name="recollect-retry", daemon=True).start()


class GuardedTier(Tier):
    """Fails open: what goes wrong below is a miss here.

    Args:
        tier: what is guarded.
        fail_open: start even where the tier refuses us (wrong password, wrong encryption key).
        backoff: seconds until the first retry; doubles with every failed one.
        longest: seconds between retries at most.
        clock: seconds, never going back.
        start: runs a retry off the caller's path.

    Raises:
        StoreError: at start, where the tier refuses us and `fail_open` is False. A tier that does
            not answer is not an error: it is retried.
    """

    def __init__(
        self,
        tier: Tier,
        *,
        fail_open: bool = False,
        backoff: float = 0.5,
        longest: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        start: Callable[[Callable[[], None]], None] = in_thread,
    ) -> None:
        self.name = tier.name
        self.tier = tier
        self._backoff, self._longest = backoff, longest
        self._clock, self._start = clock, start
        self._lock = threading.Lock()
        self._failures = 0  # in a row
        self._errors = 0
        self._retry_at = 0.0
        self._open = self._trying = self._closed = False
        self.last_error = ""
        try:
            tier.contains(NOBODY)
        except Denied as error:
            if not fail_open:
                tier.close()
                raise
            self._failed(error)
        except StoreError as error:
            self._failed(error)

    @property
    def available(self) -> bool:
        """Whether requests go through. Where a retry is due, asking starts it."""
        if not self._open:
            return True
        with self._lock:
            due = self._clock() >= self._retry_at and not self._trying and not self._closed
            self._trying = self._trying or due
        if due:
            self._start(self._retry)
        return not self._open

    def reserve(self, key: bytes, nbytes: int, facts: Facts = NO_FACTS) -> Reservation | None:
        inner = self._ask(lambda: self.tier.reserve(key, nbytes, facts), None)
        return None if inner is None else _GuardedReservation(inner, self)

    def get(self, key: bytes) -> Lease | None:
        return self._ask(lambda: self.tier.get(key), None)

    def open(self, key: bytes) -> Lease | None:
        lease = self._ask(lambda: self.tier.open(key), None)
        if isinstance(lease, PartialLease):
            lease.watch(self._failed)
        return lease

    def contains(self, key: bytes) -> bool:
        return self._ask(lambda: self.tier.contains(key), False)

    def leading(self, keys: Sequence[bytes]) -> int:
        return self._ask(lambda: self.tier.leading(keys), 0)

    def delete(self, key: bytes) -> bool:
        return self._ask(lambda: self.tier.delete(key), False)

    def set_aside(self, key: bytes) -> None:
        self._ask(lambda: self.tier.set_aside(key), None)

    def keys(self) -> Iterator[bytes]:
        """The keys; stops early, without an error, where the tier stops answering."""
        if not self.available:
            return
        try:
            yield from self.tier.keys()
        except StoreError as error:
            self._failed(error)

    def stat(self) -> TierStat:
        stat = self._ask(self.tier.stat, TierStat(self.name))
        return replace(stat, errors=stat.errors + self._errors)

    def close(self) -> None:
        self._closed = True
        self.tier.close()

    def _ask(self, call: Callable[[], T], otherwise: T) -> T:
        if not self.available:
            return otherwise
        try:
            answer = call()
        except StoreError as error:
            self._failed(error)
            return otherwise
        self._failures = 0
        return answer

    def _failed(self, error: StoreError) -> None:
        with self._lock:
            wait = min(self._backoff * 2**self._failures, self._longest)
            self._failures = min(self._failures + 1, 30)
            self._errors += 1
            self._retry_at = self._clock() + wait
            self._open = True
            self.last_error = str(error)

    def _retry(self) -> None:
        try:
            self.tier.contains(NOBODY)
        except StoreError as error:
            self._failed(error)
        else:
            self._open = False
        finally:
            self._trying = False


class _GuardedReservation(Reservation):
    """Reports failures to the guard; they still end the write they happen to."""

    def __init__(self, inner: Reservation, guard: GuardedTier) -> None:
        self._inner, self._guard = inner, guard

    def write(self, data: Buffer) -> None:
        self._report(lambda: self._inner.write(data))

    def commit(self) -> None:
        self._report(self._inner.commit)

    def abort(self) -> None:
        self._inner.abort()

    def _report(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Unreachable as error:
            self._guard._failed(error)
            raise
