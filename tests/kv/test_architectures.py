"""Every family of transformers' causal LMs is hosted exactly, or refused in words."""

import pytest
import torch
from families import FAMILIES, NOT_HOSTED, build
from transformers import DynamicCache

import recollect
from recollect.errors import HostError

HOSTED = [family for family in FAMILIES if family not in NOT_HOSTED]


@pytest.fixture(scope="module")
def models():
    """Family -> model, built once."""
    made = {}

    def get(family):
        if family not in made:
            made[family] = build(family)
        return made[family]

    return get


def prompt(rows=2, length=40):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(2, 120, (rows, length), generator=generator)


def generate(model, cache, ids, **options):
    options = {"max_new_tokens": 6, "do_sample": False, **options}
    return model.generate(ids, past_key_values=cache, **options)


def host_cache(model):
    return DynamicCache(config=model.config)


def test_there_are_enough_families():
    assert len(HOSTED) >= 25


@pytest.mark.parametrize("family", HOSTED)
def test_keep_one_generates_the_host_s_tokens(family, models):
    model, ids = models(family), prompt()
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    padded = ids * mask
    cases = [(ids, {}), (padded, {"attention_mask": mask}), (ids, {"num_beams": 2})]
    before = model.config._attn_implementation
    for inputs, options in cases:
        expected = generate(model, host_cache(model), inputs, **options)
        with recollect.kv_cache(model, "snapkv", keep=1.0, kernel="host") as cache:
            assert torch.equal(generate(model, cache, inputs, **options), expected)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("family", HOSTED)
def test_our_kernels_generate_the_host_s_tokens(family, models):
    model, ids = models(family), prompt()
    expected = generate(model, host_cache(model), ids)
    with recollect.kv_cache(model, "full", kernel="ours") as cache:
        assert torch.equal(generate(model, cache, ids), expected)


@pytest.mark.parametrize("family", HOSTED)
def test_half_of_the_cache_is_really_freed(family, models):
    model, ids = models(family), prompt(length=200)
    with (
        recollect.kv_cache(model, "snapkv", keep=0.5, window=8) as cache,
        recollect.kv_cache(model, "full") as full,
    ):
        generate(model, cache, ids, max_new_tokens=2)
        generate(model, full, ids, max_new_tokens=2)
        held = [layer.nbytes for layer in cache.governed]
        dense = [layer.dense_nbytes for layer in full.governed]
        assert all(a < 0.75 * b for a, b in zip(held, dense, strict=True))
        assert all((layer.kept == 101).all() for layer in cache.governed)


@pytest.mark.parametrize("family", NOT_HOSTED)
def test_other_families_are_refused_in_words(family, models):
    model = models(family)
    before = model.config._attn_implementation
    with (
        pytest.raises(HostError, match=NOT_HOSTED[family]),
        recollect.kv_cache(model, "snapkv", keep=0.5, window=8) as cache,
    ):
        model(input_ids=prompt(), past_key_values=cache)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Gemma 3"])
def test_assisted_generation_equals_plain_generation(family, models):
    model, ids = models(family), prompt(rows=1)
    torch.manual_seed(7)
    assistant = build(family)
    with torch.no_grad():
        for parameter in assistant.parameters():
            parameter.add_(torch.randn_like(parameter) * 1e-3)
    expected = generate(model, host_cache(model), ids, max_new_tokens=10)
    with recollect.kv_cache(model, "snapkv", keep=1.0, kernel="host") as cache:
        out = generate(model, cache, ids, max_new_tokens=10, assistant_model=assistant)
        assert torch.equal(out, expected)
    # Drafts take part in the decision, so a compressed run is compared with itself.
    outputs = []
    for kernel in ("host", "ours"):
        with recollect.kv_cache(model, "snapkv", keep=0.5, window=8, kernel=kernel) as cache:
            out = generate(model, cache, ids, max_new_tokens=10, assistant_model=assistant)
            assert all((layer.kept < layer.seen).all() for layer in cache.governed)
        outputs.append(out)
    assert torch.equal(*outputs)
