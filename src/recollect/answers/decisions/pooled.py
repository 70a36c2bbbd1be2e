"""A bound on wrong hits that all entries learn together, from how the neighbours agree.

vCache (arXiv 2502.03771) asks of each entry alone whether its similarity can be trusted, and pays
four model calls an entry to know. Here one logistic curve over what the nearest entries say is
shared by all of them, so that a new entry can be trusted at once when its neighbours agree.
"""

from __future__ import annotations

import math
import random
import threading
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from recollect.answers.decision import Candidate, Context, Decision, Verdict
from recollect.answers.decisions import logistic
from recollect.answers.decisions.recent import Recent
from recollect.errors import RecipeError

MAX_OBSERVATIONS = 1000  # older ones saw an emptier cache
WINDOW = 500  # requests over which the budget is balanced
FEW = 20  # requests below which the budget is applied to each alone
MIN_EITHER = 5  # right and wrong observations before the first fit
REFIT_EVERY = 25
LAPSES = np.concatenate([[1e-4], np.arange(1, 50) / 1000])  # what a lapse may be
CLEAN = 50  # right answers that a lapse is weighed against before there are observations
FULL = 8  # candidates of a well-filled cache


@dataclass(frozen=True)
class Pooled:
    """Stage ``decision`` with a budget of wrong answers, spent where most hits are bought.

    The risk of each request is an upper confidence bound; those below a limit are served, and the
    limit is the highest one whose mean risk stays within the budget. However safe a request looks,
    labels and judges err: that lapse is estimated too, and added. Everything else is explored: the
    model is called, its answer compared, and the paraphrase kept as one more key. The curve is
    shared by all whom one cache serves, so who sends most queries shapes it: tenants that do not
    trust each other need a cache (not a store) each.

    Attributes:
        delta: share of wrong answers that is allowed.
        per: share of what: of the ``hits``, or of all ``requests``.
        caution: how many standard deviations the risk is taken above its estimate.
        audit: share of what would be hits that is explored all the same, to stay calibrated.
        patience: observations before the first hit.
        seed: of the audits.
    """

    delta: float = 0.02
    per: Literal["hits", "requests"] = "hits"
    caution: float = 1.0
    audit: float = 0.03
    patience: int = 60
    seed: int = 0
    keeps_paraphrases: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1 or self.per not in ("hits", "requests"):
            raise RecipeError("delta is a share between 0 and 1, per 'hits' or 'requests'")
        if not 0 <= self.audit < 1 or self.caution < 0 or self.patience < 2 * MIN_EITHER:
            raise RecipeError("pooled needs audit in [0, 1), caution >= 0 and patience >= 10")

    def build(self) -> PooledDecision:
        """A decision that learns, for one cache."""
        return PooledDecision(self)


class Vote(NamedTuple):
    """The nearest entry of the leading answer, and the features (F,) of its lead."""

    entry_id: int
    similarity: float
    features: np.ndarray


class PooledDecision:
    """The shared curve and the balance of the budget. Safe to use from several threads."""

    keeps_paraphrases = True

    def __init__(self, policy: Pooled) -> None:
        self.policy = policy
        self._random = random.Random(policy.seed)
        self._asked: Recent[np.ndarray] = Recent()
        self._features: deque[np.ndarray] = deque(maxlen=MAX_OBSERVATIONS)
        self._correct: deque[bool] = deque(maxlen=MAX_OBSERVATIONS)
        self._unfitted = 0
        self._fit: logistic.Fit | None = None
        self._lapse = 0.0
        self._centre = self._spread = np.zeros(0)
        self._risks: deque[float] = deque(maxlen=WINDOW)
        self._lock = threading.Lock()

    def decide(self, candidates: Sequence[Candidate], context: Context) -> Decision:
        """HIT or EXPLORE on the leading answer's nearest entry; MISS when there is none."""
        if not candidates:
            return Decision(Verdict.MISS, None, "nothing similar is stored")
        vote = count_votes(candidates)
        with self._lock:
            self._asked.put((vote.entry_id, vote.similarity), vote.features)
            if self._fit is None:
                return Decision(Verdict.EXPLORE, vote.entry_id, "too few observations yet")
            risk = self._risk(vote.features)
            self._risks.append(risk)
            limit = self._limit()
            audited = self._random.random() < self.policy.audit
        if risk > limit:
            reason = f"risk {risk:.4f} > {limit:.4f}"
            return Decision(Verdict.EXPLORE, vote.entry_id, reason)
        if audited:
            return Decision(Verdict.EXPLORE, vote.entry_id, "audit of a hit")
        return Decision(Verdict.HIT, vote.entry_id, f"risk {risk:.4f} <= {limit:.4f}")

    def observe(self, entry_id: int, similarity: float, correct: bool) -> None:
        """Learn from a request that was decided here; others are ignored, for lack of its vote."""
        with self._lock:
            features = self._asked.pop((entry_id, similarity))
            if features is None:
                return
            self._features.append(features)
            self._correct.append(correct)
            self._unfitted += 1
            right = sum(self._correct)
            enough = len(self._correct) >= self.policy.patience
            both = min(right, len(self._correct) - right) >= MIN_EITHER
            if enough and both and self._unfitted >= REFIT_EVERY:
                self._refit()

    def forget(self, entry_ids: Sequence[int]) -> None:
        """Nothing to do: what was learned belongs to no entry."""

    def _refit(self) -> None:
        features = np.array(self._features)
        self._centre, self._spread = features.mean(0), features.std(0) + 1e-6
        scaled = (features - self._centre) / self._spread
        right = np.array(self._correct)
        self._fit = logistic.fit(scaled, right)
        scores = self._fit.coefficients[0] + scaled @ self._fit.coefficients[1:]
        self._lapse = lapse(logistic.sigmoid(-scores), right)
        self._unfitted = 0

    def _risk(self, features: np.ndarray) -> float:
        """Upper bound of P(wrong)."""
        assert self._fit is not None
        x = np.concatenate([[1.0], (features - self._centre) / self._spread])
        mean = x @ self._fit.coefficients
        deviation = math.sqrt(x @ self._fit.covariance @ x)
        risk = float(logistic.sigmoid(self.policy.caution * deviation - mean))
        return self._lapse + (1 - self._lapse) * risk

    def _limit(self) -> float:
        """The highest risk to serve so that the recent requests stay within the budget."""
        if len(self._risks) < FEW:
            return self.policy.delta
        return risk_limit(np.array(self._risks), self.policy.delta, self.policy.per)


