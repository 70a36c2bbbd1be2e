"""Prefix caches: the same text with and without the store, and fewer tokens computed."""

import gc

import pytest
import torch
from transformers import (
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

import recollect
from recollect.errors import HostError, RecipeError, StoreError
from recollect.store import Store
from recollect.store.admission import Admission, AdmissionPolicy
from recollect.store.frames import unpack
from recollect.store.tiers.host import HostTier

CHUNK = 16
SMALL = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}


def build(seed=0, **changes):
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**SMALL | changes)).eval()
    with torch.no_grad():
        for layer in model.model.layers:  # peaked attention, so that context matters
            layer.self_attn.k_proj.weight *= 30
            layer.self_attn.q_proj.weight *= 30
    return model


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def gemma():
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, sliding_window=24,
        max_position_embeddings=512, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return Gemma3ForCausalLM(config).eval()


def make_store(**options):
    """A store that always loads: these models are quicker to run than to load."""
    options = {"host": "32MiB", "chunk": CHUNK, "admission": admission("always"), **options}
    return Store(**options)


def admission(mode):
    return Admission(AdmissionPolicy(mode=mode))


@pytest.fixture
def store():
    with make_store() as store:
        yield store


def tokens(length, seed=1, rows=1):
    return torch.randint(2, 256, (rows, length), generator=torch.Generator().manual_seed(seed))


def generate(model, ids, **options):
    """Tokens and the logits they were chosen from."""
    options = {"max_new_tokens": 5, "do_sample": False, **options}
    out = model.generate(
        ids, return_dict_in_generate=True, output_logits=True, pad_token_id=0, **options
    )
    return out.sequences, torch.stack(out.logits)


def same(actual, expected):
    """Identical tokens; logits as close as sums of another order come."""
    assert torch.equal(actual[0], expected[0])
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-4, atol=1e-4)


def with_store(model, store, ids, spec="full", options=None, **arguments):
    """One generation through a prefix cache, and its report."""
    with recollect.prefix_cache(model, store, spec, **arguments) as prefixes:
        out = generate(model, ids, **(options or {}))
    return out, prefixes.report


