"""Which examples to show a model: a combination that is worth its tokens, not the nearest ones.

Two stages (IC-Cache, arXiv 2501.12689): dense retrieval, then for each target model a regression,
learned online, of what an example adds to quality given those already chosen. An example's own
record corrects it: similar is not the same as helpful.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recollect.answers.examples.example import Found
from recollect.answers.examples.linear import BayesianLinear, expected_improvement
from recollect.answers.examples.threshold import THRESHOLDS, UtilityThreshold
from recollect.errors import RecipeError

# Of the request alone: constant, length. Of each example: constant, similarity of the queries, of
# the request to the answer, to examples already chosen, their number, length.
_REQUEST, _EXAMPLE = 2, 6
# Before anything is known, what is near is taken to help, and what is told twice is not.
_PRIOR = (0.5, 0.0, 0.0, 0.15, 0.05, -0.1, -0.05, 0.0)
_SPREAD = (0.5, 0.5, 0.2, 0.3, 0.3, 0.2, 0.2, 0.2)


@dataclass(frozen=True)
class SelectorPolicy:
    """How examples are chosen.

    Attributes:
        candidates: examples retrieved by similarity.
        most: examples shown, at most.
        token_budget: tokens of examples, at most.
        token_price: quality worth one token of prefill.
        explore: draw from what is uncertain, to learn; False uses the best estimates.
        record_weight: uses of an example after which its record counts by half.
    """

    candidates: int = 32
    most: int = 4
    token_budget: int = 1024
    token_price: float = 2e-5
    explore: bool = True
    record_weight: float = 3.0

    def __post_init__(self) -> None:
        if min(self.candidates, self.most, self.token_budget) < 0 or self.token_price < 0:
            raise RecipeError("a selector takes no negative numbers")
        if not self.record_weight > 0:
            raise RecipeError("a selector takes record_weight > 0")


@dataclass(frozen=True)
class Choice:
    """Examples for one request and one model.

    Attributes:
        examples: as they go into the prompt: rising utility, about equal ones by id.
        utility: predicted gain in quality of all together.
        tokens: they add.
        features: (F,) of the whole choice, to learn from later.
        threshold: position in `THRESHOLDS`; None where there was nothing to choose from.
    """

    examples: tuple[Found, ...]
    utility: float
    tokens: int
    features: np.ndarray = field(repr=False)
    threshold: int | None


@dataclass
class _Record:
    """How much better than predicted requests with an example went, in how many uses."""

    surplus: float = 0.0
    uses: int = 0


class Selector:
    """Chooses examples for each of several target models. Not safe to share by threads."""

    def __init__(self, policy: SelectorPolicy) -> None:
        self.policy = policy
        self.threshold = UtilityThreshold()
        self._helpfulness: dict[str, BayesianLinear] = {}
        self._records: dict[str, dict[int, _Record]] = {}

    def choose(
        self,
        query: str,
        vector: np.ndarray,
        found: Sequence[Found],
        model: str,
        rng: np.random.Generator,
    ) -> Choice:
        """The combination of `found` that is worth most to `model`, within the token budget.

        Args:
            query, vector: the request's text and its unit vector (D,).
            found: examples of the request's partition.
        """
        learned = self._learned(model)
        weights = learned.sample(rng) if self.policy.explore else learned.mean
        at = self.threshold.choose(rng) if self.policy.explore else self.threshold.best()
        candidates = _Candidates(query, vector, found)
        records = [self._record(model, one.example.id) for one in found]
        # By gain and by gain per token: the better of the two is never far from the best.
        plans = [
            self._greedy(candidates, weights, records, THRESHOLDS[at], by_density)
            for by_density in (False, True)
        ]
        chosen, gains, features = max(plans, key=lambda plan: sum(plan[1]))
        # Each by itself and rounded, so that prompts keep their order while estimates move.
        alone = (candidates.features([]) @ learned.mean[_REQUEST:] + records).round(1)
        order = sorted(chosen, key=lambda one: (alone[one], found[one].example.id))
        tokens = int(candidates.tokens[chosen].sum())
        return Choice(
            examples=tuple(found[one] for one in order),
            utility=float(sum(gains) + self.policy.token_price * tokens),
            tokens=tokens,
            features=features,
            threshold=at if found else None,
        )

    def is_uncertain(self, choice: Choice, model: str, above: float) -> bool:
        """Whether the chosen examples may well do harm: at a loss of more than `above` quality."""
        learned, effect = self._learned(model), choice.features.copy()
        effect[:_REQUEST] = 0
        gain = float(learned.mean @ effect) - self.policy.token_price * choice.tokens
        return expected_improvement(gain, learned.deviation(effect)) > above

    def observe(self, choice: Choice, model: str, quality: float) -> None:
        """A request with these examples got an answer worth `quality`, in [0, 1]."""
        learned = self._learned(model)
        alone = learned.mean[:_REQUEST] @ choice.features[:_REQUEST]
        if choice.threshold is not None:
            price = self.policy.token_price * choice.tokens
            self.threshold.observe(choice.threshold, quality - alone - price)
        ids = [one.example.id for one in choice.examples]
        explained = sum(self._record(model, example_id) for example_id in ids)
        surplus = quality - learned.mean @ choice.features
        for example_id in ids:
            record = self._records.setdefault(model, {}).setdefault(example_id, _Record())
            record.surplus += surplus / len(ids)
            record.uses += 1
        learned.observe(choice.features, quality - explained)

    def forget(self, example_ids: Sequence[int]) -> None:
        """These examples are gone, or are no longer what they were."""
        for records in self._records.values():
            for example_id in example_ids:
                records.pop(example_id, None)

    def state(self) -> dict[str, Any]:
        return {
            "threshold": self.threshold.state(),
            "helpfulness": {name: one.state() for name, one in self._helpfulness.items()},
            "records": {
                model: [[key, one.surplus, one.uses] for key, one in records.items()]
                for model, records in self._records.items()
            },
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.threshold.restore(state["threshold"])
        for name, learned in state["helpfulness"].items():
            self._learned(name).restore(learned)
        self._records = {
            model: {int(key): _Record(float(surplus), int(uses)) for key, surplus, uses in rows}
            for model, rows in state["records"].items()
        }

    def _learned(self, model: str) -> BayesianLinear:
        if model not in self._helpfulness:
            self._helpfulness[model] = BayesianLinear(_PRIOR, _SPREAD, noise=0.4)
        return self._helpfulness[model]

    def _record(self, model: str, example_id: int) -> float:
        record = self._records.get(model, {}).get(example_id)
        return record.surplus / (record.uses + self.policy.record_weight) if record else 0.0

    def _greedy(
        self,
        candidates: _Candidates,
        weights: np.ndarray,
        records: Sequence[float],
        threshold: float,
        by_density: bool,
    ) -> tuple[list[int], list[float], np.ndarray]:
        """Positions chosen, what each adds after the price of its tokens, and features (F,)."""
        chosen: list[int] = []
        gains: list[float] = []
        features = np.concatenate([candidates.request, np.zeros(_EXAMPLE)])
        room = self.policy.token_budget
        free = np.ones(len(records), bool)
        while len(chosen) < self.policy.most:
            rows = candidates.features(chosen)
            utility = rows @ weights[_REQUEST:] + records
            gain = utility - self.policy.token_price * candidates.tokens
            allowed = free & (gain > threshold) & (candidates.tokens <= room)
            if not allowed.any():
                break
            rank = gain / candidates.tokens if by_density else gain
            best = int(np.where(allowed, rank, -np.inf).argmax())
            chosen.append(best)
            gains.append(float(gain[best]))
            features[_REQUEST:] += rows[best]
            free[best] = False
            room -= int(candidates.tokens[best])
        return chosen, gains, features


class _Candidates:
    """The numbers of retrieved examples, computed once: C of them, vectors of width D."""

    def __init__(self, query: str, vector: np.ndarray, found: Sequence[Found]) -> None:
        width = len(vector)
        queries = np.array([one.query_vector for one in found]).reshape(-1, width)
        answers = np.array([one.response_vector for one in found]).reshape(-1, width)
        self.request = np.array([1.0, math.log1p(len(query)) / 10])
        self.tokens = np.array([one.example.tokens for one in found], np.int64)
        self._near = queries @ vector
        self._tells = answers @ vector
        self._alike = (queries @ queries.T + answers @ answers.T) / 2

    def features(self, chosen: Sequence[int]) -> np.ndarray:
        """Of each candidate (C, E), given the positions already chosen."""
        count = len(self.tokens)
        told = self._alike[:, chosen].max(1) if chosen else np.zeros(count)
        return np.stack(
            [
                np.ones(count),
                self._near,
                self._tells,
                told,
                np.full(count, len(chosen) / 4),
                np.log1p(self.tokens) / 10,
            ],
            axis=1,
        )
