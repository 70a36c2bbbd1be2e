"""Bad input gets a typed error of one line, and the model is left as it was."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

import recollect
from recollect.errors import HostError, RecipeError, StoreError


def refuses(error, match):
    return pytest.raises(error, match=match)


def test_unknown_recipes_leave_the_model_alone(model):
    before = model.config._attn_implementation
    with refuses(RecipeError, "did you mean 'snapkv'"):
        recollect.kv_cache(model, "snapkw")
    with refuses(RecipeError, "kernel is one of"):
        recollect.kv_cache(model, "full", kernel="fast")
    assert model.config._attn_implementation == before


def test_things_that_are_not_decoders_are_refused():
    config = T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=1, d_kv=8, vocab_size=16)
    with refuses(HostError, "encoder-decoder"):
        recollect.kv_cache(T5ForConditionalGeneration(config), "full")
    with refuses(HostError, "expected a transformers model"):
        recollect.kv_cache(torch.nn.Linear(2, 2), "full")


@torch.no_grad()
def test_a_cache_serves_one_model_only(model, ids):
    other = LlamaForCausalLM(model.config).eval()
    with recollect.kv_cache(model, "full") as cache, recollect.kv_cache(other, "full"):
        model(input_ids=ids, past_key_values=cache)
        with refuses(HostError, "belongs to another model"):
            other(input_ids=ids, past_key_values=cache)


@torch.no_grad()
def test_a_cache_serves_one_batch_size_at_a_time(model, ids):
    with recollect.kv_cache(model, "full") as cache:
        model(input_ids=ids, past_key_values=cache)
        with refuses(HostError, "holds batch 2"):
            model(input_ids=ids[:1], past_key_values=cache)


@torch.no_grad()
@pytest.mark.parametrize("hole", [slice(100, 120), slice(50, 60)])
def test_padding_that_is_not_on_the_left_is_refused(hole, model, ids):
    mask = torch.ones_like(ids)
    mask[0, hole] = 0
    with (
        recollect.kv_cache(model, "snapkv", keep=0.5, window=8) as cache,
        refuses(HostError, "pad on the left"),
    ):
        model(input_ids=ids, attention_mask=mask, past_key_values=cache)


@torch.no_grad()
def test_padding_inside_a_compressed_batch_is_refused(model, ids):
    with recollect.kv_cache(model, "snapkv", keep=0.5, window=8) as cache:
        model(input_ids=ids, past_key_values=cache)
        mask = torch.ones(2, 125, dtype=torch.int64)
        mask[1, 124:] = 0
        before = cache.copy()
        with refuses(HostError, "cannot be padded"):
            model(input_ids=ids[:, :5], attention_mask=mask, past_key_values=cache)
        expected = model(input_ids=ids[:, :5], past_key_values=before).logits
        assert torch.equal(model(input_ids=ids[:, :5], past_key_values=cache).logits, expected)


def test_a_prompt_longer_than_the_context_is_refused(model):
    long = torch.ones(1, 513, dtype=torch.int64)
    with recollect.kv_cache(model, "full") as cache, refuses(HostError, "shorten the prompt by 1"):
        cache.prefill(long)


@torch.no_grad()
def test_encoded_tokens_cannot_be_cropped(model, ids):
    with recollect.kv_cache(model, "kivi", recent=16, group=16) as cache:
        model(input_ids=ids, past_key_values=cache)
        with refuses(HostError, "raise the codec's `recent`"):
            cache.crop(-60)
        assert cache.get_seq_length() == 120


def test_a_width_the_codec_cannot_pack_is_refused(ids):
    config = LlamaConfig(
        vocab_size=256, hidden_size=24, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=4, head_dim=6, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with (
        torch.no_grad(),
        recollect.kv_cache(model, "kivi", bits=2, recent=16, group=16) as cache,
        pytest.raises(RecipeError),
    ):
        model(input_ids=ids, past_key_values=cache)


class TestSavedCaches:
    @pytest.fixture
    def saved(self, model, ids, tmp_path):
        path = tmp_path / "cache.safetensors"
        with torch.no_grad(), recollect.kv_cache(model, "snapkv", keep=0.5, window=8) as cache:
            model(input_ids=ids, past_key_values=cache)
            cache.save(path)
        return path

    def test_a_flipped_bit_is_found(self, model, saved):
        data = bytearray(saved.read_bytes())
        data[-100] ^= 1
        saved.write_bytes(data)
        with refuses(StoreError, "checksum"):
            recollect.load_cache(model, saved)

    @pytest.mark.parametrize("size", [0, 7, 100, 5000])
    def test_a_truncated_file_is_refused(self, size, model, saved):
        saved.write_bytes(saved.read_bytes()[:size])
        with refuses(StoreError, "cannot read a cache"):
            recollect.load_cache(model, saved)

    def test_another_safetensors_file_is_refused(self, model, gates):
        with refuses(StoreError, "is not a saved cache"):
            recollect.load_cache(model, gates)

    def test_a_missing_file_is_refused(self, model, tmp_path):
        with refuses(StoreError, "cannot read a cache"):
            recollect.load_cache(model, tmp_path / "none")

    def test_another_model_is_refused(self, model, saved):
        other = LlamaForCausalLM(model.config)
        with refuses(HostError, "made by another model"):
            recollect.load_cache(other, saved)

    def test_a_full_disk_leaves_nothing_half_written(self, model, ids, tmp_path):
        path = tmp_path / "missing" / "cache.safetensors"
        with torch.no_grad(), recollect.kv_cache(model, "full") as cache:
            model(input_ids=ids, past_key_values=cache)
            with refuses(StoreError, "cannot write"):
                cache.save(path)
        assert list(tmp_path.iterdir()) == []


class TestGates:
    def test_duo_attention_without_gates_says_how_to_get_them(self, model):
        with refuses(RecipeError, "calibrate_gates"):
            recollect.kv_cache(model, "duo-attention", keep=0.5)

    def test_gates_of_another_model_are_refused(self, model, gates):
        other = LlamaForCausalLM(model.config)
        with refuses(HostError, "belong to another model"):
            recollect.kv_cache(other, "duo-attention", keep=0.5, gates=gates)

    def test_unreadable_gates_are_refused(self, model, tmp_path):
        with refuses(StoreError, "cannot read head gates"):
            recollect.kv_cache(model, "duo-attention", keep=0.5, gates=str(tmp_path))
