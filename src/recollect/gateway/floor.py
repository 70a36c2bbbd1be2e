"""A floor under the time of hits: each takes as long as some recent miss took.

Without it the time of an answer tells whether somebody has asked before. Times of misses are kept
by kind of request, and a hit waits for one drawn at random, to the first byte and to the last, so
that the two distributions are the same.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Hashable
from typing import NamedTuple


class Times(NamedTuple):
    """Seconds to the first byte of an answer and to its last."""

    first: float
    last: float


class Floor:
    """Times of recent misses.

    Args:
        kept: misses remembered by kind.
        rng: what draws.
    """

    def __init__(self, kept: int = 256, rng: random.Random | None = None) -> None:
        self._kept = kept
        self._rng = rng or random.SystemRandom()
        self._misses: dict[Hashable, deque[Times]] = {}

    def learn(self, kind: Hashable, times: Times) -> None:
        """A miss of this kind took so long."""
        if kind not in self._misses and len(self._misses) >= 1024:
            self._misses.pop(next(iter(self._misses)))
        self._misses.setdefault(kind, deque(maxlen=self._kept)).append(times)

    def draw(self, kind: Hashable) -> Times | None:
        """How long a hit of this kind must take; None before any miss was seen.

        Without a miss to imitate, a hit of this kind must not be served.
        """
        found = self._misses.get(kind)
        return self._rng.choice(found) if found else None
