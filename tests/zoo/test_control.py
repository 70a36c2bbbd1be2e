"""The control task, the policy that learned it, and how it is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from recollect.errors import RecipeError
from recollect.zoo import control
from recollect.zoo.control import rollouts, task, train


def test_the_policy_ships_small_and_reaches_its_goal_more_often_than_not():
    folder = Path(control.path("tiny-policy"))
    assert sum(file.stat().st_size for file in folder.iterdir()) < 2 * 2**20
    model = control.load("tiny-policy")
    assert rollouts.success(model, episodes=16, seed=20_000, steps=20) > 0.5
    untrained = type(model)().eval()
    assert rollouts.success(untrained, episodes=16, seed=20_000, steps=5) < 0.2


def test_demonstrations_end_at_the_goal():
    seen, plans = task.lessons(8, torch.Generator().manual_seed(0))
    assert len(seen) == len(plans) > 8
    assert plans.shape[1:] == (16, 2)
    assert bool(torch.isfinite(plans).all())


def test_a_short_training_leaves_a_policy_that_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "EPISODES", 20)
    monkeypatch.setattr(train, "success", lambda *_, **__: 0.0)  # measured above
    card = train.train("tiny-policy", tmp_path, steps=3, progress=False)
    assert card["recipe"]["steps"] == 3
    assert json.loads((tmp_path / "card.json").read_text()) == card
    first = control.load_folder(tmp_path)
    card = train.train("tiny-policy", tmp_path / "more", steps=2, progress=False, start=tmp_path)
    assert card["recipe"]["started_from"]["steps"] == 3
    second = control.load_folder(tmp_path / "more")
    names = dict(first.named_parameters())
    assert any(not torch.equal(names[n], p) for n, p in second.named_parameters())


def test_what_cannot_be_trained_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="unknown control model"):
        train.train("large-policy", tmp_path)
    with pytest.raises(RecipeError, match="steps is 1 or more"):
        train.train("tiny-policy", tmp_path, steps=0)
    with pytest.raises(RecipeError, match="trains on the cpu"):
        train.train("tiny-policy", tmp_path, device="cuda")
    with pytest.raises(RecipeError, match="unknown control model"):
        control.load("large-policy")
