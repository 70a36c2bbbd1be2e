"""Which steps to compute under a budget, planned with the predictor that will run between them.

A schedule that is best for reuse is not best for a forecast: planned for the wrong one, the same
budget costs many decibels. Planning takes a few recorded generations and no further evaluations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from recollect.diffusion.engine.values import Value
from recollect.diffusion.policy import DiffusionPolicy
from recollect.diffusion.predictors import FoCa, History, Predictor, Reuse, Taylor
from recollect.diffusion.profiles import Profile, record
from recollect.diffusion.schedules import Mask
from recollect.errors import RecipeError

__all__ = ["Plan", "Profile", "groups", "partition", "plan", "planned_error", "plans", "record"]


@dataclass(frozen=True)
class Plan:
    """A schedule for a number of steps, with what it is planned to cost.

    Attributes:
        policy: ready for `accelerate`.
        error: mean squared error of the forecasts, each weighted with its step's length.
        computed: the steps that are computed.
    """

    policy: DiffusionPolicy
    error: float
    computed: tuple[int, ...]


def plan(profile: Profile, predictor: Predictor, budget: int, warmup: int = 1) -> Plan:
    """The best `budget` steps to compute; see `plans`."""
    return plans(profile, predictor, (budget,), warmup)[budget]


def plans(
    profile: Profile, predictor: Predictor, budgets: Iterable[int], warmup: int = 1
) -> dict[int, Plan]:
    """The best steps to compute for each budget: a dynamic programme over the latest computed ones.

    The state is as many computed steps as the predictor remembers, so the result is optimal for
    the recorded values: one for reuse, two for a line, three for a parabola. A larger budget goes
    on from the states of smaller ones, so that many cost little more than the largest.

    Args:
        profile: recorded values.
        predictor: the one that will run under the schedules.
        budgets: numbers of steps to compute, the first ones included.
        warmup: first steps that are always computed.

    Raises:
        RecipeError: an impossible budget, or a predictor that remembers too much to plan for.
    """
    total, wanted = len(profile.steps), sorted(set(budgets))
    warmup = max(1, warmup)
    for budget in wanted:
        if not warmup <= budget <= total:
            raise RecipeError(f"the budget is between {warmup} and {total} steps, not {budget}")
    memory = _memory(predictor)
    cost = _Costs(profile, predictor)
    start = tuple(range(warmup))
    # (latest computed steps) -> (cost so far, all computed steps), for a growing number of steps
    states: dict[tuple[int, ...], tuple[float, tuple[int, ...]]] = {start[-memory:]: (0.0, start)}
    found: dict[int, Plan] = {}
    for count in range(warmup, wanted[-1] + 1 if wanted else 0):
        if count > warmup:
            states = _longer(states, cost, total, memory)
        if count in wanted:
            error, computed = min(
                (spent + cost.between(latest, total), steps)
                for latest, (spent, steps) in states.items()
            )
            mask = Mask(steps=tuple(i in computed for i in range(total)))
            found[count] = Plan(DiffusionPolicy(profile.site, mask, predictor), error, computed)
    return found


def _longer(
    states: dict[tuple[int, ...], tuple[float, tuple[int, ...]]],
    cost: _Costs,
    total: int,
    memory: int,
) -> dict[tuple[int, ...], tuple[float, tuple[int, ...]]]:
    """The best way to every state with one more computed step."""
    grown: dict[tuple[int, ...], tuple[float, tuple[int, ...]]] = {}
    for latest, (spent, steps) in states.items():
        for step in range(latest[-1] + 1, total):
            price = spent + cost.between(latest, step)
            key = (*latest, step)[-memory:]
            if key not in grown or price < grown[key][0]:
                grown[key] = (price, (*steps, step))
    return grown


def planned_error(profile: Profile, predictor: Predictor, computed: tuple[int, ...]) -> float:
    """What a given schedule costs on a profile: the quantity that `plan` minimizes."""
    cost, memory = _Costs(profile, predictor), _memory(predictor)
    total = 0.0
    for place, step in enumerate(computed):
        after = computed[place + 1] if place + 1 < len(computed) else len(profile.steps)
        latest = computed[: place + 1][-memory:]
        assert latest[-1] == step
        total += cost.between(latest, after)
    return total


def groups(profiles: Iterable[Profile], every: int) -> tuple[int, ...]:
    """The first steps of groups that share one computed value, by Fisher's optimal partition.

    The cost of a group is the L1 distance of its steps' values to its first one's, over all sites.
    As many groups as a uniform schedule would have, each of half to twice its length: without the
    bounds all computed steps would gather where features move most (CacheQuant,
    arXiv:2503.01323).

    Args:
        profiles: recorded values, one profile per site.
        every: length of a group on average.

    Raises:
        RecipeError: no profiles, or a length below 1.
    """
    if every < 1:
        raise RecipeError(f"every is 1 or more, not {every}")
    apart: list[list[float]] = []
    for profile in profiles:
        drift = [
            [_distance(profile.values[t], profile.values[i]) for t in range(i, len(profile.steps))]
            for i in range(len(profile.steps))
        ]
        apart = (
            [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(apart, drift, strict=True)]
            if apart
            else drift
        )
    if not apart:
        raise RecipeError("nothing was recorded to plan with")
    return partition([list(itertools.accumulate(row)) for row in apart], every)


def partition(costs: list[list[float]], every: int) -> tuple[int, ...]:
    """The starts of the cheapest groups.

    Args:
        costs: of a group that begins at i and has n + 1 members, at ``[i][n]``.
        every: length of a group on average; a group has half to twice as many members.
    """
    total = len(costs)
    count = math.ceil(total / every)
    shortest, longest = min(math.ceil(every / 2), total // count), 2 * every
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for _ in range(count):
        grown: dict[int, tuple[float, tuple[int, ...]]] = {}
        for begin, (spent, starts) in best.items():
            for end in range(begin + shortest, min(begin + longest, total) + 1):
                price = spent + costs[begin][end - begin - 1]
                if end not in grown or price < grown[end][0]:
                    grown[end] = (price, (*starts, begin))
        best = grown
    return best[total][1]


def _distance(one: Value, other: Value) -> float:
    """L1 distance per element."""
    return sum(float((a.float() - b.float()).abs().mean()) for a, b in zip(one, other, strict=True))


class _Costs:
    """Errors of forecasts between computed steps, each worked out once."""

    def __init__(self, profile: Profile, predictor: Predictor) -> None:
        self.profile, self.predictor = profile, predictor
        self._sums: dict[tuple[int, ...], list[float]] = {}
        sigmas = [step.sigma for step in profile.steps]
        ends = [*sigmas[1:], 0.0 if sigmas[0] > sigmas[-1] else 1.0]
        self._lengths = [(a - b) ** 2 for a, b in zip(sigmas, ends, strict=True)]

    def between(self, latest: tuple[int, ...], until: int) -> float:
        """Summed error of the steps after `latest[-1]` and before `until`."""
        if latest not in self._sums:
            errors = self._errors_after(latest)
            self._sums[latest] = list(itertools.accumulate(errors, initial=0.0))
        return self._sums[latest][until - latest[-1] - 1]

    def _errors_after(self, latest: tuple[int, ...]) -> Iterator[float]:
        """The error of every later step if none of them were computed."""
        history = History()
        for seen in latest:
            self.predictor.observe(
                history, self.profile.values[seen], self._moment(seen), self._all
            )
        for step in range(latest[-1] + 1, len(self.profile.steps)):
            guess = self.predictor.predict(history, self._moment(step))
            error = sum(
                float((g.float() - t.float()).square().mean())
                for g, t in zip(guess, self.profile.values[step], strict=True)
            )
            yield error * self._lengths[step]

    def _moment(self, step: int) -> torch.Tensor:
        on = self.profile.steps[step].on(self.predictor.scale)
        return torch.full((len(self._all),), on, dtype=torch.float64)

    @property
    def _all(self) -> torch.Tensor:
        return torch.ones(len(self.profile.values[0][0]), dtype=torch.bool)


def _memory(predictor: Predictor) -> int:
    """How many computed steps a forecast depends on."""
    if isinstance(predictor, Reuse):
        return 1
    if isinstance(predictor, Taylor) and predictor.order <= 2:
        return predictor.order + 1
    if isinstance(predictor, FoCa):
        return 3
    raise RecipeError(
        f"{type(predictor).__name__} remembers too many steps to plan for; plan with Reuse, FoCa, "
        "or Taylor up to order 2"
    )
