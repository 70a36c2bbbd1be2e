"""Means with the uncertainty they have: intervals over cases and seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_Z = 1.959964  # 95%
_DRAWS = 1000


class Estimate(NamedTuple):
    """A mean with its 95% interval.

    Attributes:
        mean: of the values.
        low, high: ends of the interval.
        count: number of values.
    """

    mean: float
    low: float
    high: float
    count: int


def wilson(right: int, count: int) -> Estimate:
    """Share of right answers, with Wilson's interval: honest for few cases and at 0 and 1."""
    share = right / count
    center = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    spread = share * (1 - share) / count + _Z**2 / (4 * count**2)
    half = _Z * math.sqrt(spread) / (1 + _Z**2 / count)
    return Estimate(share, max(0.0, min(share, center - half)), min(1.0, max(share, center + half)),
                    count)  # fmt: skip


def bootstrap(values: Sequence[float], draws: int = _DRAWS) -> Estimate:
    """Mean of values, with a percentile bootstrap interval; the same values give the same."""
    return stratified([values], draws)


def stratified(groups: Sequence[Sequence[float]], draws: int = _DRAWS) -> Estimate:
    """Mean of the groups' means, cases redrawn inside each group (tasks are not a sample)."""
    arrays = [np.asarray(group, dtype=np.float64) for group in groups if len(group)]
    rng = np.random.default_rng(0)
    total = np.zeros(draws)
    for array in arrays:
        picks = rng.integers(0, len(array), size=(draws, len(array)))
        total += array[picks].mean(axis=1)
    low, high = np.percentile(total / len(arrays), [2.5, 97.5])
    center = float(np.mean([array.mean() for array in arrays]))
    return Estimate(center, float(low), float(high), sum(len(array) for array in arrays))


def estimate(values: Sequence[float]) -> Estimate:
    """Wilson's interval for right-or-wrong values, the bootstrap's for graded ones."""
    if all(value in (0.0, 1.0) for value in values):
        return wilson(round(sum(values)), len(values))
    return bootstrap(values)
