"""Window coverage: every part of either text must have a counterpart in the other.

One vector of a whole text hides an unrelated part of it: a question followed by an instruction
keeps most of the question's cosine. Windows of eight words do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from recollect.answers.decision import Candidate, Check, Outcome
from recollect.answers.encoders.base import Encoder
from recollect.errors import RecipeError

# 95% of 307 same-intent pairs of Banking77 and CLINC150 that all-MiniLM-L6-v2 puts at 0.8 or nearer
# stay above its floor, and so do 41% of questions joined with a short unrelated one: a window that
# straddles both is covered in part. The contrast guard's rule "surplus" is for those.
FLOORS = {"minilm": 0.2, "ngram": 0.1}


class Uncovered(NamedTuple):
    """The window with the least counterpart, and its cosine to the best one."""

    cosine: float
    window: str


@dataclass(frozen=True)
class Coverage:
    """Stage ``verifier``: rejects where a window of one text resembles nothing in the other.

    Attributes:
        words: per window; a text no longer than that is one window.
        stride: words from one window to the next; the last one ends with the text.
        min_coverage: least cosine of a window to its best counterpart; None: known for the
            encoders ``minilm`` and ``ngram``.
    """

    words: int = 8
    stride: int = 4
    min_coverage: float | None = None

    def __post_init__(self) -> None:
        if self.words < 1 or not 1 <= self.stride <= self.words:
            raise RecipeError("coverage needs 1 <= stride <= words")

    def build_for(self, encoder: Encoder) -> CoverageGuard:
        """The guard with the cache's own encoder. Raises RecipeError without a known floor."""
        floor = self.min_coverage
        if floor is None:
            floor = FLOORS.get(encoder.encoder_id.split("-")[0])
        if floor is None:
            raise RecipeError(f"give min_coverage: none is known for '{encoder.encoder_id}'")
        return CoverageGuard(encoder, self, floor)


class CoverageGuard:
    """`Coverage` with an encoder. Costs one encoding of a few short texts."""

    def __init__(self, encoder: Encoder, policy: Coverage, min_coverage: float) -> None:
        self._encoder, self._policy, self.min_coverage = encoder, policy, min_coverage

    def check(self, query: str, candidate: Candidate, answer: str | None = None) -> Check:
        """Reject where something is uncovered, and quote it."""
        least = self.least(query, candidate.query)
        if least.cosine >= self.min_coverage:
            return Check(Outcome.ACCEPT, f"covered at {least.cosine:.2f}")
        return Check(Outcome.REJECT, f"'{least.window}' has no counterpart ({least.cosine:.2f})")

    def least(self, one: str, other: str) -> Uncovered:
        """The least covered window of either text; symmetric."""
        a, b = self._windows(one), self._windows(other)
        vectors = self._encoder.encode([*a, *b, one, other])
        va, vb = vectors[: len(a)], vectors[len(a) : len(a) + len(b)]
        cosines = va @ vb.T
        in_b = np.maximum(cosines.max(1), va @ vectors[-1])
        in_a = np.maximum(cosines.max(0), vb @ vectors[-2])
        best = np.concatenate([in_b, in_a])
        at = int(best.argmin())
        return Uncovered(float(best[at]), (a + b)[at])

    def _windows(self, text: str) -> list[str]:
        words = text.split()
        last = max(len(words) - self._policy.words, 0)
        starts = [*range(0, last, self._policy.stride), last]
        return [" ".join(words[at : at + self._policy.words]) for at in starts]
