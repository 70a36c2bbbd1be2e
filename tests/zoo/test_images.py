"""Drawn shapes, the image model that learned them, and what it shows about caching recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from recollect.diffusion import accelerated
from recollect.diffusion.planner import plan, record
from recollect.diffusion.policy import policy
from recollect.diffusion.predictors import Reuse, Taylor
from recollect.errors import RecipeError, StoreError
from recollect.evaluate.pictures import psnr
from recollect.zoo import images
from recollect.zoo.images import classifier, shapes, train

LIMIT = 8 * 2**20


@pytest.fixture(scope="module")
def model():
    return images.load("tiny-dit")


@pytest.fixture(scope="module")
def judge():
    return classifier.load(images.path("tiny-dit"))


def test_pictures_are_what_their_label_says(judge):
    labels = torch.arange(64) % 4
    pictures = images.draw(labels, torch.Generator().manual_seed(0))
    assert pictures.shape == (64, 3, 16, 16)
    assert float(pictures.abs().max()) <= 1
    assert float((judge(pictures).argmax(1) == labels).float().mean()) >= 0.95
    assert torch.equal(shapes.to_pictures(shapes.to_latent(pictures)), pictures)


@pytest.mark.parametrize("name", ["tiny-dit", "tiny-unet"])
def test_the_model_ships_small_and_draws_what_it_is_asked_for(name, judge):
    folder, model = Path(images.path(name)), images.load(name)
    assert sum(f.stat().st_size for f in folder.iterdir()) <= LIMIT
    assert json.loads((folder / "card.json").read_text())["measured"]["recognized"] >= train.BAR
    labels = torch.arange(64) % 4
    pictures = images.sample(model, labels, 20, seed=77)
    assert float((judge(pictures).argmax(1) == labels).float().mean()) >= 0.9


def test_a_picture_does_not_depend_on_its_batch(model):
    labels = torch.tensor([2, 0, 3])
    together = images.sample(model, labels, 4, seed=5)
    alone = images.sample(model, labels[1:2], 4, seed=6)
    assert torch.allclose(together[1:2], alone, atol=1e-4)


def test_distances_are_zero_for_equal_pictures(judge):
    pictures = images.draw(torch.arange(40) % 4, torch.Generator().manual_seed(1))
    assert float(classifier.perceptual(judge, pictures, pictures).abs().max()) < 1e-6
    assert classifier.frechet(judge, pictures, pictures) == pytest.approx(0, abs=1e-3)
    assert classifier.frechet(judge, pictures, pictures.flip(1).neg()) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2000, 3000])
def test_planned_forecasts_beat_uniform_ones_which_beat_fewer_steps_and_reuse(model, seed):
    labels, steps = torch.arange(16) % 4, 30
    plain = images.sample(model, labels, steps, seed)

    def decibels(chosen) -> float:
        with accelerated(model, chosen) as acceleration:
            pictures = images.sample(model, labels, steps, seed)
            report = acceleration.report()
        assert report.computed == 10 * report.evaluations / steps
        return float(psnr(pictures, plain).mean())

    profile = record(model, lambda: images.sample(model, labels[:8], steps, seed=9000))
    planned = decibels(plan(profile, Taylor(1), 10).policy)
    planned_for_reuse = decibels(plan(profile, Reuse(), 10).policy)
    uniform = decibels(policy("taylorseer", every=3, warmup=1))
    reuse = decibels(policy("taylorseer", order=0, every=3, warmup=1))
    fewer = float(psnr(images.sample(model, labels, 10, seed), plain).mean())
    print(
        f"{planned:.1f} planned, {uniform:.1f} uniform, {fewer:.1f} fewer, {reuse:.1f} reuse",
        planned_for_reuse,
    )
    assert planned > uniform + 1
    assert planned > planned_for_reuse + 2
    assert uniform > max(fewer, reuse) + 3


def test_a_short_training_leaves_a_model_that_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "BATCH", 4)
    monkeypatch.setattr(train.judges, "train", lambda **_: classifier.Classifier().eval())
    card = train.train("tiny-dit", tmp_path, steps=2, progress=False)
    assert {"recognized", "frechet"} <= set(card["measured"])
    assert {"classifier.safetensors", "card.json", "config.json"} <= {
        file.name for file in tmp_path.iterdir()
    }


def test_wrong_requests_are_refused(tmp_path, model):
    with pytest.raises(RecipeError, match="unknown image model 'tiny-dot'"):
        images.path("tiny-dot")
    with pytest.raises(RecipeError, match="unknown image model"):
        train.train("tiny-dot", tmp_path)
    with pytest.raises(RecipeError, match="steps is 1 or more"):
        images.sample(model, torch.tensor([0]), steps=0)
    with pytest.raises(RecipeError, match="solver is one of"):
        images.sample(model, torch.tensor([0]), solver="guess")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        train.train("tiny-dit", tmp_path / "file" / "deeper")