@pytest.mark.parametrize("length", [CHUNK * 6 - 1, CHUNK * 6, CHUNK * 6 + 1, CHUNK - 1, CHUNK, 2])
def test_the_text_is_the_same_and_only_what_is_new_is_computed(length, model, store):
    ids = tokens(length)
    expected = generate(model, ids)
    first, cold = with_store(model, store, ids)
    same(first, expected)
    assert (cold.matched, cold.saved) == (0, length // CHUNK)
    second, warm = with_store(model, store, ids)
    same(second, expected)
    assert warm.matched == min(length // CHUNK * CHUNK, length - 1)
    assert (warm.saved, warm.entries) == (0, length // CHUNK)


def test_what_is_loaded_is_what_was_stored_bit_for_bit(model, store):
    ids = tokens(100)
    with recollect.prefix_cache(model, store) as prefixes, torch.no_grad():
        caches = [DynamicCache(config=model.config) for _ in range(2)]
        for cache in caches:
            model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
            prefixes.flush()
    for one, other in zip(caches[0].layers, caches[1].layers, strict=True):
        assert torch.equal(one.keys[:, :, :96], other.keys[:, :, :96])
        assert torch.equal(one.values[:, :, :96], other.values[:, :, :96])


def test_the_longest_shared_prefix_is_found(model, store):
    ids = tokens(100)
    with_store(model, store, ids)
    longer = torch.cat([ids, tokens(50, seed=2)], 1)
    shorter = ids[:, :50]
    forked = torch.cat([ids[:, :70], tokens(40, seed=3)], 1)
    for other, matched in ((longer, 96), (shorter, 48), (forked, 64), (tokens(100, seed=4), 0)):
        out, report = with_store(model, store, other)
        same(out, generate(model, other))
        assert report.matched == matched
    _, report = with_store(model, store, longer)
    assert report.matched == 144


class TestBatches:
    def test_rows_share_the_shortest_hit(self, model, store):
        ids = tokens(90, rows=2)
        with_store(model, store, ids[:1])
        with_store(model, store, ids[1:, :40])
        out, report = with_store(model, store, ids)
        same(out, generate(model, ids))
        assert report.matched == 2 * 32
        out, report = with_store(model, store, ids)
        same(out, generate(model, ids))
        assert report.matched == 2 * 80

    @pytest.mark.parametrize("padding", [1, CHUNK, 37, 60])
    def test_left_padding_is_no_part_of_a_prefix(self, padding, model, store):
        ids = tokens(90, rows=2)
        mask = torch.ones_like(ids)
        ids[1, :padding], mask[1, :padding] = 0, 0
        options = {"attention_mask": mask}
        expected = generate(model, ids, **options)
        cold, _ = with_store(model, store, ids, options=options)
        warm, report = with_store(model, store, ids, options=options)
        same(cold, expected)
        same(warm, expected)
        reach = min(80, padding + (90 - padding) // CHUNK * CHUNK)
        assert report.matched == 2 * reach - padding
        alone, report = with_store(model, store, ids[1:, padding:])  # found without padding, too
        same(alone, generate(model, ids[1:, padding:]))
        assert report.matched == min((90 - padding) // CHUNK * CHUNK, 89 - padding)

    def test_beams_and_samples_share_what_is_loaded(self, model, store):
        ids = tokens(64)
        for options in ({"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
            options["output_logits"] = False
            expected = model.generate(ids, max_new_tokens=8, pad_token_id=0, **options)
            with recollect.prefix_cache(model, store) as prefixes:
                out = model.generate(ids, max_new_tokens=8, pad_token_id=0, **options)
            assert torch.equal(out, expected)
            assert prefixes.report.entries in (0, 4)

    def test_padding_on_the_right_is_left_to_the_host(self, model, store):
        ids = tokens(40, rows=2)
        mask = torch.ones_like(ids)
        mask[0, 30:] = 0
        with recollect.prefix_cache(model, store) as prefixes, torch.no_grad():
            model(
                input_ids=ids, attention_mask=mask, past_key_values=DynamicCache(), logits_to_keep=1
            )
        assert prefixes.report.untouched == {"padding that is not on the left": 1}
        assert prefixes.report.saved == 0


class TestOtherCalls:
    """What is not a prefill of generate goes to the model as it came."""

    @torch.no_grad()
    def test_calls_that_want_all_logits(self, model, store):
        ids = tokens(50)
        expected = model(ids).logits
        with_store(model, store, ids)
        with recollect.prefix_cache(model, store) as prefixes:
            assert torch.equal(model(ids).logits, expected)
            cache = DynamicCache(config=model.config)
            assert torch.equal(model(input_ids=ids, past_key_values=cache).logits, expected)
        assert prefixes.report.prompts == 0

    @torch.no_grad()
    def test_positions_and_inputs_of_the_caller_s_own(self, model, store):
        ids = tokens(50)
        with recollect.prefix_cache(model, store) as prefixes:
            for more in (
                {"position_ids": torch.arange(7, 57)[None]},
                {"output_hidden_states": True},
            ):
                out = model(input_ids=ids, past_key_values=DynamicCache(), logits_to_keep=1, **more)
                assert out.past_key_values.get_seq_length() == 50
        assert sum(prefixes.report.untouched.values()) == 2
        assert prefixes.report.saved == 0

    def test_caches_that_grow_otherwise(self, model, store):
        ids = tokens(50)
        with recollect.prefix_cache(model, store) as prefixes:
            out = generate(model, ids, cache_implementation="static")
        same(out, generate(model, ids))
        assert prefixes.report.untouched == {"a StaticCache was given": 1}

    def test_a_conversation_goes_on_from_its_own_cache(self, model, store):
        ids, more = tokens(50), tokens(30, seed=2)
        cache = DynamicCache(config=model.config)
        with recollect.prefix_cache(model, store) as prefixes:
            first = generate(model, ids, past_key_values=cache)[0]
            second = torch.cat([first, more], 1)
            out = generate(model, second, past_key_values=cache)
        same(out, generate(model, second))
        assert prefixes.report.prompts == 1

    @pytest.mark.parametrize("spec", ["full", "vattention"])
    def test_plain_caches_of_ours_are_filled_and_saved(self, spec, model, store):
        ids = tokens(70)
        expected = generate(model, ids)
        for matched in (0, 64):
            with (
                recollect.prefix_cache(model, store) as prefixes,
                recollect.kv_cache(model, spec, kernel="host") as cache,
            ):
                same(generate(model, ids, past_key_values=cache), expected)
            assert prefixes.report.matched == matched

    def test_the_model_is_given_back(self, model, store):
        ids = tokens(40)
        expected = generate(model, ids)
        before = (len(model._forward_pre_hooks), len(model._forward_hooks))
        for spec, keep in (("full", {}), ("snapkv", {"keep": 0.5, "window": 8})):
            prefixes = recollect.prefix_cache(model, store, spec, **keep)
            prefixes.close()
            prefixes.close()
            gc.collect()
            assert (len(model._forward_pre_hooks), len(model._forward_hooks)) == before
            assert not model.config._attn_implementation.startswith("recollect")
            assert torch.equal(generate(model, ids)[1], expected[1])


class TestWhoseEntriesTheyAre:
    """Another model, dtype, namespace, salt or codec is a miss."""

    def test_another_model(self, model, store):
        ids = tokens(70)
        with_store(model, store, ids)
        other = build(seed=1)
        out, report = with_store(other, store, ids)
        same(out, generate(other, ids))
        assert report.matched == 0

    def test_another_rope_configuration(self, model, store):
        ids = tokens(70)
        with_store(model, store, ids)
        other = build(rope_parameters={"rope_type": "default", "rope_theta": 5e5})
        assert with_store(other, store, ids)[1].matched == 0

    def test_another_dtype(self, store):
        ids = tokens(70)
        with_store(build(), store, ids)
        half = build().to(torch.bfloat16)
        assert with_store(half, store, ids)[1].matched == 0
        assert with_store(half, store, ids)[1].matched == 64

    @pytest.mark.parametrize("other", [{"namespace": "b"}, {"salt": "s"}, {"chunk": CHUNK * 2}])
    def test_another_tenant(self, other, model):
        tier, ids = HostTier(1 << 25), tokens(70)
        ours, theirs = make_store(tiers=[tier]), make_store(tiers=[tier], **other)
        with_store(model, ours, ids)
        assert with_store(model, theirs, ids)[1].matched == 0
        assert with_store(model, ours, ids)[1].matched == 64

    def test_lossy_chunks_never_meet_exact_ones(self, model, store):
        ids = tokens(70)
        with_store(model, store, ids, codec="int4")
        _, exact = with_store(model, store, ids)
        assert (exact.matched, exact.saved) == (0, 4)
        _, lossy = with_store(model, store, ids, codec="int4")
        assert (lossy.matched, lossy.saved) == (64, 0)
        assert lossy.loaded < 0.6 * exact.saved_bytes  # headers, and groups of 32 in chunks of 16

    def test_an_approximation_under_an_exact_key_is_not_believed(self, model, store):
        ids = tokens(70)
        expected = generate(model, ids)
        with_store(model, store, ids, codec="int8")
        with recollect.prefix_cache(model, store, codec="int8") as lossy:
            wrong = lossy._chunks.keys(store, ids[0].tolist())
        with recollect.prefix_cache(model, store) as exact:
            for right, key in zip(exact._chunks.keys(store, ids[0].tolist()), wrong, strict=True):
                with store.get(key) as lease:
                    store.put(right, bytes(lease.data))
            same(generate(model, ids), expected)
            assert exact.report.matched == 0
            assert exact.report.unusable == 1


class TestDamage:
    """Lost, truncated and corrupt entries are computed again, with the same text."""

    @pytest.mark.parametrize("place", [0, 70, 1000, -1])
    def test_a_flipped_bit(self, place, model, store):
        self.damage(model, store, lambda data: flipped(data, place))

    @pytest.mark.parametrize("size", [0, 63, 64, 2000, -1])
    def test_a_truncated_entry(self, size, model, store):
        self.damage(model, store, lambda data: data[:size])

    def test_a_lost_entry(self, model, store):
        self.damage(model, store, lambda data: None)

    def damage(self, model, store, change):
        ids = tokens(100)
        expected = generate(model, ids)
        with_store(model, store, ids)
        with recollect.prefix_cache(model, store) as prefixes:
            key = prefixes._chunks.keys(store, ids[0].tolist())[2]
            with store.get(key) as lease:
                data = bytes(lease.data)
            store.delete(key)
            changed = change(data)
            if changed:
                store.put(key, changed)
            same(generate(model, ids), expected)
            prefixes.flush()
            assert prefixes.report.matched == 2 * CHUNK
            assert prefixes.report.unusable == bool(changed)
            same(generate(model, ids), expected)  # what was computed again is stored again
            assert prefixes.report.matched == 8 * CHUNK

    def test_a_full_store_changes_nothing(self, model):
        ids = tokens(100)
        with make_store(host="4KiB") as store:
            for _ in range(2):
                out, report = with_store(model, store, ids)
                same(out, generate(model, ids))
                assert report.refused > 0


def flipped(data, place):
    changed = bytearray(data)
    changed[place] ^= 1
    return bytes(changed)


SPEC = "snapkv + kivi"
ARGUMENTS = {"keep": 0.5, "window": 8, "recent": 16, "group": 16}


class TestAdmission:
    """What is quicker to compute than to load is computed."""

    @pytest.mark.parametrize("spec", ["full", SPEC])
    def test_what_does_not_pay_is_not_loaded(self, spec, model):
        ids, tier = tokens(100), HostTier(1 << 25)
        arguments = ARGUMENTS if spec == SPEC else {}
        for mode, matched in (("always", 96), ("never", 0)):
            store = make_store(tiers=[tier], admission=admission(mode))
            with recollect.prefix_cache(model, store, spec, **arguments) as prefixes:
                prefixes.remember(ids[:, :96])
                before = prefixes.report.matched
                out = generate(model, ids)
            assert prefixes.report.matched - before == matched
            if spec == "full":
                same(out, generate(model, ids))
        assert prefixes.report.declined >= 96

    def test_prefills_are_measured(self, model):
        with make_store(admission=None) as store:
            with_store(model, store, tokens(100))
            assert store.admission.prefill.observations == 1


class TestCompressed:
    def expected(self, model, prefix, question):
        """What a cache that compressed the prefix answers, without any store."""
        with recollect.kv_cache(model, SPEC, **ARGUMENTS) as cache:
            cache.prefill(prefix, chunk=512)
            return generate(model, torch.cat([prefix, question], 1), past_key_values=cache)

    def test_a_prefix_is_saved_once_and_asked_many_times(self, model, store):
        document = tokens(8 * CHUNK + 5)
        whole = document[:, : 8 * CHUNK]
        with recollect.prefix_cache(model, store, SPEC, **ARGUMENTS) as prefixes:
            assert prefixes.remember(document) == 8 * CHUNK
            assert prefixes.remember(document) == 8 * CHUNK
            assert prefixes.report.saved == 1
        with recollect.prefix_cache(model, store, SPEC, **ARGUMENTS) as prefixes:
            for seed in (2, 3, 4):
                question = torch.cat([document[:, 8 * CHUNK :], tokens(10, seed=seed)], 1)
                out = generate(model, torch.cat([whole, question], 1))
                same(out, self.expected(model, whole, question))
            assert prefixes.report.matched == 3 * 8 * CHUNK
            dense = 2 * 3 * 2 * 16 * 4 * 8 * CHUNK
            assert prefixes.report.loaded < 0.8 * 3 * dense

    def test_the_longest_remembered_prefix_counts(self, model, store):
        ids = tokens(150)
        with recollect.prefix_cache(model, store, SPEC, **ARGUMENTS) as prefixes:
            prefixes.remember(ids[:, :64])
            prefixes.remember(ids[:, :96])
            generate(model, ids)
            assert prefixes.report.matched == 96
            generate(model, ids[:, :90])
            assert prefixes.report.matched == 96 + 64
            generate(model, ids[:, :64])  # a token must be left to compute
            assert prefixes.report.matched == 96 + 64
            generate(model, tokens(150, seed=9))
            assert prefixes.report.matched == 96 + 64

    def test_beams_go_on_from_one_state(self, model, store):
        ids = tokens(100)
        with recollect.prefix_cache(model, store, SPEC, **ARGUMENTS) as prefixes:
            prefixes.remember(ids[:, :96])
            model.generate(ids, max_new_tokens=4, num_beams=3)
            assert prefixes.report.entries == 1
            model.generate(tokens(50, rows=2), max_new_tokens=4)
            assert sum(prefixes.report.untouched.values()) == 1

    def test_compressed_prefixes_never_enter_the_exact_index(self, model, store):
        ids = tokens(100)
        with recollect.prefix_cache(model, store, SPEC, **ARGUMENTS) as prefixes:
            prefixes.remember(ids)
            (key,) = [k for k in prefixes._states.keys(store, ids[0].tolist()) if store.contains(k)]
            with store.get(key) as lease:
                frame = unpack(lease.data)
                data = bytes(lease.data)
            assert not frame.header.is_exact
        out, report = with_store(model, store, ids)
        same(out, generate(model, ids))
        assert report.matched == 0
        _, report = with_store(model, store, ids, "snapkv", keep=0.25, window=8)
        assert report.matched == 0
        with recollect.prefix_cache(model, store) as exact:  # even where somebody puts it there
            key = exact._chunks.keys(store, ids[0].tolist())[0]
            store.delete(key)
            store.put(key, data)
            generate(model, ids)
            assert (exact.report.matched, exact.report.unusable) == (0, 1)

    def test_a_damaged_state_is_computed_again(self, model, store):
        ids = tokens(100)
        with recollect.prefix_cache(model, store, SPEC, **ARGUMENTS) as prefixes:
            cold = generate(model, ids)
            prefixes.remember(ids)
            key = prefixes._states.keys(store, ids[0].tolist())[-1]
            with store.get(key) as lease:
                data = flipped(lease.data, -200)
            store.delete(key)
            store.put(key, data)
            same(generate(model, ids), cold)
            assert prefixes.report.unusable == 1
            assert not store.contains(key)


class TestSlidingWindows:
    """Layers that forget have no chunks; a state after the prefix holds what they kept."""

    def test_remembered_prefixes_give_the_same_text(self, gemma, store):
        ids = tokens(100)
        expected = generate(gemma, ids)
        with recollect.prefix_cache(gemma, store, kernel="host") as prefixes:
            assert prefixes.remember(ids) == 96
            for matched in (96, 192):
                same(generate(gemma, ids), expected)
                assert prefixes.report.matched == matched


class TestRefusals:
    def test_a_prompt_longer_than_the_model(self, model, store):
        with (
            recollect.prefix_cache(model, store) as prefixes,
            pytest.raises(HostError, match="shorten it by 88"),
        ):
            generate(model, tokens(600))
        with (
            recollect.prefix_cache(model, store, "snapkv", keep=0.5) as prefixes,
            pytest.raises(HostError, match="shorten"),
        ):
            prefixes.remember(tokens(600))

    def test_rotations_that_depend_on_the_length(self, store):
        rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
        with pytest.raises(HostError, match="by the length of the prompt"):
            recollect.prefix_cache(build(rope_parameters=rope), store)

    def test_arguments(self, model, store):
        with pytest.raises(StoreError, match="unknown frame codec"):
            recollect.prefix_cache(model, store, codec="zip")
        with pytest.raises(RecipeError, match="its own form"):
            recollect.prefix_cache(model, store, "kivi", codec="int8")
        with pytest.raises(RecipeError, match="at least one token"):
            recollect.prefix_cache(model, store, chunk=0)
        with pytest.raises(RecipeError, match="did you mean 'snapkv'"):
            recollect.prefix_cache(model, store, "snapkw")
        with recollect.prefix_cache(model, store, "kivi") as prefixes:
            with pytest.raises(RecipeError, match="less than a chunk of 16"):
                prefixes.remember(tokens(15))
            with pytest.raises(RecipeError, match="one prefix at a time"):
                prefixes.remember(tokens(50, rows=2))
        assert not model._forward_pre_hooks
