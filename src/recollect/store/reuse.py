"""How often what was seen comes back, learned from what comes back, whether it was stored or not.

Where prompts do not return, storing them is a loss. Keys are counted by how often they were seen;
of each count, the share that is seen once more is measured.
"""

from __future__ import annotations

from collections.abc import Iterable

LEVELS = 4  # sightings; more count as this many
PRIOR = 16.0  # imagined sightings per level, half of which came back
CERTAIN = 0.99  # no measured share counts as more


class Sightings:
    """Keys by how often they were seen, and what that says about their future. Not thread-safe.

    Args:
        most: keys remembered; those not seen for longest are forgotten first.
        memory: sightings after which a sighting counts 1/e.
    """

    def __init__(self, most: int = 250_000, memory: float = 8192.0) -> None:
        self._most, self._fade = most, 1 - 1 / memory
        self._times: dict[bytes, int] = {}
        self._seen = [PRIOR] * (LEVELS + 1)  # level -> sightings that led to it
        self._back = [PRIOR / 2] * (LEVELS + 1)  # level -> those that were seen once more

    def __len__(self) -> int:
        return len(self._times)

    def add(self, keys: Iterable[bytes]) -> None:
        """Requests asked for these."""
        for key in keys:
            times = self._times.pop(key, 0)  # and to the end: the first are forgotten first
            self._back[times] += 1
            level = self._times[key] = min(times + 1, LEVELS)
            self._seen[level] = self._seen[level] * self._fade + 1
            self._back[level] *= self._fade
        while len(self._times) > self._most:
            del self._times[next(iter(self._times))]

    def times(self, key: bytes) -> int:
        """How often a key was seen, up to `LEVELS`; 0 for one that is not remembered."""
        return self._times.get(key, 0)

    def odds(self, times: int) -> float:
        """Odds p / (1 - p) that a key seen so many times will be seen again.

        They are what a write has to be compared with: writing now rather than at the next sighting,
        if there is one, gains p times what a reuse saves, and costs 1 - p times the write.
        """
        level = min(max(times, 1), LEVELS)
        share = min(self._back[level] / self._seen[level], CERTAIN)
        return share / (1 - share)
