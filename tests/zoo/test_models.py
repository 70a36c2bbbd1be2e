"""The shipped weights load with stock classes and reach the bars."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recollect import zoo
from recollect.zoo import bars, needles
from recollect.zoo.architectures import CONFIGS

NAMES = sorted(CONFIGS)
LIMIT = 8 * 2**20  # bytes of weights


@pytest.fixture(scope="module", params=NAMES)
def loaded(request):
    return request.param, *zoo.load(request.param)


def test_both_models_ship_within_the_size_limit():
    assert list(zoo.names()) == NAMES
    for name in NAMES:
        assert (Path(zoo.path(name)) / "model.safetensors").stat().st_size <= LIMIT


@pytest.mark.parametrize("name", NAMES)
def test_stock_classes_load_float32_weights_and_the_zoos_own_tokenization(name):
    model = AutoModelForCausalLM.from_pretrained(zoo.path(name))
    tokenizer = AutoTokenizer.from_pretrained(zoo.path(name))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    text = "def f(x):\n    return x  # 1203\n\n"
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_token_id == model.generation_config.bos_token_id
    assert tokenizer.decode(ids[1:]) == text
    assert tokenizer.tokenize(" 1203") == ["Ġ1", "2", "0", "3"]


@pytest.mark.slow
@pytest.mark.parametrize("length", bars.BARS)
def test_one_needle_among_eight_is_recalled(loaded, length):
    name, model, tokenizer = loaded
    cases = {1024: 128, 2048: 96, 4096: 64}[length]
    exact = bars.recall(model, tokenizer, length, cases, seed=1)["exact"]
    print(f"{name} at {length}: {exact:.3f} of {cases}")
    assert exact >= bars.BARS[length]


def test_stock_generate_answers_a_question(loaded):
    _, model, tokenizer = loaded
    rng = random.Random(5)
    puzzle = needles.single(rng)
    context = bars.Hay(tokenizer).context(puzzle, rng, 512)
    right = 0
    for ask in puzzle.asks:
        ids = torch.tensor([tokenizer.encode(context + ask.question)])
        answer = tokenizer.encode(ask.answer, add_special_tokens=False)
        made = model.generate(ids, max_new_tokens=len(answer), do_sample=False)
        right += made[0, ids.shape[1] :].tolist() == answer
    assert right >= 7


def test_perplexity_is_what_the_card_says(loaded):
    name, model, tokenizer = loaded
    card = json.loads((Path(zoo.path(name)) / "card.json").read_text())["measured"]
    found = bars.perplexity(model, tokenizer, card["source_tokens"])
    # Other versions of Python have slightly other files.
    assert found == pytest.approx(card["perplexity"], rel=0.15)
