"""What transfers and prefills take, learned from those that happened.

Both are sums of a few terms with non-negative prices: a transfer costs a latency and so much per
byte; a prefill costs a start, so much per token, and so much per pair of tokens that attend. Prices
are fitted by least squares of the relative error. The past fades observation by observation: slowly
while predictions hold, fast when they no longer do; a single hiccup hardly counts.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import combinations

import numpy as np

RIDGE = 1e-9  # so weak that it only decides what the observations leave open
# A time SURPRISE times off the prediction is a hiccup: it counts as at most HICCUP times off. The
# second one in a row means that the world has changed: past times are taken to have changed as much
# and keep FORGET of their weight.
SURPRISE, HICCUP, FORGET = 2.0, 4.0, 0.25


class FadingFit:
    """seconds = sum of price_i * amount_i with prices >= 0, from noisy observations.

    With non-negative prices, what was never seen lies between "all of it was the fixed part" and
    "all of it grows": extrapolation is bounded even when all observations are alike.

    Args:
        prior: (F,) prices > 0 before anything was seen.
        firmness: (F,) how much each price resists where observations cannot tell prices apart.
        memory: observations after which an observation counts 1/e.
    """

    def __init__(
        self, prior: Sequence[float], firmness: Sequence[float], memory: float = 16.0
    ) -> None:
        self._prior = np.array(prior, float)
        self._firmness = np.array(firmness, float)
        self._fade = float(np.exp(-1 / memory))
        self._squares = np.zeros((len(prior), len(prior)))
        self._sums = np.zeros(len(prior))
        self._prices = tuple(float(price) for price in prior)
        self._stale = False
        self._surprises = 0  # in a row; negative: faster than predicted
        self._lock = threading.Lock()
        self.observations = 0

    def observe(self, amounts: Sequence[float], seconds: float) -> None:
        """Learn that `amounts` (F,) took `seconds`. What took no time teaches nothing."""
        if seconds <= 0:
            return
        expected = self.predict(*amounts) if self.observations else seconds
        change = 1.0
        if self.observations > 1 and self._surprised(seconds / expected):
            if abs(self._surprises) > 1:
                change, expected = seconds / expected, seconds
            else:
                seconds = min(max(seconds, expected / HICCUP), expected * HICCUP)
        fade = self._fade if change == 1.0 else FORGET
        row = np.array(amounts, float) * self._prior / expected
        with self._lock:
            self._squares = self._squares * (fade / change**2) + np.outer(row, row)
            self._sums = self._sums * (fade / change) + row * (seconds / expected)
            self.observations += 1
            self._stale = True

    @property
    def prices(self) -> tuple[float, ...]:
        """(F,) seconds per unit of each amount."""
        if self._stale:
            with self._lock:
                ridge = RIDGE * self._squares.trace() * self._firmness
                in_priors = non_negative_fit(self._squares + np.diag(ridge), self._sums + ridge)
                self._prices = tuple((in_priors * self._prior).tolist())
                self._stale = False
        return self._prices

    def predict(self, *amounts: float) -> float:
        """Seconds."""
        return sum(p * a for p, a in zip(self.prices, amounts, strict=True))

    def _surprised(self, ratio: float) -> bool:
        """Count how often in a row times were off, and in the same direction."""
        if 1 / SURPRISE <= ratio <= SURPRISE:
            self._surprises = 0
        elif ratio > SURPRISE:
            self._surprises = max(self._surprises, 0) + 1
        else:
            self._surprises = min(self._surprises, 0) - 1
        return self._surprises != 0


def non_negative_fit(squares: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """The x >= 0 (F,) least in x @ squares @ x - 2 x @ sums; all supports are tried (F is 2 or 3).

    `squares` (F, F) is positive definite.
    """
    best, least = np.zeros(len(sums)), 0.0
    for size in range(1, len(sums) + 1):
        for support in map(list, combinations(range(len(sums)), size)):
            part = np.linalg.solve(squares[np.ix_(support, support)], sums[support])
            loss = -float(part @ sums[support])  # at the optimum of this support
            if (part >= 0).all() and loss < least:
                least, best = loss, np.zeros(len(sums))
                best[support] = part
    return best


class LinkCost:
    """Seconds to move bytes from or to one tier.

    Args:
        latency: seconds for no bytes at all, as a first guess.
        bandwidth: bytes per second, as a first guess.
    """

    def __init__(self, latency: float = 1e-3, bandwidth: float = 500e6) -> None:
        # Where the two cannot be told apart, bandwidths differ more than latencies do.
        self._fit = FadingFit((latency, 1 / bandwidth), firmness=(100.0, 1.0))

    def observe(self, nbytes: int, seconds: float) -> None:
        """Learn from a transfer."""
        self._fit.observe((1.0, nbytes), seconds)

    def predict(self, nbytes: int) -> float:
        """Seconds for one transfer."""
        return self._fit.predict(1.0, nbytes)

    @property
    def prices(self) -> tuple[float, ...]:
        """Seconds per transfer, and per byte."""
        return self._fit.prices

    @property
    def latency(self) -> float:
        """Seconds."""
        return self._fit.prices[0]

    @property
    def bandwidth(self) -> float:
        """Bytes per second; infinite where size was never seen to matter."""
        per_byte = self._fit.prices[1]
        return 1 / per_byte if per_byte else float("inf")

    @property
    def observations(self) -> int:
        """How many transfers were seen."""
        return self._fit.observations


class PrefillCost:
    """Seconds to compute tokens behind a prefix: a start, a price per token, one per pair."""

    def __init__(self) -> None:
        self._fit = FadingFit((1e-3, 1e-4, 1e-9), firmness=(1.0, 1.0, 1.0))

    def observe(self, tokens: int, seconds: float, prefix: int = 0) -> None:
        """Learn from a prefill of `tokens` behind `prefix` tokens."""
        self.observe_batch(tokens, pairs(tokens, prefix), seconds)

    def observe_batch(self, tokens: int, pairs: float, seconds: float) -> None:
        """Learn from a forward of several prompts: sums of their `tokens` and `pairs`."""
        if tokens > 0:
            self._fit.observe((1.0, tokens, pairs), seconds)

    def predict(self, tokens: int, prefix: int = 0) -> float:
        """Seconds; 0 for no tokens."""
        if tokens <= 0:
            return 0.0
        return self._fit.predict(1.0, tokens, pairs(tokens, prefix))

    @property
    def observations(self) -> int:
        """How many prefills were seen."""
        return self._fit.observations


def pairs(tokens: int, prefix: int = 0) -> float:
    """How many pairs of tokens attend when `tokens` are computed behind `prefix`."""
    return tokens * (prefix + (tokens + 1) / 2)
