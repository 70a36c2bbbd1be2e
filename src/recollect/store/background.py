"""Work off the critical path: write-behind, promotions and prefetch, by a few threads.

What waits is bounded in bytes and in number. When that is full, new work is dropped rather than
anyone made to wait: a copy that was not made costs a later miss, a full queue would cost a request.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol


class Background(Protocol):
    """Who does work off the critical path."""

    def submit(self, work: Callable[[], None], nbytes: int) -> bool:
        """Do it soon, in the order of submission. False: too much is waiting; it will not be done.

        `nbytes` is what the work keeps in memory until it is done.
        """

    def flush(self) -> object:
        """Wait until everything submitted is done."""

    def close(self) -> object:
        """Flush, and stop. Idempotent."""


class Inline:
    """Does the work at once, in the caller's time."""

    def submit(self, work: Callable[[], None], nbytes: int) -> bool:
        work()
        return True

    def flush(self) -> None: ...

    def close(self) -> None: ...


class BackgroundThreads:
    """A bounded queue and the threads that empty it, first come first served.

    Work may end by an exception: it is counted and the next one is taken up. Threads start with
    the first work and do not keep the process alive; `close` lets them finish what was accepted.

    Args:
        threads: how many work at once.
        nbytes: bytes that may wait or be under way; one work larger than this is taken alone.
        works: how many may wait.
    """

    def __init__(self, threads: int = 2, nbytes: int = 256 << 20, works: int = 4096) -> None:
        if threads < 1:
            raise ValueError(f"{threads} threads do no work; give at least 1")
        self._limit = threads
        self._most_bytes, self._most_works = nbytes, works
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Callable[[], None], int]] = deque()
        self._threads: list[threading.Thread] = []
        self._busy = self._bytes = 0
        self._closed = False
        self.done = self.dropped = self.failed = 0

    @property
    def waiting(self) -> int:
        """Works accepted and not yet begun."""
        return len(self._waiting)

    @property
    def nbytes(self) -> int:
        """Bytes that works waiting or under way keep in memory."""
        return self._bytes

    def submit(self, work: Callable[[], None], nbytes: int = 0) -> bool:
        """Do it soon. False: too much is waiting, or `close` was called; it will not be done."""
        with self._changed:
            too_many = len(self._waiting) >= self._most_works
            too_large = self._bytes > 0 and self._bytes + nbytes > self._most_bytes
            if self._closed or too_many or too_large:
                self.dropped += 1
                return False
            self._waiting.append((work, nbytes))
            self._bytes += nbytes
            if self._busy + len(self._waiting) > len(self._threads) < self._limit:
                self._start_thread()
            self._changed.notify_all()  # those who flush wait here too
        return True

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything accepted is done. False: it took longer than `timeout` seconds.

        Called by a work itself, it returns at once: that work is not done yet.
        """
        if threading.current_thread() in self._threads:
            return False
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, timeout)

    def close(self, timeout: float | None = 30.0) -> None:
        """Take nothing more, finish what was accepted within `timeout` seconds, drop the rest."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if not self.flush(timeout):
            with self._changed:
                self.dropped += len(self._waiting)
                self._bytes -= sum(nbytes for _, nbytes in self._waiting)
                self._waiting.clear()
                self._changed.notify_all()

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._run, name="recollect-background", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                work, nbytes = self._waiting.popleft()
                self._busy += 1
            try:
                work()
                failed = 0
            except Exception:
                failed = 1
            del work  # what it holds (a lease) ends before anyone hears that it is done
            with self._changed:
                self.failed += failed
                self.done += 1 - failed
                self._busy -= 1
                self._bytes -= nbytes
                self._changed.notify_all()
