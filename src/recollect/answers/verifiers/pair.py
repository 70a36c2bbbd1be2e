"""Second opinion of a trained model: one answer for both questions, or not.

The packaged model was trained over all-MiniLM-L6-v2 by `benchmarks/answers_verifier.py`. torch is
loaded when a cache with this stage is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from recollect.answers.decision import Candidate, Check, Outcome
from recollect.answers.encoders.base import Encoder
from recollect.errors import RecipeError

if TYPE_CHECKING:
    from recollect.answers.encoders.minilm import MiniLMEncoder
    from recollect.answers.verifiers.pair_model import PairModel

PACKAGED = Path(__file__).parent / "models" / "minilm-pair.safetensors"


@dataclass(frozen=True)
class Pair:
    """Stage ``verifier``: rejects a candidate whose query hardly asks for the same answer.

    Attributes:
        path: of a model that was trained; the packaged one when None.
        min_probability: that one answer serves both; the model's own threshold when None.
    """

    path: str | None = None
    min_probability: float | None = None

    def __post_init__(self) -> None:
        if self.min_probability is not None and not 0 <= self.min_probability <= 1:
            raise RecipeError(f"min_probability is between 0 and 1, not {self.min_probability}")

    def build_for(self, encoder: Encoder) -> PairGuard:
        """The guard, reading with the cache's MiniLM; with its own where the cache has another.

        Raises RecipeError when the model was trained over other weights than the cache's MiniLM,
        StoreError when there is no such model, HostError without MiniLM's weights.
        """
        model = _model(self.path or str(PACKAGED), minilm_of(encoder))
        least = model.threshold if self.min_probability is None else self.min_probability
        return PairGuard(model, least)


class PairGuard:
    """`Pair` with its model. Costs one encoding of each text it has not seen lately."""

    def __init__(self, model: PairModel, min_probability: float) -> None:
        self.model, self.min_probability = model, min_probability

    def check(self, query: str, candidate: Candidate, answer: str | None = None) -> Check:
        """Accept from the threshold on; texts that are equal but for case always."""
        if query.casefold() == candidate.query.casefold():
            return Check(Outcome.ACCEPT, "pair: the same text")
        found = self.model.probability(query, candidate.query)
        if found >= self.min_probability:
            return Check(Outcome.ACCEPT, f"pair {found:.2f} >= {self.min_probability:.2f}")
        return Check(Outcome.REJECT, f"pair {found:.2f} < {self.min_probability:.2f}")


def minilm_in(encoder: Encoder) -> MiniLMEncoder | None:
    """The MiniLM an encoder is, or is made of."""
    from recollect.answers.encoders.minilm import MiniLMEncoder

    inner: object = encoder
    while inner is not None and not isinstance(inner, MiniLMEncoder):
        inner = getattr(inner, "encoder", None)
    return inner


def minilm_of(encoder: Encoder) -> MiniLMEncoder:
    """The MiniLM in an encoder, or else the packaged one. Raises HostError without weights."""
    return minilm_in(encoder) or _packaged_minilm()


@lru_cache(maxsize=1)
def _packaged_minilm() -> MiniLMEncoder:
    from recollect.answers.encoders.minilm import MiniLMEncoder

    return MiniLMEncoder()


@lru_cache(maxsize=4)
def _model(path: str, encoder: MiniLMEncoder) -> PairModel:
    from recollect.answers.verifiers.pair_model import PairModel

    return PairModel.load(path, encoder)
