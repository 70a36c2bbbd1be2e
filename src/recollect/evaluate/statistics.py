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
        cases: number of values.
    """

    mean: float
    low: float
    high: float
    cases: int


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
    array = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(0).integers(0, len(array), size=(draws, len(array)))
    low, high = np.percentile(array[picks].mean(axis=1), [2.5, 97.5])
    return Estimate(float(array.mean()), float(low), float(high), len(array))


def estimate(values: Sequence[float], *, share: bool = True) -> Estimate:
    """Wilson's interval for right-or-wrong values, the bootstrap's for graded ones.

    Args:
        share: whether values are shares in [0, 1] at all.
    """
    if share and all(value in (0.0, 1.0) for value in values):
        return wilson(round(sum(values)), len(values))
    return bootstrap(values)


def average(parts: Sequence[Estimate]) -> Estimate:
    """Mean of independent estimates that weigh alike, e.g. of several tasks.

    Their distances to the mean add up in squares (MOVER, Zou and Donner 2008), so that an average
    of intervals which are honest at 0 and 1 is honest there too.
    """
    mean = sum(part.mean for part in parts) / len(parts)
    below = math.sqrt(sum((part.mean - part.low) ** 2 for part in parts)) / len(parts)
    above = math.sqrt(sum((part.high - part.mean) ** 2 for part in parts)) / len(parts)
    return Estimate(mean, mean - below, mean + above, sum(part.cases for part in parts))
