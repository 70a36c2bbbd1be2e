"""Prefixes that arrive while the model computes: the same text, and no layer used unchecked."""

import threading

import pytest
import torch
from test_prefix_cache import CHUNK, build, generate, make_store, same, tokens
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

import recollect
from recollect.errors import StoreError
from recollect.store.frames import unpack
from recollect.store.tiers.host import HostTier
from recollect.store.tiers.partial import PartialLease

LAYERS = 3


class FarTier(HostTier):
    """Memory that is read range by range; `spoil(start, data)` may change what comes, or raise."""

    def __init__(self):
        super().__init__(1 << 25, name="far")
        self.spoil = lambda start, data: data
        self.reads = []

    def open(self, key):
        lease = self.get(key)
        if lease is None:
            return None

        def read(start, stop):
            self.reads.append((key, start, threading.current_thread().name))
            return self.spoil(start, bytes(lease.data[start:stop]))

        return PartialLease(lease.nbytes, read)


@pytest.fixture
def far():
    return FarTier()


@pytest.fixture
def store(far):
    with make_store(tiers=[far]) as store:
        yield store


@pytest.fixture(scope="module")
def model():
    return build(head_dim=512, num_hidden_layers=LAYERS)  # a layer of a chunk is 64 KiB


def saved(model, store, ids, **arguments):
    """A prefix cache that has these."""
    prefixes = recollect.prefix_cache(model, store, **arguments)
    generate(model, ids, max_new_tokens=1)
    prefixes.flush()
    return prefixes


@pytest.mark.parametrize("length", [CHUNK * 4, CHUNK * 4 + 1, CHUNK + 3])
def test_the_text_is_the_same_and_layers_come_beside_the_model(model, store, far, length):
    ids = tokens(length)
    expected = generate(model, ids)
    with saved(model, store, ids) as prefixes:
        same(generate(model, ids), expected)
        report = prefixes.report
    assert report.matched == min(length // CHUNK * CHUNK, length - 1)
    assert any(name.startswith("recollect-layers") for _, _, name in far.reads)
    assert report.load_seconds > 0


@pytest.mark.parametrize("codec", ["int8", "cachegen-0"])
def test_lossy_chunks_are_decoded_beside_the_model(codec, model):
    ids = tokens(CHUNK * 4 + 5)
    with make_store() as store, saved(model, store, ids, codec=codec) as prefixes:
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
        key = prefixes._chunks.keys(store, ids[0].tolist())[0]
        with store.get(key) as lease:
            assert unpack(lease.data).header.codec == codec
        assert prefixes.report.matched == 4 * CHUNK
        assert cache.get_seq_length() == ids.shape[1]


def test_batches_with_padding_and_beams(model, store):
    short, long = tokens(40, seed=1), tokens(60, seed=2)
    ids = torch.cat([torch.cat([torch.zeros(1, 20, dtype=torch.int64), short], 1), long])
    mask = (ids > 0).long()
    for options in ({"attention_mask": mask}, {"attention_mask": mask, "num_beams": 2}):
        expected = generate(model, ids, **options)
        with saved(model, store, long) as prefixes:
            generate(model, short)
            prefixes.flush()
            before = prefixes.report.matched
            same(generate(model, ids, **options), expected)
            assert prefixes.report.matched > before


def test_the_host_gets_plain_layers_back(model, store):
    ids = tokens(70)
    with saved(model, store, ids), torch.no_grad():
        cache = DynamicCache(config=model.config)
        model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
    assert {type(layer) for layer in cache.layers} == {DynamicLayer}
    assert [layer.keys.shape[2] for layer in cache.layers] == [70] * LAYERS


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("failure", ["corrupt", "gone"])
@pytest.mark.parametrize("layer", range(LAYERS))
def test_a_layer_that_fails_midway_is_a_miss_of_the_whole_prefix(
    layer, failure, padded, model, store, far
):
    """Layers before it were used already, and were right; the prefix is computed, the text too."""
    ids = tokens(CHUNK * 4 + 5)
    options = {}
    if padded:
        front = torch.zeros(1, 7, dtype=torch.int64)
        ids = torch.cat([torch.cat([front, ids[:, :-7]], dim=1), ids])
        options = {"attention_mask": (ids > 0).long()}
    expected = generate(model, ids, **options)
    with recollect.prefix_cache(model, store) as prefixes:
        generate(model, ids, max_new_tokens=1, **options)
        prefixes.flush()
        key = prefixes._chunks.keys(store, ids[0, -len(ids[0]) + 7 * padded :].tolist())[1]
        with store.get(key) as lease:
            place = unpack(lease.data).span(f"{layer}.")[1] - 1

        def spoil(start, data):
            if not start <= place < start + len(data) or far.reads[-1][0] != key:
                return data
            if failure == "gone":
                raise StoreError("the line was cut")
            at = place - start
            return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

        far.spoil = spoil
        same(generate(model, ids, **options), expected)
        assert prefixes.report.matched == 0
        assert prefixes.report.unusable == (failure == "corrupt")
        far.spoil = lambda start, data: data
        prefixes.flush()
        same(generate(model, ids, **options), expected)  # and what was damaged is stored again
        assert prefixes.report.matched > 0


def test_a_prefix_that_was_not_used_to_the_end_is_given_back(model, store, far):
    """The model fails by itself: the next prompt is served as ever."""
    ids = tokens(70)
    with saved(model, store, ids) as prefixes:
        expected = generate(model, ids)
        hook = model.model.layers[1].register_forward_pre_hook(_fail)
        with pytest.raises(ZeroDivisionError):
            generate(model, ids)
        hook.remove()
        same(generate(model, ids), expected)
        assert prefixes.report.matched >= 2 * 64


def _fail(*_):
    raise ZeroDivisionError
