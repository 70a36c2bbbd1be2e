"""How useful an example must be to be worth its prefill: one number, tuned while serving.

A bandit over a few thresholds: each request tries one, and is paid the quality it got beyond what
the model reaches by itself, less the price of the tokens added. The largest threshold lets nothing
in, so it also finds out when examples do not pay at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from recollect.answers.examples.linear import BayesianLinear

THRESHOLDS = (0.0, 0.02, 0.05, 0.1, 0.2, 10.0)  # in units of quality; none reaches the last
SPREAD, NOISE = 0.05, 0.5


class UtilityThreshold:
    """Thompson sampling over `THRESHOLDS`, one for all requests."""

    def __init__(self) -> None:
        self._pays = BayesianLinear(np.zeros(len(THRESHOLDS)).tolist(), SPREAD, NOISE)

    def choose(self, rng: np.random.Generator) -> int:
        """Which threshold to use for one request, as a position in `THRESHOLDS`."""
        return int(self._pays.sample(rng).argmax())

    def best(self) -> int:
        """The one that pays most as far as is known, as a position in `THRESHOLDS`."""
        return int(self._pays.mean.argmax())

    def observe(self, position: int, gain: float) -> None:
        """What a request gained, in quality, under the threshold at `position`."""
        self._pays.observe(np.eye(len(THRESHOLDS))[position], gain)

    def state(self) -> dict[str, Any]:
        return self._pays.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self._pays.restore(state)
