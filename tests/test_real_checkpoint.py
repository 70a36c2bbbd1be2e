"""A user's checkpoint: sharded bfloat16 weights of Llama-3.2-1B's layer shape, a chat template."""

import json

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import recollect
from recollect.cli import main

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """One layer of the shape of Llama-3.2-1B (2,048 wide, 32 query heads, 8 KV heads of 64)."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = AutoTokenizer.from_pretrained(recollect.zoo.path("tiny-llama"))
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
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


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def test_generate_streams_from_it(checkpoint):
    result = run(
        "generate", "--model", checkpoint, "--recipe", "snapkv + kivi(bits=4, recent=32)",
        "--keep", 0.5, "--prompt", "def main():\n" * 60, "--max-new-tokens", 3, "--chat", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert 0 < report["cache"]["nbytes"] < report["cache"]["dense_nbytes"]


def test_eval_measures_it(checkpoint, tmp_path):
    result = run(
        "eval", "--model", checkpoint, "--recipes", "snapkv", "--keep", 0.5, "--tasks", "needle",
        "--length", 256, "--seeds", 1, "--cases", 1, "--modes", "agnostic", "--decode-steps", 2,
        "--rounds", 1, "--chat", "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


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
        assert abs(cache.nbytes - (128 * 2048 + encoded)) < 0.1 * cache.nbytes
