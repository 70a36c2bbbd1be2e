"""A bound on the errors of each entry, learned from its own observations (vCache).

vCache: Verified Semantic Prompt Caching, Schroeder et al. 2025, arXiv 2502.03771; written from the
paper's formulas. With probability 1 - delta a request gets the right answer, if correctness is
logistic in the similarity and whoever compares answers is right.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from recollect.answers.decision import Candidate, Context, Decision, Verdict
from recollect.answers.decisions import logistic
from recollect.errors import RecipeError

SEEDS = ((0.0, False), (1.0, True))
MIN_OBSERVATIONS = 6  # the two seeds included
MAX_OBSERVATIONS = 256
RIDGE = 1e-3
# Variance of t when similarity separates right from wrong, by number of observations.
SEPARATED = {6: 0.0354, 10: 0.0194, 20: 0.0131, 30: 0.0080, 40: 0.0052, 49: 0.0052}
LEVELS = np.linspace(1e-6, 1 - 1e-6, 50)


class Curve(NamedTuple):
    """P(correct | s) = sigmoid(steepness * (s - middle)), and the variance of `middle`."""

    middle: float
    steepness: float
    variance: float


@dataclass(frozen=True)
class Verified:
    """Stage ``decision`` with a promise: at most `delta` of the requests get a wrong answer.

    Only the nearest entry is considered. It explores until the entry has been compared four
    times, then as often as its curve demands.

    Attributes:
        delta: the promised share of wrong answers among all requests.
        seed: of the draws between exploring and reusing.
    """

    delta: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise RecipeError(f"delta is a share of requests between 0 and 1, not {self.delta}")

    def build(self) -> VerifiedDecision:
        """A decision that learns, for one cache."""
        return VerifiedDecision(self)


class VerifiedDecision:
    """Observations and curve of every entry. Safe to use from several threads.

    An observation must come from the entry's own partition: who controls them controls the bound.
    """

    def __init__(self, policy: Verified) -> None:
        self.policy = policy
        self._random = random.Random(policy.seed)
        self._observed: dict[int, deque[tuple[float, bool]]] = {}
        self._curves: dict[int, Curve] = {}
        self._lock = threading.Lock()

    def decide(self, candidates: Sequence[Candidate], context: Context) -> Decision:
        """HIT or EXPLORE on the nearest candidate; MISS when there is none."""
        if not candidates:
            return Decision(Verdict.MISS, None, "nothing similar is stored")
        nearest = candidates[0]
        with self._lock:
            curve = self._curves.get(nearest.entry_id)
            draw = self._random.random()
        if curve is None:
            return Decision(Verdict.EXPLORE, nearest.entry_id, "too few observations of the entry")
        chance = explore_probability(nearest.similarity, curve, self.policy.delta)
        if draw < chance:
            reason = f"explored with probability {chance:.3f}"
            return Decision(Verdict.EXPLORE, nearest.entry_id, reason)
        reason = f"verified at similarity {nearest.similarity:.3f}, explores {max(0.0, chance):.3f}"
        return Decision(Verdict.HIT, nearest.entry_id, reason)

    def observe(self, entry_id: int, similarity: float, correct: bool) -> None:
        """Add an observation and fit the entry's curve again."""
        with self._lock:
            kept = self._observed.setdefault(entry_id, deque(maxlen=MAX_OBSERVATIONS - len(SEEDS)))
            kept.append((round(similarity, 3), correct))
            if len(kept) + len(SEEDS) >= MIN_OBSERVATIONS:
                self._curves[entry_id] = fit_curve(list(kept))

    def forget(self, entry_ids: Sequence[int]) -> None:
        """Drop what is known of these entries."""
        with self._lock:
            for entry_id in entry_ids:
                self._observed.pop(entry_id, None)
                self._curves.pop(entry_id, None)


def fit_curve(observations: Sequence[tuple[float, bool]]) -> Curve:
    """The curve through an entry's observations and the two seeds (0, wrong) and (1, right)."""
    rows = [*SEEDS, *observations]
    similarities = np.array([similarity for similarity, _ in rows])
    correct = np.array([right for _, right in rows])
    (intercept, slope), covariance = logistic.fit(similarities[:, None], correct, RIDGE)
    steepness = max(float(slope), 1e-6)
    middle = float(np.clip(-intercept / steepness, 0, 1))
    if similarities[~correct].max() < similarities[correct].min():
        return Curve(middle, steepness, separated_variance(len(rows)))
    # Delta method: the gradient of -intercept / slope.
    gradient = np.array([-1 / steepness, intercept / steepness**2])
    return Curve(middle, steepness, float(gradient @ covariance @ gradient))


def separated_variance(count: int) -> float:
    """Variance of the middle where likelihood has no maximum: the table, held between its rows."""
    return SEPARATED[max(n for n in SEPARATED if n <= max(count, MIN_OBSERVATIONS))]


def explore_probability(similarity: float, curve: Curve, delta: float) -> float:
    """The smallest probability of exploring that keeps the promise; below 0: always reuse.

    min over levels e of 1 - delta / (1 - (1 - e) sigmoid(steepness (s - t(e)))), where t(e) is
    the upper confidence bound of the middle at level e.
    """
    upper = np.clip(curve.middle + _quantiles() * np.sqrt(curve.variance), 0, 1)
    right = (1 - LEVELS) * logistic.sigmoid(curve.steepness * (similarity - upper))
    return float((1 - delta / (1 - right)).min())


@lru_cache(maxsize=1)
def _quantiles() -> np.ndarray:
    normal = NormalDist()
    return np.array([normal.inv_cdf(1 - level) for level in LEVELS])
