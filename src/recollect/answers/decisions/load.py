"""When the model behind the cache is overloaded, a slightly worse answer beats a late one.

Thresholds sink and times to live grow with the load, for categories whose errors are cheap, and
never past a floor (category-aware semantic caching, 2025).
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

from recollect.errors import RecipeError


def relaxed_similarity(min_similarity: float, drop: float, floor: float, load: float) -> float:
    """max(floor, min_similarity - drop * load), for a load clipped to [0, 1].

    Never above `min_similarity`: a floor higher than the threshold leaves the threshold.
    """
    return min(min_similarity, max(floor, min_similarity - drop * _clipped(load)))


def relaxed_ttl(ttl: float, growth: float, load: float) -> float:
    """ttl * (1 + growth * load) in seconds, for a load clipped to [0, 1]."""
    return ttl * (1 + growth * _clipped(load))


@dataclass
class LoadMeter:
    """The load of one model from its latencies: how far their smoothed mean is over the target.

    0 up to `target` seconds, 1 from `limit` on, linear between. The mean is exponential in time:
    a latency's weight halves every `half_life` seconds.
    """

    target: float
    limit: float
    half_life: float = 30.0

    def __post_init__(self) -> None:
        if not 0 < self.target < self.limit or not self.half_life > 0:
            raise RecipeError("a load meter needs 0 < target < limit and half_life > 0, in seconds")
        self._mean = self._at = 0.0
        self._known = False
        self._lock = threading.Lock()

    def record(self, latency: float, now: float) -> None:
        """A call that ended at `now` took `latency` seconds."""
        with self._lock:
            if not self._known:
                self._mean, self._at, self._known = latency, now, True
                return
            elapsed = max(0.0, now - self._at)
            keep = 0.5 ** (elapsed / self.half_life)
            # Calls that end together still count: at least a tenth of the newest is taken.
            keep = min(keep, 0.9)
            self._mean += (1 - keep) * (latency - self._mean)
            self._at = max(self._at, now)

    def load(self, now: float) -> float:
        """Between 0 and 1. Without news an old overload fades by the same half-life."""
        with self._lock:
            if not self._known:
                return 0.0
            excess = (self._mean - self.target) / (self.limit - self.target)
            return _clipped(excess) * 0.5 ** (max(0.0, now - self._at) / self.half_life)


def _clipped(load: float) -> float:
    return 0.0 if math.isnan(load) else min(1.0, max(0.0, load))
