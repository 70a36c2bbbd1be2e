"""Tuning keeps the budget, beats what it compares, and writes a file that only its model reads."""

from __future__ import annotations

import pytest
import torch
from denoisers import denoiser, sample

import recollect
from recollect.diffusion import DiffusionPolicy, accelerated, tuner
from recollect.diffusion.policy import policy
from recollect.diffusion.sites import Velocity
from recollect.diffusion.tuner import tune
from recollect.errors import HostError, RecipeError, StoreError

FLUX = denoiser("FluxTransformer2DModel")
STEPS = 6


@pytest.fixture(scope="module")
def tuned():
    model = FLUX.build()
    seen: list[str] = []
    found = tune(
        model, lambda seed: sample(FLUX, model, STEPS, seed=seed), 0.5, progress=seen.append
    )
    return model, found, seen


def test_every_trial_keeps_the_budget_and_the_best_comes_first(tuned):
    _, found, seen = tuned
    assert all(trial.computed <= 0.5 + 1e-6 for trial in found.trials)
    quality = [trial.decibels for trial in found.trials]
    assert quality == sorted(quality, reverse=True)
    assert len(seen) == 6
    assert {"planned Velocity", "planned Hidden", "cg-taylor"} <= set(seen)


def test_the_best_is_better_than_reuse_of_every_second_step(tuned):
    model, found, _ = tuned
    plain = sample(FLUX, model, STEPS, seed=5)
    errors = []
    for chosen in (found.best.policy, policy("taylorseer", order=0, every=2, warmup=1)):
        with accelerated(model, chosen):
            errors.append(float((sample(FLUX, model, STEPS, seed=5) - plain).square().mean()))
    assert errors[0] < errors[1]


def test_a_saved_plan_is_read_by_its_model_only(tuned, tmp_path):
    model, found, _ = tuned
    path = tmp_path / "plan.yaml"
    found.best.save(path)
    assert policy(str(path)) == policy(path) == found.best.policy
    with recollect.accelerated(model, path) as acceleration:
        sample(FLUX, model, STEPS)
        assert acceleration.report().computed < STEPS
    other = FLUX.build()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    with pytest.raises(HostError, match="tuned for another model"):
        recollect.accelerate(other, path)
    assert not hasattr(other, "_diffusers_hook")


def test_files_that_hold_no_plan_are_refused(tmp_path):
    path = tmp_path / "plan.yaml"
    for missing in (path, str(path), tmp_path / "plan"):
        with pytest.raises(StoreError, match="cannot read"):
            policy(missing)
    path.write_text("name: something\n")
    with pytest.raises(StoreError, match="holds no policy"):
        policy(path)
    path.write_text("a: [")
    with pytest.raises(RecipeError, match="not readable as YAML"):
        policy(path)


@pytest.mark.parametrize("budget", [0, 1, -0.5, 2])
def test_impossible_budgets_are_refused(budget):
    with pytest.raises(RecipeError, match="between 0 and 1"):
        tune(FLUX.build(), lambda seed: torch.zeros(1), budget)


def test_plans_are_judged_on_other_noise_than_they_were_made_from():
    with pytest.raises(RecipeError, match="different seeds"):
        tune(FLUX.build(), lambda seed: torch.zeros(1), 0.5, calibration=(1,), seeds=(1, 2))


def test_a_budget_that_nothing_keeps_is_told(monkeypatch):
    monkeypatch.setattr(tuner, "SITES", (Velocity(),))
    monkeypatch.setattr(tuner, "GATES", ())
    model = FLUX.build()
    with pytest.raises(RecipeError, match="nothing keeps a budget of 5%"):
        tune(model, lambda seed: sample(FLUX, model, 3, seed=seed), 0.05)


def test_the_model_is_part_of_a_line_of_yaml():
    made = DiffusionPolicy(model="abc")
    assert DiffusionPolicy.from_yaml(made.to_yaml()) == made
