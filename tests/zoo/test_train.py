"""Training: learns, resumes, refuses; the copying circuit copies before any training."""

from __future__ import annotations

import json
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

from recollect import zoo
from recollect.errors import RecipeError, StoreError
from recollect.zoo import corpus, tokenizer, train
from recollect.zoo.architectures import CONFIGS
from recollect.zoo.graft import grow
from recollect.zoo.head_start import sketch_copying
from recollect.zoo.mixture import Mixture, Text
from recollect.zoo.muon import orthogonal

MICRO = Qwen3Config(
    vocab_size=512,
    hidden_size=192,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
    bos_token_id=0,
    eos_token_id=0,
    pad_token_id=0,
    rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a tokenizer, and little text and short steps to train with."""
    tokenizer.train(corpus.documents("held-out")[:8], vocabulary=512).save_pretrained(tmp_path)
    few = corpus.documents("held-out")[:8]
    monkeypatch.setattr(corpus, "documents", lambda part: few)
    monkeypatch.setattr(train, "TOKENS_PER_STEP", 512)
    return tmp_path


def micro(folder, steps, **arguments):
    return train.train(
        "tiny-qwen", folder, minutes=60, steps=steps, config=MICRO, progress=False, **arguments
    )


def test_the_loss_falls_and_a_resumed_run_continues(folder, monkeypatch):
    seen = []
    step = train._Run.step

    def spy(run, mixture, part):
        seen.append((run.state.step, step(run, mixture, part)))
        return seen[-1][1]

    monkeypatch.setattr(train._Run, "step", spy)
    micro(folder, 12)
    card = micro(folder, 20)
    assert [number for number, _ in seen] == list(range(20))
    losses = [loss for _, loss in seen]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert card["recipe"]["steps"] == 20
    assert json.loads((folder / "card.json").read_text()) == card


def test_what_is_saved_loads_as_float32_with_stock_classes(folder):
    micro(folder, 1)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert AutoTokenizer.from_pretrained(folder).tokenize("a 1\n")[-2:] == ["Ġ1", "Ċ"]


def test_a_damaged_checkpoint_is_named(folder):
    (folder / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(StoreError, match=r"checkpoint\.pt is damaged"):
        micro(folder, 1)
    micro(folder, 1, resume=False)


def test_unknown_names_and_no_time_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="unknown zoo model"):
        train.train("huge-llama", tmp_path)
    with pytest.raises(RecipeError, match="minutes=0"):
        train.train("tiny-qwen", tmp_path, minutes=0)


def test_the_learning_rate_rises_stays_and_falls_to_zero():
    assert train.learning_rate(0.0, step=0) < 0.1
    assert train.learning_rate(0.3, step=500) == 1.0
    assert train.learning_rate(1.0, step=500) == 0.0


def test_an_orthogonal_update_has_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((48, 16), (16, 48), (32, 32)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape), steps=10))
        assert values.min() > 0.5
        assert values.max() < 1.5


def test_the_sketched_circuit_attends_to_what_followed_before():
    torch.manual_seed(0)
    config = CONFIGS["tiny-qwen"]()
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    sketch_copying(model.eval(), seed=0)
    span = torch.randint(1, config.vocab_size, (1, 100))
    with torch.no_grad():
        out = model(torch.cat([span, span], 1), output_attentions=True)
    second = torch.arange(100, 200)
    follows = out.attentions[1][0, 0][second, second - 99]
    assert follows[:-1].mean() > 0.5


def test_a_llama_grown_from_the_qwen_has_most_of_its_knowledge(tmp_path):
    parent, tokenizer = zoo.load("tiny-qwen")
    text = Text.of("held-out", tokenizer)
    ids, _ = Mixture(tokenizer, text, random.Random(0)).batch(20, 512, (0.5, 0.2, 0.3))
    ids = torch.from_numpy(ids)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["tiny-llama"](), dtype=torch.float32)
    with torch.no_grad():
        before, wanted = (m(ids[:4], labels=ids[:4]).loss.item() for m in (model, parent))
        after = grow(parent, model, ids)(ids[:4], labels=ids[:4]).loss.item()
    assert after - wanted < 0.3 * (before - wanted)
