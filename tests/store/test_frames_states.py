"""States of compressed caches in frames: lossless, and never followed astray."""

import pytest
import torch

import recollect
from recollect import zoo
from recollect.errors import StoreError
from recollect.kv import persist
from recollect.store.frames import (
    FrameHeader,
    check_state,
    pack,
    pack_state,
    read_state,
    unpack,
)


@pytest.fixture(scope="module")
def subject():
    return zoo.load("tiny-qwen")


@pytest.fixture(scope="module")
def compressed(subject):
    """(model, its cache under snapkv + kivi, the tokens that follow)."""
    model, tokenizer = subject
    ids = tokenizer("def main():\n    x = [1, 2]\n" * 30, return_tensors="pt")["input_ids"]
    cache = recollect.kv_cache(model, "snapkv + kivi", keep=0.5, recent=32, bits=2)
    with torch.inference_mode():
        model(ids[:, :-8], past_key_values=cache)
    return model, cache, ids[:, -8:]


def packed(cache):
    return b"".join(pack_state(FrameHeader("m", 1, codec="compressed"), *persist.state(cache)))


def test_a_compressed_cache_comes_back_bit_for_bit_and_answers_the_same(compressed):
    model, cache, question = compressed
    tensors, layers = read_state(unpack(packed(cache)))
    expected, facts = persist.state(cache)
    assert layers == facts
    assert tensors.keys() == expected.keys()
    for name, x in expected.items():
        assert tensors[name].dtype == x.dtype
        assert torch.equal(tensors[name], x)
    twin = recollect.kv_cache(model, cache.policy)
    persist.load_state(twin, {name: x.clone() for name, x in tensors.items()}, layers)
    with torch.inference_mode():
        answers = [model(question, past_key_values=c).logits for c in (cache.copy(), twin)]
    assert torch.equal(*answers)


@pytest.mark.parametrize("name", ["slab.starts", "slab.lengths", "packed.starts", "packed.lengths"])
@pytest.mark.parametrize("value", [-32, 1 << 40, (1 << 63) - 1])
def test_addresses_outside_the_rows_are_refused(compressed, name, value):
    tensors, layers = persist.state(compressed[1])
    forged = tensors[f"1.{name}"].clone()
    forged[-1] = value
    with pytest.raises(StoreError, match="layer 1 of the state has no valid"):
        check_state({**tensors, f"1.{name}": forged}, layers)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("packed.k_codes", lambda x: x[:-32]),
        ("packed.v_scale", lambda x: x[:, :0]),
        ("packed.k_min", lambda x: x.float()),
        ("packed.facts", lambda x: x * 2),
        ("packed.facts", lambda x: x * 0),
        ("packed.starts", lambda x: x + 1),
        ("slab.v", lambda x: x[1:]),
        ("slab.v", lambda x: x.half()),
        ("slab.starts", lambda x: x[:1]),
        ("slab.lengths", lambda x: x.int()),
        ("column.position", lambda x: x[:3]),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(compressed, name, change):
    tensors, layers = persist.state(compressed[1])
    with pytest.raises(StoreError, match="layer 0 of the state has no valid"):
        check_state({**tensors, f"0.{name}": change(tensors[f"0.{name}"])}, layers)
    with pytest.raises(StoreError, match="layer 0"):
        check_state({n: x for n, x in tensors.items() if n != "0.slab.lengths"}, layers)


def test_facts_that_do_not_fit_are_refused(compressed):
    tensors, layers = persist.state(compressed[1])
    with pytest.raises(StoreError, match="layer 0"):
        check_state(tensors, [{**layers[0], "heads": 7}, *layers[1:]])
    with pytest.raises(StoreError, match="holds no state"):
        read_state(unpack(b"".join(pack(FrameHeader("m", 0), {}))))
