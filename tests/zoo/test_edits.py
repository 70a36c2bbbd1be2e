"""Drawn edits, and the editing model that learned them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from recollect.errors import RecipeError, StoreError
from recollect.zoo import edits
from recollect.zoo.edits import classifier, sampling, train

NAME = "tiny-flux-edit"


@pytest.fixture(scope="module")
def loaded():
    return edits.load(NAME)


@pytest.fixture(scope="module")
def judge():
    return classifier.load(edits.path(NAME))


def drawn(count: int = 64, seed: int = 0) -> edits.Edits:
    return edits.draw_edits(count, torch.Generator().manual_seed(seed))


def test_an_edit_changes_its_region_and_nothing_else():
    pairs = drawn()
    assert pairs.before.shape == pairs.after.shape == (64, 3, 16, 16)
    changed = (pairs.before - pairs.after).abs().amax(1, keepdim=True)
    assert float((changed * ~pairs.region).max()) < 0.1
    assert bool(((changed * pairs.region).amax((1, 2, 3)) > 0.3).all())


def test_instructions_say_what_was_drawn(judge):
    pairs = drawn(128)
    assert classifier.recognized(judge, pairs.after, pairs).float().mean() >= 0.95
    assert not classifier.recognized(judge, pairs.before, pairs).any()
    for row, (verb, target, value) in enumerate(pairs.instructions.tolist()):
        line = " ".join(edits.WORDS[word] for word in (verb, target, value))
        assert edits.words(line).tolist() == [verb, target, value]
        assert value - 6 == pairs.drawn[row, 0] or value - 10 == pairs.drawn[row, 1]
    with pytest.raises(RecipeError, match="an instruction reads"):
        edits.words("recolour the disc square")


def test_outlines_say_where_a_far_shape_is(judge):
    pairs = edits.draw_edits(128, torch.Generator().manual_seed(0), far=True)
    assert bool((pairs.instructions[:, 0] == edits.WORDS.index("replace")).all())
    changed = (pairs.before - pairs.after).abs().amax(1, keepdim=True)
    assert float((changed * ~pairs.region).max()) < 0.1
    assert float(edits.overlap(pairs.after, pairs).min()) >= 0.8
    assert float(edits.overlap(pairs.before, pairs).mean()) < 0.6
    drawn = edits.outline(pairs.cover)
    assert drawn.shape == pairs.after.shape
    assert -1 <= float(drawn.min()) < float(drawn.max()) <= 1
    edge = (pairs.cover - 0.5).abs() < 0.1
    assert bool((drawn[:, :1][edge] > 0.9).all())  # a line where the shape ends
    assert bool((drawn[:, :1][pairs.cover < 0.02] < -0.8).all())


def test_tokens_are_packed_as_kontext_packs_them():
    from diffusers import FluxKontextPipeline

    pictures = drawn(2).before
    tokens = sampling.pack(pictures)
    assert torch.equal(tokens, FluxKontextPipeline._pack_latents(pictures, 2, 3, 16, 16))
    assert torch.equal(sampling.unpack(tokens), pictures)


def test_the_model_ships_small_edits_and_keeps_the_rest(loaded, judge):
    folder = Path(edits.path(NAME))
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 8 * 2**20
    card = json.loads((folder / "card.json").read_text())
    assert card["measured"]["recognized"] >= train.BAR
    assert card["measured"]["background_psnr"] >= 40
    measured = train.measure(loaded[0], loaded[1], judge, count=24, steps=10)
    assert measured["recognized"] >= 0.8
    assert measured["background_psnr"] >= 40


def test_a_short_training_leaves_a_model_that_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "BATCH", 2)
    monkeypatch.setattr(classifier, "train", lambda **_: classifier.EditJudge().eval())
    monkeypatch.setattr(train, "measure", lambda *_: {"recognized": 0.0, "background_psnr": 0.0})
    train.train(NAME, tmp_path, steps=2, device="cpu", progress=False)
    assert {"judge.safetensors", "card.json", "config.json", "instructions.safetensors"} <= {
        file.name for file in tmp_path.iterdir()
    }
    model, instructions = edits.load_folder(tmp_path)
    prompt = instructions(edits.words("recolour the bar red")[None])
    assert edits.edit(model, drawn(1).before, prompt, steps=1).shape == (1, 3, 16, 16)


def test_wrong_requests_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="unknown editing model"):
        edits.path("tiny-edit")
    with pytest.raises(RecipeError, match="unknown editing model"):
        train.train("tiny-edit", tmp_path)
    with pytest.raises(RecipeError, match="steps is 1 or more"):
        train.train(NAME, tmp_path, steps=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        train.train(NAME, tmp_path / "file" / "deeper")


def test_the_command_trains_models_of_drawings_by_steps_and_no_other():
    from recollect.cli import main
    from recollect.cli.zoo import _DRAWN

    for name, room in _DRAWN.items():
        assert name in importlib.import_module(room).MODELS
    for name, option in ((NAME, "--minutes"), ("tiny-llama", "--steps")):
        done = CliRunner().invoke(main, ["zoo", "train", name, option, "1"])
        assert done.exit_code == 2
        assert f"not {option}" in done.output
