"""A follow-up may only reuse answers given under the same previous turn (MeanCache).

MeanCache: User-Centric Semantic Caching for LLM Web Services, Gill et al. 2024, arXiv 2403.02694.
Stricter than its code, which serves standalone entries to follow-ups: "what are its types?"
means nothing without what came before. Each user's threshold follows that user's observations.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from recollect.answers.decision import Candidate, Context, Decision, Verdict
from recollect.answers.decisions.recent import Recent
from recollect.answers.decisions.static import check_similarity, nearest_above
from recollect.answers.learning.calibrate import best_f_threshold
from recollect.errors import RecipeError

MAX_OBSERVATIONS = 512
MAX_USERS = 10_000  # the longest idle ones start again


@dataclass(frozen=True)
class Chain:
    """Stage ``decision``: nearest entry with the same parent, above the user's threshold.

    Attributes:
        min_similarity: where every user's threshold starts.
        neighbours: how many of the nearest entries may be walked through.
        patience: observations after which a user's own threshold weighs as much as the start.
        beta: the threshold maximizes F-beta; below 1 a wrong hit is worse than a lost one.
        reach: entries up to this much below the threshold are compared with the model's answer.
        audit: share of the hits that are compared with the model's answer instead of served; a
            threshold can only rise where somebody looks.
        follow_ups: False ignores the chain (for comparison).
    """

    min_similarity: float = 0.8
    neighbours: int = 5
    patience: int = 20
    beta: float = 0.5
    reach: float = 0.1
    audit: float = 0.0
    follow_ups: bool = True

    def __post_init__(self) -> None:
        check_similarity("min_similarity", self.min_similarity)
        if self.neighbours < 1 or self.patience < 1 or not self.beta > 0:
            raise RecipeError("a chain needs neighbours >= 1, patience >= 1 and beta > 0")
        if not 0 <= self.audit < 1:
            raise RecipeError(f"audit is a share in [0, 1), not {self.audit}")

    def build(self) -> ChainDecision:
        """A decision that learns, for one cache."""
        return ChainDecision(self)


class ChainDecision:
    """Thresholds of all users. Safe to use from several threads."""

    def __init__(self, policy: Chain) -> None:
        self.policy = policy
        self._asked: Recent[str] = Recent()
        self._observed: Recent[deque[tuple[float, bool]]] = Recent(MAX_USERS)
        self._thresholds: Recent[float] = Recent(MAX_USERS)
        self._turn = 0.0
        self._lock = threading.Lock()

    def threshold(self, user: str) -> float:
        """The cosine in force for a user."""
        own = self._thresholds.get(user)
        return self.policy.min_similarity if own is None else own

    def decide(self, candidates: Sequence[Candidate], context: Context) -> Decision:
        """HIT on the nearest entry of the same parent; EXPLORE just below the threshold."""
        near = candidates[: self.policy.neighbours]
        if self.policy.follow_ups:
            near = [c for c in near if c.parent == context.conversation_parent]
            if candidates and not near:
                return Decision(Verdict.MISS, None, "similar, but under another previous turn")
        if not near:
            return Decision(Verdict.MISS, None, "nothing similar is stored")
        nearest = near[0]
        with self._lock:
            threshold = self.threshold(context.user)
            decision = nearest_above(near, threshold)
            if nearest.similarity < threshold - self.policy.reach:
                return decision
            if decision.verdict is Verdict.HIT and not self._due_for_audit():
                return decision
            self._asked.put((nearest.entry_id, nearest.similarity), context.user)
            return Decision(Verdict.EXPLORE, nearest.entry_id, decision.reason)

    def observe(self, entry_id: int, similarity: float, correct: bool) -> None:
        """Move the threshold of the user who was offered this entry at this similarity."""
        with self._lock:
            user = self._asked.pop((entry_id, similarity))
            if user is None:
                return
            observed = self._observed.get(user) or deque(maxlen=MAX_OBSERVATIONS)
            observed.append((similarity, correct))
            self._observed.put(user, observed)
            self._thresholds.put(user, self._blended(observed))

    def forget(self, entry_ids: Sequence[int]) -> None:
        """Nothing to do: thresholds belong to users, not to entries."""

    def _due_for_audit(self) -> bool:
        """True once in 1 / audit hits."""
        self._turn += self.policy.audit
        if self._turn < 1:
            return False
        self._turn -= 1
        return True

    def _blended(self, observed: deque[tuple[float, bool]]) -> float:
        """The user's best threshold and the common one, weighted by how much is known."""
        similarities = [similarity for similarity, _ in observed]
        correct = [right for _, right in observed]
        if len(set(correct)) < 2:
            return self.policy.min_similarity
        own = best_f_threshold(similarities, correct, self.policy.beta)
        weight = len(observed) / (len(observed) + self.policy.patience)
        return weight * own + (1 - weight) * self.policy.min_similarity
