"""Several verifiers as one: asked in order of cost, and the first rejection is the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recollect.answers.decision import Candidate, Check, Outcome, Verifier
from recollect.answers.encoders.base import Encoder
from recollect.answers.verifiers.contrast import Contrast
from recollect.answers.verifiers.coverage import Coverage
from recollect.answers.verifiers.pair import Pair, minilm_in

# Each refuses less than half a percent of the pairs of one intent that `Pair` was trained on.
CHEAP = ("name", "exclusive")


class InTurn:
    """Asks until one rejects; accepts when one accepted and none rejected; else abstains."""

    def __init__(self, verifiers: Sequence[Verifier]) -> None:
        self.verifiers = tuple(verifiers)

    def check(self, query: str, candidate: Candidate, answer: str | None = None) -> Check:
        """The first rejection, or else the last acceptance."""
        result = Check(Outcome.ABSTAIN, "nobody knows")
        for verifier in self.verifiers:
            check = verifier.check(query, candidate, answer)
            if check.outcome is Outcome.REJECT:
                return check
            if check.outcome is Outcome.ACCEPT:
                result = check
        return result


@dataclass(frozen=True)
class Guards:
    """Stage ``verifier``: the guards of this room, cheapest first.

    Attributes:
        guards: stages or verifiers, in the order they are asked. When None: where the cache reads
            with MiniLM the trained `Pair`, and before it the two rules of `Contrast` that cost
            least (names, and words like must and may); `Contrast` and `Coverage` elsewhere.
    """

    guards: tuple[Any, ...] | None = None

    def build_for(self, encoder: Encoder) -> InTurn:
        """The guards, those that compare vectors with the cache's encoder."""
        return InTurn([built(guard, encoder) for guard in self.guards or default_guards(encoder)])


def default_guards(encoder: Encoder) -> tuple[Any, ...]:
    """What `Guards()` asks in a cache with this encoder."""
    if minilm_in(encoder):
        return (Contrast(only=CHEAP), Pair())
    return (Contrast(), Coverage())


def built(guard: Any, encoder: Encoder) -> Verifier:
    """A guard ready to be asked: a stage is built, a verifier is used as it is."""
    return guard.build_for(encoder) if hasattr(guard, "build_for") else guard
