"""One threshold for everything: what most response caches do, and the baseline of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recollect.answers.decision import Candidate, Context, Decision, Verdict
from recollect.errors import RecipeError


@dataclass(frozen=True)
class Static:
    """The nearest entry answers when its cosine is at least `min_similarity`.

    A threshold belongs to the encoder it was chosen for.
    """

    min_similarity: float = 0.9

    def __post_init__(self) -> None:
        check_similarity("min_similarity", self.min_similarity)

    def decide(self, candidates: Sequence[Candidate], context: Context) -> Decision:
        """HIT on the nearest candidate at or above the threshold, MISS otherwise."""
        return nearest_above(candidates, self.min_similarity)


def nearest_above(candidates: Sequence[Candidate], min_similarity: float) -> Decision:
    """The decision of a plain threshold, with the similarity in its reason."""
    if not candidates:
        return Decision(Verdict.MISS, None, "nothing similar is stored")
    nearest = candidates[0]
    if nearest.similarity < min_similarity:
        reason = f"similarity {nearest.similarity:.3f} < {min_similarity:.3f}"
        return Decision(Verdict.MISS, None, reason)
    reason = f"similarity {nearest.similarity:.3f} >= {min_similarity:.3f}"
    return Decision(Verdict.HIT, nearest.entry_id, reason)


def check_similarity(name: str, value: float) -> None:
    """Raises RecipeError unless `value` is a cosine; distances and percentages are refused."""
    if not -1 <= value <= 1:
        raise RecipeError(f"{name} is a cosine between -1 and 1, not {value}")
