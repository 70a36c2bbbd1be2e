"""A deadline and a circuit breaker around a backend that lives behind a network.

A request to a model must not wait for its cache: what does not answer within the deadline counts
as down, and is left alone until a pause has passed; then one call tries again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from recollect.answers.backends.base import Backend, Denied, Filter, Observation, Unreachable
from recollect.answers.entry import Entry
from recollect.errors import StoreError

log = logging.getLogger("recollect.answers")

T = TypeVar("T")

DEADLINE = 0.045  # seconds a lookup or a write may take
PATIENCE = 30.0  # seconds for scans and deletions, which people ask for
OPENING = 2.0  # seconds for the first connection
PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0)  # seconds to leave a place alone, after each failure in a row
WORKERS = 16


class GuardedBackend(Backend):
    """The backend inside, or Unreachable in time.

    Args:
        inside: the backend; its calls run in threads of this object.
        deadline: seconds a lookup or a write may take.
        required: True: raise when the place cannot be used now. None: only when it denies access,
            for it will not come up by itself. False: in neither case.
        ticks: a monotonic clock in seconds.

    Raises StoreError when the place can be reached and holds a newer schema, and as `required`
    says.
    """

    def __init__(
        self,
        inside: Backend,
        *,
        deadline: float = DEADLINE,
        required: bool | None = None,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self.inside, self.name = inside, inside.name
        self._deadline, self._ticks = deadline, ticks
        self._workers = _Workers(f"recollect-{self.name}")
        self._lock = threading.Lock()
        self._failures, self._closed_until = 0, 0.0
        try:
            self._call(inside.ping, OPENING)
        except (Unreachable, Denied) as error:
            if required or (required is None and isinstance(error, Denied)):
                raise
            log.warning("%s; until it can be used, nothing is served from it or stored", error)

    @property
    def down(self) -> bool:
        """Whether calls are refused at once for now."""
        return self._ticks() < self._closed_until

    def add(self, entry: Entry) -> int:
        return self._call(lambda: self.inside.add(entry))

    def get(self, entry_id: int) -> Entry | None:
        return self._call(lambda: self.inside.get(entry_id))

    def all_exact(self, partition: Sequence[str], exact_fp: bytes) -> list[Entry]:
        return self._call(lambda: self.inside.all_exact(partition, exact_fp))

    def scan(self, which: Filter | None = None, *, after: int = 0) -> Iterator[Entry]:
        return iter(self._call(lambda: list(self.inside.scan(which, after=after)), PATIENCE))

    def delete(self, ids: Iterable[int]) -> list[int]:
        wanted = list(ids)
        return self._call(lambda: self.inside.delete(wanted), PATIENCE)

    def set_status(self, entry_id: int, status: str) -> bool:
        return self._call(lambda: self.inside.set_status(entry_id, status))

    def touch(self, entry_id: int, now: float) -> None:
        self._call(lambda: self.inside.touch(entry_id, now))

    def least_used(self, count: int, category: str | None = None) -> list[int]:
        return self._call(lambda: self.inside.least_used(count, category))

    def count(self, category: str | None = None) -> int:
        return self._call(lambda: self.inside.count(category))

    def observe(self, entry_id: int, observation: Observation) -> None:
        self._call(lambda: self.inside.observe(entry_id, observation))

    def observations(self, entry_id: int) -> list[Observation]:
        return self._call(lambda: self.inside.observations(entry_id))

    def secret(self) -> bytes:
        return self._call(self.inside.secret)

    def close(self) -> None:
        with suppress(StoreError, Late):  # a place that is down cannot be told
            self._workers.submit(self.inside.close).result(OPENING)
        self._workers.stop()

    def _call(self, ask: Callable[[], T], deadline: float = 0.0) -> T:
        with self._lock:
            if self._ticks() < self._closed_until:
                raise Unreachable(f"the {self.name} store is down; it is tried again shortly")
            if self._failures:  # one caller tries, the others are refused meanwhile
                self._pause()
        try:
            answer = self._workers.submit(ask).result(deadline or self._deadline)
        except (Unreachable, Denied, Late) as error:
            with self._lock:
                self._failures += 1
                self._pause()
            if isinstance(error, Denied):
                raise
            told = "too late" if isinstance(error, Late) else error
            raise Unreachable(f"the {self.name} store does not answer: {told}") from error
        with self._lock:
            self._failures, self._closed_until = 0, 0.0
        return answer

    def _pause(self) -> None:
        pause = PAUSES[min(self._failures, len(PAUSES)) - 1]
        self._closed_until = self._ticks() + pause


class _Workers:
    """Daemon threads, unlike ThreadPoolExecutor's: one that hangs does not keep a process alive."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads, self._busy = 0, 0

    def submit(self, ask: Callable[[], T]) -> Future[T]:
        answer: Future[T] = Future()
        with self._lock:
            self._busy += 1
            start = self._busy > self._threads and self._threads < WORKERS
            self._threads += start
        if start:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        self._waiting.put((answer, ask))
        return answer

    def stop(self) -> None:
        for _ in range(self._threads):
            self._waiting.put(None)

    def _work(self) -> None:
        while (task := self._waiting.get()) is not None:
            answer, ask = task
            try:
                answer.set_result(ask())
            except BaseException as error:
                answer.set_exception(error)
            with self._lock:
                self._busy -= 1