def lapse(risks: np.ndarray, correct: np.ndarray) -> float:
    """Share of wrong answers that no feature foretells: posterior mean over `LAPSES`.

    A curve fitted to the errors says almost no risk far from them; there noise in the labels
    remains, P(wrong) = lapse + (1 - lapse) risk. Prior: `CLEAN` right answers, half a wrong one.

    Args:
        risks: (N,) of the observations, as the curve has them.
        correct: (N,) bool.
    """
    wrong = LAPSES[:, None] + (1 - LAPSES[:, None]) * risks
    evidence = np.log(wrong[:, ~correct]).sum(1) + np.log1p(-wrong[:, correct]).sum(1)
    evidence += CLEAN * np.log1p(-LAPSES) + 0.5 * np.log(LAPSES)
    weights = np.exp(evidence - evidence.max())
    return float(weights @ LAPSES / weights.sum())


def risk_limit(risks: np.ndarray, delta: float, per: Literal["hits", "requests"]) -> float:
    """The highest limit under which the mean risk of what is served is at most `delta`.

    The mean is over what is served (``hits``) or over all of `risks` (N,) (``requests``).
    Returns -1 when not even the safest may be served.
    """
    ordered = np.sort(risks)
    served = np.arange(1, len(ordered) + 1) if per == "hits" else len(ordered)
    last_of_equals = np.append(ordered[:-1] < ordered[1:], True)
    allowed = np.flatnonzero((np.cumsum(ordered) / served <= delta) & last_of_equals)
    return float(ordered[allowed[-1]]) if len(allowed) else -1.0


def count_votes(candidates: Sequence[Candidate], sharpness: float = 15.0) -> Vote:
    """Candidates vote for their answers with weights exp(sharpness * similarity).

    Features: similarity of the leader's nearest entry, its distance to the nearest entry with
    another answer, log-odds of the leader's share of the weight, its share of the candidates;
    and the squares and the product that let a straight line bend.
    """
    weight: defaultdict[int, float] = defaultdict(float)
    count: defaultdict[int, int] = defaultdict(int)
    nearest: dict[int, Candidate] = {}
    top = max(c.similarity for c in candidates)
    for candidate in candidates:
        answer = candidate.entry_id if candidate.answer is None else candidate.answer
        weight[answer] += math.exp(sharpness * (candidate.similarity - top))
        count[answer] += 1
        best = nearest.setdefault(answer, candidate)
        if candidate.similarity > best.similarity:
            nearest[answer] = candidate
    leader = max(weight, key=lambda answer: weight[answer])
    chosen = nearest[leader]
    rivals = [c.similarity for answer, c in nearest.items() if answer != leader]
    lowest = min(c.similarity for c in candidates)
    lead = chosen.similarity - (max(rivals) if rivals else lowest - 0.05)
    share = weight[leader] / sum(weight.values())
    odds = math.log((share + 0.02) / (1 - share + 0.02))
    agreeing = count[leader] / max(len(candidates), FULL)
    features = np.array([chosen.similarity, lead, odds, agreeing])
    bends = np.array([chosen.similarity**2, lead**2, chosen.similarity * lead, odds**2])
    features = np.concatenate([features, bends])
    return Vote(chosen.entry_id, chosen.similarity, features)
