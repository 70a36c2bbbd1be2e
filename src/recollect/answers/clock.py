"""Time for everything that ages: injected, so that tests set it and a wrong wall clock is survived.

Every age and expiry in this room is read from one of these clocks, never from `time` itself.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """Something that says what time it is."""

    def now(self) -> float:
        """Seconds since the epoch."""
        ...


class SystemClock:
    """Wall-clock time that never runs backwards or slower than the processor's own clock.

    When the wall clock is set back, time goes on from where it was: nothing cached lives longer
    because somebody corrected the clock. When it is set forward, time follows at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._time, self._ticks = time.time(), time.monotonic()

    def now(self) -> float:
        with self._lock:
            ticks = time.monotonic()
            self._time = max(time.time(), self._time + (ticks - self._ticks))
            self._ticks = ticks
            return self._time


class ManualClock:
    """A clock that stands still until it is told otherwise: for tests and replayed traces."""

    def __init__(self, start: float = 0.0) -> None:
        self._time = start

    def now(self) -> float:
        return self._time

    def advance(self, seconds: float) -> None:
        """Move on by so many seconds; a negative number sets the clock back."""
        self._time += seconds
