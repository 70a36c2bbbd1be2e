"""Thresholds from observations: pairs of a similarity and whether the stored answer was right.

A threshold means something for one encoder and one traffic; these functions find it for yours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from recollect.errors import RecipeError

NOTHING = 1.01  # a threshold no cosine reaches


def best_f_threshold(
    similarities: Sequence[float], correct: Sequence[bool], beta: float = 1.0
) -> float:
    """The cosine whose hits have the largest F-beta, half-way to the next lower similarity.

    MeanCache's rule per client (arXiv 2403.02694) with beta = 1. Raises RecipeError without
    observations of both kinds.
    """
    order, right = _sorted(similarities, correct)
    hits, positives = np.arange(1, len(right) + 1), right.sum()
    true = np.cumsum(right)
    f = (1 + beta**2) * true / (hits + beta**2 * positives)
    f = np.where(_boundaries(order), f, -1)
    return _between(order, int(f.argmax()))


def threshold_for_wrong_share(
    similarities: Sequence[float], correct: Sequence[bool], wrong: float
) -> float:
    """The lowest cosine at which at most `wrong` of the hits are wrong; 1.01 when there is none."""
    order, right = _sorted(similarities, correct, both=False)
    share = np.cumsum(~right) / np.arange(1, len(right) + 1)
    allowed = np.flatnonzero((share <= wrong) & _boundaries(order))
    return _between(order, int(allowed[-1])) if len(allowed) else NOTHING


def category_thresholds(
    observations: Mapping[str, tuple[Sequence[float], Sequence[bool]]], wrong: float
) -> dict[str, float]:
    """A cosine per category: most hits in all while at most `wrong` of all hits are wrong.

    Hits are worth one and wrong hits cost a price that is the same everywhere; the price is found
    by bisection, so that no category could trade hits with another at a gain. 1.01 closes a
    category.
    """
    sorted_by = {c: _sorted(*pair, both=False) for c, pair in observations.items() if pair[0]}

    def choose(price: float) -> tuple[dict[str, float], int, int]:
        chosen, hits, errors = {}, 0, 0
        for category, (order, right) in sorted_by.items():
            worth = np.cumsum(np.where(right, 1.0, 1.0 - price))
            worth = np.where(_boundaries(order), worth, -np.inf)
            best = int(worth.argmax())
            if worth[best] <= 0:
                chosen[category] = NOTHING
                continue
            chosen[category] = _between(order, best)
            hits, errors = hits + best + 1, errors + int((~right[: best + 1]).sum())
        return chosen, hits, errors

    def affordable(price: float) -> bool:
        _, hits, errors = choose(price)
        return errors <= wrong * hits

    if affordable(0.0):
        return choose(0.0)[0]
    low, high = 1e-3, 1e6  # at the high end no category keeps a wrong hit
    for _ in range(60):
        price = (low * high) ** 0.5
        low, high = (low, price) if affordable(price) else (price, high)
    return choose(high)[0]


def _sorted(
    similarities: Sequence[float], correct: Sequence[bool], both: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Similarities from high to low and whether each was right."""
    values, right = np.asarray(similarities, np.float64), np.asarray(correct, bool)
    if len(values) != len(right) or not len(values):
        raise RecipeError("calibration needs as many outcomes as similarities, at least one")
    if both and (right.all() or not right.any()):
        raise RecipeError("calibration needs right and wrong observations")
    order = np.argsort(-values, kind="stable")
    return values[order], right[order]


def _boundaries(order: np.ndarray) -> np.ndarray:
    """Where a threshold can lie: after the last of equal similarities."""
    return np.append(order[:-1] > order[1:], True)


def _between(order: np.ndarray, last: int) -> float:
    """Half-way between the last hit and the first miss; on the last hit when all are hits."""
    below = order[last + 1] if last + 1 < len(order) else order[last]
    return float((order[last] + below) / 2)
