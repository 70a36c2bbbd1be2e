"""Planned schedules: equal to brute force, better than uniform ones, and saved in a line."""

from __future__ import annotations

import itertools

import pytest
import torch
from denoisers import denoiser, sample

from recollect.diffusion import DiffusionPolicy, accelerated
from recollect.diffusion.engine.clock import Step
from recollect.diffusion.planner import Profile, plan, planned_error, plans, record
from recollect.diffusion.policy import policy
from recollect.diffusion.predictors import FoCa, Modes, Reuse, Taylor
from recollect.diffusion.sites import Hidden, Modules, Span, Velocity
from recollect.errors import RecipeError

FLUX = denoiser("FluxTransformer2DModel")


def profile(values: list[float]) -> Profile:
    count = len(values)
    steps = tuple(Step(i, 1 - i / count, 1 - i / count, count) for i in range(count))
    return Profile(Velocity(), steps, tuple((torch.full((1, 2), float(v)),) for v in values))


def test_reuse_computes_where_the_value_changes():
    given = profile([0, 0, 5, 5, 9, 9])
    assert plan(given, Reuse(), 3).computed == (0, 2, 4)
    assert plan(given, Reuse(), 3).error == 0
    assert plan(given, Reuse(), 2).computed == (0, 2)


@pytest.mark.parametrize("predictor", [Reuse(), Taylor(1), Taylor(2), FoCa()], ids=str)
def test_the_plan_is_as_good_as_the_best_of_all_schedules(predictor):
    values = torch.randn(8, generator=torch.Generator().manual_seed(1)).cumsum(0).tolist()
    given = profile(values)
    for budget in (2, 4, 6, 8):
        found = plan(given, predictor, budget)
        best = min(
            planned_error(given, predictor, (0, *rest))
            for rest in itertools.combinations(range(1, 8), budget - 1)
        )
        assert found.error == pytest.approx(best, rel=1e-9, abs=1e-12)
        assert len(found.computed) == budget
        assert planned_error(given, predictor, found.computed) == pytest.approx(found.error)


def test_a_larger_budget_is_never_worse():
    given = profile(torch.linspace(0, 3, 9).sin().tolist())
    found = plans(given, Taylor(1), range(1, 10))
    errors = [found[budget].error for budget in range(1, 10)]
    assert found == {budget: plan(given, Taylor(1), budget) for budget in range(1, 10)}
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0


def test_a_line_is_planned_with_two_steps():
    assert plan(profile([3 * i for i in range(8)]), Taylor(1), 2).computed == (0, 1)


def test_a_real_generation_is_recorded_planned_and_run():
    model = FLUX.build()
    plain = sample(FLUX, model, 10)
    recorded = record(model, lambda: sample(FLUX, model, 10))
    assert len(recorded.steps) == 10
    assert [s.index for s in recorded.steps] == list(range(10))
    found = plan(recorded, Taylor(1), 4)
    uniform = policy("taylorseer", every=3, warmup=1)
    errors = []
    for chosen in (found.policy, uniform):
        with accelerated(model, chosen) as acceleration:
            errors.append(float((sample(FLUX, model, 10) - plain).square().mean()))
            assert acceleration.report().computed == 4
    assert errors[0] < errors[1]
    assert not hasattr(model, "_diffusers_hook")


def test_hidden_states_can_be_planned_too():
    model = FLUX.build()
    recorded = record(model, lambda: sample(FLUX, model, 6), Hidden())
    found = plan(recorded, Reuse(), 3)
    with accelerated(model, found.policy) as acceleration:
        sample(FLUX, model, 6)
        assert acceleration.report().computed == 3


def test_several_generations_are_averaged():
    model = FLUX.build()

    def run():
        for seed in range(3):
            sample(FLUX, model, 5, seed=seed, batch=2)

    recorded = record(model, run)
    assert recorded.values[0][0].shape[0] == 6


@pytest.mark.parametrize("budget", [0, 9])
def test_impossible_budgets_are_refused(budget):
    with pytest.raises(RecipeError, match="the budget is between 1 and 6"):
        plan(profile([0] * 6), Reuse(), budget)


def test_what_cannot_be_planned_is_refused():
    with pytest.raises(RecipeError, match="remembers too many steps"):
        plan(profile([0] * 6), Modes(), 3)
    model = FLUX.build()
    with pytest.raises(RecipeError, match="several values per step"):
        record(model, lambda: sample(FLUX, model, 3), Modules())
    with pytest.raises(RecipeError, match="nothing was drawn"):
        record(model, lambda: None)

    def unequal():
        sample(FLUX, model, 4, seed=1)
        sample(FLUX, model, 5, seed=2)

    with pytest.raises(RecipeError, match="record equal ones"):
        record(model, unequal)
    with pytest.raises(RecipeError, match="several values per step"):
        record(model, lambda: sample(FLUX, model, 3), Span())


@pytest.mark.parametrize(
    "spec", ["taylorseer", "fora", "easycache + foca", "scm", "delta-dit", "teacache", "dbcache"]
)
def test_a_policy_is_one_line_of_yaml(spec):
    made = policy(spec, batch="split", limit=10**9)
    line = made.to_yaml()
    assert "\n" not in line
    assert DiffusionPolicy.from_yaml(line) == made
    assert policy(line) == made


@pytest.mark.parametrize(
    "line", ["{gate: {Door: {}}}", "{gat: {}}", "[1]", "{gate: {Interval: {evry: 2}}}", "{gate"]
)
def test_a_damaged_line_is_refused(line):
    with pytest.raises(RecipeError):
        DiffusionPolicy.from_yaml(line)
