"""Bayesian linear regression, learned one observation at a time: what selector and router share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class BayesianLinear:
    """Posterior of the weights w (F,) in y = w x + noise, noise of known standard deviation.

    Arguments:
        prior: mean (F,) of the weights before the first observation.
        spread: their standard deviation then, one for all or (F,).
        noise: standard deviation of what is observed.
    """

    def __init__(self, prior: Sequence[float], spread: float | Sequence[float], noise: float):
        mean = np.asarray(prior, np.float64)
        precision = 1 / np.broadcast_to(np.asarray(spread, np.float64), mean.shape) ** 2
        self._noise = noise
        self._precision = np.diag(precision)
        self._moment = precision * mean
        self.mean: np.ndarray = mean
        self.observations = 0

    def observe(self, features: np.ndarray, value: float) -> None:
        """One more pair of `features` (F,) and what came out."""
        weight = 1 / self._noise**2
        self._precision += weight * np.outer(features, features)
        self._moment += weight * value * features
        self.mean = np.linalg.solve(self._precision, self._moment)
        self.observations += 1

    def deviation(self, features: np.ndarray) -> float:
        """Standard deviation of w x, without the noise."""
        return float(np.sqrt(features @ np.linalg.solve(self._precision, features)))

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """Weights (F,) drawn from the posterior."""
        root = np.linalg.cholesky(self._precision)
        return self.mean + np.linalg.solve(root.T, rng.standard_normal(len(self.mean)))

    def state(self) -> dict[str, Any]:
        """What was learned, as plain numbers for JSON."""
        return {
            "precision": self._precision.tolist(),
            "moment": self._moment.tolist(),
            "observations": self.observations,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`. Raises ValueError when it is of another width."""
        precision = np.asarray(state["precision"], np.float64)
        moment = np.asarray(state["moment"], np.float64)
        if precision.shape != self._precision.shape or moment.shape != self._moment.shape:
            raise ValueError("weights of another width")
        self._precision, self._moment = precision, moment
        self.mean = np.linalg.solve(precision, moment)
        self.observations = int(state["observations"])


def expected_improvement(gap: float, deviation: float) -> float:
    """E[max(0, X)] of a Gaussian X of mean -gap: what may be lost by taking the gap for certain."""
    if deviation == 0 or not math.isfinite(gap):
        return 0.0
    z = gap / deviation
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return deviation * density - gap * math.erfc(z / math.sqrt(2)) / 2
