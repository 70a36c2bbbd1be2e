"""A floor under the time of hits: each takes as long as some recent miss took.

Without it the time of an answer tells whether somebody has asked before. Times of misses are kept
by kind of request, and a hit waits for one drawn at random, to the first byte and to the last, so
that the two distributions are the same.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from typing import NamedTuple


class Times(NamedTuple):
    """Seconds to the first byte of an answer and to its last."""

    first: float
    last: float


class Floor:
    """Times of recent misses.

    Args:
        kept: misses remembered by kind; few, so that a change of load is soon in them.
        rng: what draws.
        ticks, sleep: a monotonic clock in seconds, and what waits by it.
    """

    def __init__(
        self,
        kept: int = 64,
        rng: random.Random | None = None,
        ticks: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._kept = kept
        self._rng = rng or random.SystemRandom()
        self._ticks, self._sleep = ticks, sleep
        self._misses: dict[Hashable, deque[Times]] = {}
        self._late = 0.0  # seconds that waits last too long, on average

    def learn(self, kind: Hashable, times: Times) -> None:
        """A miss of this kind took so long."""
        if kind not in self._misses and len(self._misses) >= 1024:
            self._misses.pop(next(iter(self._misses)))
        self._misses.setdefault(kind, deque(maxlen=self._kept)).append(times)

    async def wait(self, seconds: float) -> None:
        """Wait so long, on average.

        Every wait lasts a little longer than it was asked to, on a busy machine by milliseconds,
        and the times of misses have such delays in them already.
        """
        if seconds <= 0:
            return
        begun = self._ticks()
        await self._sleep(max(0.0, seconds - self._late))
        late = self._ticks() - begun - seconds
        self._late = min(0.05, max(0.0, self._late + 0.1 * late))

    def draw(self, kind: Hashable) -> Times | None:
        """How long a hit of this kind must take; None before any miss was seen.

        Without a miss to imitate, a hit of this kind must not be served.
        """
        found = self._misses.get(kind)
        return self._rng.choice(found) if found else None
