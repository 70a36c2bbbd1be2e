"""Which of many things to keep in a bounded space: 0/1 knapsack by density, within a factor two."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recollect.errors import RecipeError


def keep(values: Sequence[float], weights: Sequence[int], capacity: int) -> list[int]:
    """Positions to keep, ascending: total weight <= capacity, value at least half of the best.

    Takes by value per weight whatever still fits, or the single most valuable thing where that is
    worth more. Raises RecipeError on weights below one, negative values or other lengths.
    """
    worth, weight = np.asarray(values, np.float64), np.asarray(weights, np.int64)
    if worth.shape != weight.shape or (weight < 1).any() or not (worth >= 0).all():
        raise RecipeError("a knapsack takes one value >= 0 and one weight >= 1 for each thing")
    room, chosen = capacity, []
    for at in np.argsort(-worth / weight, kind="stable").tolist():
        if weight[at] <= room:
            room -= int(weight[at])
            chosen.append(at)
    fitting = np.flatnonzero(weight <= capacity)
    if len(fitting):
        best = int(fitting[worth[fitting].argmax()])
        if worth[best] > worth[chosen].sum():
            return [best]
    return sorted(chosen)
