"""Moving shapes, the video model that learned them, and what it shows about caching recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from recollect.diffusion import accelerated
from recollect.diffusion.planner import plan, record
from recollect.diffusion.policy import policy
from recollect.diffusion.predictors import Taylor
from recollect.errors import RecipeError, StoreError
from recollect.evaluate.clips import psnr
from recollect.zoo import videos
from recollect.zoo.videos import classifier, clips, train

LIMIT = 8 * 2**20
SHAPES, MOTIONS = torch.cartesian_prod(torch.arange(4), torch.arange(2)).T


@pytest.fixture(scope="module")
def model():
    return videos.load("tiny-video-dit")


@pytest.fixture(scope="module")
def judge():
    return classifier.load(videos.path("tiny-video-dit"))


def test_clips_are_what_their_caption_says(judge):
    drawn, cover = videos.draw(
        SHAPES.repeat(8), MOTIONS.repeat(8), torch.Generator().manual_seed(0)
    )
    assert drawn.shape == (64, 3, 8, 16, 16)
    assert float(drawn.abs().max()) <= 1
    assert judge.recognizes(drawn, SHAPES.repeat(8), MOTIONS.repeat(8)).float().mean() >= 0.95
    assert torch.equal(clips.to_clips(clips.to_latent(drawn)), drawn)
    mass = cover.sum((2, 3), keepdim=True)
    axis = torch.arange(16.0)
    x = (cover * axis).sum((2, 3), keepdim=True) / mass
    y = (cover * axis[:, None]).sum((2, 3), keepdim=True) / mass
    moved = torch.stack([x[:, -1] - x[:, 0], y[:, -1] - y[:, 0]], 1).flatten(1)
    along = clips._WAYS[MOTIONS.repeat(8)] == 1
    assert float(moved[along].abs().min()) > 3
    assert float(moved[~along].abs().max()) < 0.5
    assert 10 < int((moved[along] > 0).sum()) < 54  # either way


def test_a_token_of_the_latent_is_a_patch_of_one_frame():
    drawn = torch.zeros(1, 3, 8, 16, 16)
    drawn[0, 1, 5, 8:12, 4:8] = 1
    latent = clips.to_latent(drawn)
    assert latent.shape == (1, 48, 8, 4, 4)
    assert latent.amax(1).nonzero().tolist() == [[0, 5, 2, 1]]


def test_the_model_ships_small_and_draws_what_it_is_asked_for(model, judge):
    folder = Path(videos.path("tiny-video-dit"))
    assert sum(file.stat().st_size for file in folder.iterdir()) <= LIMIT
    measured = json.loads((folder / "card.json").read_text())["measured"]
    assert min(measured["shape"], measured["motion"]) >= train.BAR
    drawn = videos.sample(*model, SHAPES, MOTIONS, 15, seed=77)
    assert judge.recognizes(drawn, SHAPES, MOTIONS).float().mean() >= 0.8


def test_a_clip_does_not_depend_on_its_batch_nor_on_how_guidance_is_called(model):
    shapes, motions = torch.tensor([2, 0]), torch.tensor([1, 0])
    both = videos.sample(*model, shapes, motions, 3, seed=5)
    alone = videos.sample(*model, shapes[1:], motions[1:], 3, seed=6)
    assert torch.allclose(both[1:], alone, atol=1e-4)
    together = videos.sample(*model, shapes, motions, 3, seed=5, together=True)
    assert torch.allclose(both, together, atol=1e-4)
    told = videos.sample(*model, shapes, motions, 3, seed=5, guidance=1.0)
    assert not torch.allclose(both, told, atol=1e-2)


@pytest.mark.parametrize("together", [False, True])
def test_recipes_see_the_branches_of_guidance_either_way(model, together):
    net, captions = model
    shapes, motions = torch.tensor([2]), torch.tensor([1])
    plain = videos.sample(net, captions, shapes, motions, 6, together=together)
    with accelerated(net, "taylorseer", every=2, warmup=2) as acceleration:
        drawn = videos.sample(net, captions, shapes, motions, 6, together=together)
        report = acceleration.report()
    assert report.computed == report.evaluations * 4 / 6
    assert float(psnr(drawn, plain)) > 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2000, 3000])
def test_planned_forecasts_beat_fewer_steps(model, seed):
    net, captions = model
    shapes, motions, steps = SHAPES, MOTIONS, 20

    def draw(count: int, at: int = seed) -> torch.Tensor:
        return videos.sample(net, captions, shapes, motions, count, at)

    plain = draw(steps)
    profile = record(net, lambda: draw(steps, 9000))

    def decibels(chosen) -> float:
        with accelerated(net, chosen):
            return float(psnr(draw(steps), plain).mean())

    planned = decibels(plan(profile, Taylor(1), 7).policy)
    uniform_reuse = decibels(policy("taylorseer", order=0, every=3, warmup=1))
    fewer = float(psnr(draw(7), plain).mean())
    print(f"{planned:.1f} planned, {uniform_reuse:.1f} reuse, {fewer:.1f} fewer")
    assert planned > max(fewer, uniform_reuse) + 2


def test_a_stopped_training_goes_on_and_leaves_a_model_that_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "BATCH", 2)
    monkeypatch.setattr(train.judges, "train", lambda **_: classifier.Classifier().eval())
    monkeypatch.setattr(train, "measure", lambda *_, **__: {"recognized": 0.0})
    stopped = train._Run("tiny-video-dit", tmp_path, 0, "cpu")
    stopped.train(2, progress=False)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2
    steps = []
    monkeypatch.setattr(
        train._Run,
        "_loss",
        lambda run, g, loss=train._Run._loss: steps.append(run.step) or loss(run, g),
    )
    train.train("tiny-video-dit", tmp_path, steps=4, progress=False)
    assert steps == [2, 3]
    left = {file.name for file in tmp_path.iterdir()}
    assert {"classifier.safetensors", "captions.safetensors", "card.json", "config.json"} <= left
    assert "checkpoint.pt" not in left
    clips = videos.sample(*videos.load_folder(tmp_path), torch.tensor([0]), torch.tensor([1]), 1)
    assert clips.shape == (1, 3, 8, 16, 16)


def test_wrong_requests_are_refused(tmp_path, model):
    with pytest.raises(RecipeError, match="unknown video model 'tiny-film'"):
        videos.path("tiny-film")
    with pytest.raises(RecipeError, match="unknown video model"):
        train.train("tiny-film", tmp_path)
    with pytest.raises(RecipeError, match="do not pair up"):
        videos.sample(*model, torch.tensor([0]), torch.tensor([0, 1]))
    with pytest.raises(RecipeError, match="motions 0 to 1"):
        videos.sample(*model, torch.tensor([0]), torch.tensor([4]))
    (tmp_path / "checkpoint.pt").write_text("no")
    with pytest.raises(StoreError, match="damaged"):
        train.train("tiny-video-dit", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        train.train("tiny-video-dit", tmp_path / "file" / "deeper")
