"""A user's checkpoint: sharded bfloat16 weights of Llama-3.2-1B's layer shape."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import recollect


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """One layer of the shape of Llama-3.2-1B (2,048 wide, 32 query heads, 8 KV heads of 64)."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=1,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="40MB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


@torch.no_grad()
def test_memory_is_what_the_arithmetic_says(checkpoint):
    """8 KV heads of 64 in bfloat16 take 2,048 bytes a token and layer; half of 512 tokens stay."""
    model = LlamaForCausalLM.from_pretrained(checkpoint)
    assert model.dtype == torch.bfloat16
    ids = torch.randint(5, 500, (1, 512))
    with recollect.kv_cache(model, "snapkv", keep=0.5) as cache:
        model(input_ids=ids, past_key_values=cache)
        exact = 256 * 2048
        assert cache.dense_nbytes == 2 * exact
        assert exact < cache.nbytes < exact * 1.05
    with recollect.kv_cache(model, "kivi", bits=4, group=32, recent=128) as cache:
        model(input_ids=ids, past_key_values=cache)
        encoded = 384 * (2048 // 4 + 2048 // 2 // 32 * 4)  # codes, and two fp16 per 32 elements
        exact = (128 + 32) * 2048  # the window, and room for a group to come
        assert cache.nbytes == pytest.approx(exact + encoded, rel=0.01)
