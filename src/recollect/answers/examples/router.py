"""Which model answers: a bandit that learns quality by request and is pushed away from load.

Thompson sampling over a Bayesian linear model of quality for each model (Agrawal and Goyal 2013,
arXiv 1209.3352). Above a threshold of load, every model pays tanh(load - threshold) times its
cost, as in IC-Cache (arXiv 2501.12689).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recollect.answers.examples.linear import BayesianLinear, expected_improvement
from recollect.errors import RecipeError

CONTEXT = 5  # width C of the features of a request for one model


@dataclass(frozen=True)
class Model:
    """A model that requests can go to.

    Attributes:
        name: as in the request's field ``model``.
        cost: of one request relative to the others', above 0.
        strong: its answers become examples; it gets requests without any.
    """

    name: str
    cost: float = 1.0
    strong: bool = False

    def __post_init__(self) -> None:
        if not self.cost > 0:
            raise RecipeError(f"the model '{self.name}' needs a cost above 0, got {self.cost}")


@dataclass(frozen=True)
class RouterPolicy:
    """How requests are spread over models. Quality is in [0, 1].

    Attributes:
        cost_price: quality worth one unit of cost at any load.
        load_threshold: load up to which nothing is added.
        load_price: quality worth one unit of cost at infinite load.
        load_smoothing: share of a new observation in the running mean of the load.
        ask_above: expected quality lost by not knowing which model is better, or whether
            examples help, above which the user is asked for feedback.
    """

    cost_price: float = 0.0
    load_threshold: float = 0.8
    load_price: float = 1.0
    load_smoothing: float = 0.1
    ask_above: float = 0.01

    def __post_init__(self) -> None:
        prices = (self.cost_price, self.load_price, self.ask_above)
        if not 0 < self.load_smoothing <= 1 or min(prices) < 0:
            raise RecipeError("a router takes 0 < load_smoothing <= 1 and prices >= 0")


def context_features(query: str, similarity: float, utility: float, examples: int) -> np.ndarray:
    """Features (C,) of a request with the examples chosen for one model."""
    return np.array([1.0, math.log1p(len(query)) / 10, similarity, utility, examples / 4])


class Router:
    """Chooses among `models` and learns from what came of it. Not safe to share by threads."""

    def __init__(self, models: Sequence[Model], policy: RouterPolicy) -> None:
        if not models or len({model.name for model in models}) != len(models):
            raise RecipeError("a router needs at least one model, each under a name of its own")
        self.models = tuple(models)
        self.policy = policy
        self.load = 0.0
        self._quality = {
            model.name: BayesianLinear([0.5, 0, 0, 0, 0], 0.5, noise=0.5) for model in models
        }

    def choose(self, contexts: Sequence[np.ndarray], rng: np.random.Generator) -> int:
        """Position of the model to ask. `contexts`: features (C,) of the request for each."""
        drawn = [
            self._quality[model.name].sample(rng) @ context - self.price(model)
            for model, context in zip(self.models, contexts, strict=True)
        ]
        return int(np.argmax(drawn))

    def price(self, model: Model) -> float:
        """Quality that a model must be better by to be worth its cost under the present load."""
        over = math.tanh(max(0.0, self.load - self.policy.load_threshold))
        # Not infinity times 0: without overload there is no bias, however large its price.
        bias = self.policy.load_price * over * model.cost if over else 0.0
        return self.policy.cost_price * model.cost + bias

    def is_uncertain(self, contexts: Sequence[np.ndarray]) -> bool:
        """Whether feedback on this request would be worth asking for.

        True when the second best model may well be the best: its expected improvement over the
        best one, (mean difference and its deviation, both Gaussian), is above `ask_above`.
        """
        if len(self.models) < 2:
            return False
        learned = [self._quality[model.name] for model in self.models]
        means = [
            model.mean @ context - self.price(arm)
            for model, arm, context in zip(learned, self.models, contexts, strict=True)
        ]
        second, best = np.argsort(means)[-2:]
        gap = float(means[best] - means[second])
        deviation = math.hypot(
            *(learned[at].deviation(contexts[at]) for at in (int(second), int(best)))
        )
        return expected_improvement(gap, deviation) > self.policy.ask_above

    def observe(self, name: str, context: np.ndarray, quality: float) -> None:
        """The answer of the model called `name` was worth `quality`, in [0, 1]."""
        self._quality[name].observe(context, quality)

    def observe_load(self, load: float) -> None:
        """The load now: 1 is as much as the machines can take."""
        self.load += self.policy.load_smoothing * (load - self.load)

    def state(self) -> dict[str, Any]:
        quality = {name: learned.state() for name, learned in self._quality.items()}
        return {"load": self.load, "quality": quality}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Models that are new since then start without knowledge."""
        self.load = float(state["load"])
        for name, learned in state["quality"].items():
            if name in self._quality:
                self._quality[name].restore(learned)
