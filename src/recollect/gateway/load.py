"""How loaded an upstream is, from 0 to 1, by what the gateway sees of it.

The larger of two shares: requests in flight of what it can take, and the smoothed time to the
first byte of what is too long. Categories whose errors are cheap relax with it.
"""

from __future__ import annotations


class Load:
    """One upstream's load.

    Args:
        seconds: time to the first byte that counts as fully loaded, or None.
        requests: requests in flight that count as fully loaded, or None.
        weight: of the newest time in the moving average.
    """

    def __init__(
        self, seconds: float | None = None, requests: int | None = None, weight: float = 0.1
    ) -> None:
        self._seconds, self._requests, self._weight = seconds, requests, weight
        self._average: float | None = None
        self.in_flight = 0

    def learn(self, seconds: float) -> None:
        """An answer's first byte took so long."""
        average = seconds if self._average is None else self._average
        self._average = average + self._weight * (seconds - average)

    def now(self) -> float:
        """The load."""
        shares = [0.0]
        if self._requests:
            shares.append(self.in_flight / self._requests)
        # With nothing in flight the average is history, not load.
        if self._seconds and self._average is not None and self.in_flight:
            shares.append(self._average / self._seconds)
        return min(1.0, max(shares))
