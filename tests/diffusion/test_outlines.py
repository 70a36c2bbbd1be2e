"""A condition adapter that was trained: outlines are followed, and their tokens run once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from recollect.diffusion.banks import outlines
from recollect.diffusion.engine.attach import accelerated
from recollect.errors import RecipeError
from recollect.zoo import edits


@pytest.fixture(scope="module")
def loaded():
    return edits.load(outlines.BASE)


@pytest.fixture(scope="module")
def lora():
    return edits.adapter(outlines.BASE, "outlines")


@pytest.mark.parametrize("seed", [0, 1])
def test_outlines_are_followed_with_the_adapter_alone(loaded, lora, seed):
    drawn = edits.draw_edits(8, torch.Generator().manual_seed(seed), far=True)
    trained, untrained, without = (
        edits.overlap(outlines.follow(*loaded, drawn, each, steps=6, seed=seed), drawn)
        for each in (lora, (), None)
    )
    assert trained.mean() > 0.8
    assert trained.mean() > max(untrained.mean(), without.mean()) + 0.2


def test_what_is_kept_is_what_every_step_would_make_anew(loaded, lora):
    drawn = edits.draw_edits(2, torch.Generator().manual_seed(0), far=True)
    kept, anew = (
        outlines.follow(*loaded, drawn, lora, steps=4, reuse=reuse) for reuse in (True, False)
    )
    assert torch.equal(kept, anew)


def test_the_adapter_ships_small_and_says_how_it_was_made(lora):
    assert Path(lora).stat().st_size < 500_000
    card = json.loads(Path(lora).with_suffix(".json").read_text())
    assert card["name"] == outlines.NAME
    followed = {name: its["followed"] for name, its in card["measured"].items()}
    assert followed["adapter"] >= 0.7 > 5 * max(followed["no adapter"], followed["no condition"])
    with pytest.raises(RecipeError, match="there are: outlines"):
        edits.adapter(outlines.BASE, "depth")


def test_a_short_training_leaves_an_adapter_that_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(outlines, "BATCH", 2)
    monkeypatch.setattr(outlines, "measure", lambda *_: {"followed": 0.0})
    card = outlines.train(outlines.NAME, tmp_path, steps=2, device="cpu", progress=False)
    assert card == json.loads((tmp_path / "outlines.json").read_text())
    model, _ = edits.load(outlines.BASE)
    with accelerated(model, "easycontrol", lora=str(tmp_path / "outlines.safetensors"), first=2):
        pass
    with pytest.raises(RecipeError, match="unknown condition model"):
        outlines.train("tiny-outlines", tmp_path)
