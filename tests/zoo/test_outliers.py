"""Key outliers change the keys and nothing else."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config, Qwen3Config

from recollect.errors import HostError, RecipeError
from recollect.zoo.outliers import add_key_outliers

SHAPE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def model_of(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, weight in model.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model


@torch.no_grad()
def logits_and_keys(model):
    ids = torch.arange(96).view(2, 48)
    out = model(ids, use_cache=True)
    return out.logits, torch.stack([layer.keys for layer in out.past_key_values.layers])


def spread(keys):
    """Largest channel of a head over its median channel, on average over heads."""
    size = keys.pow(2).mean((1, 3)).sqrt()  # (L, K, D)
    return (size.amax(-1) / size.median(-1).values).mean().item()


@pytest.mark.parametrize("config", [LlamaConfig, Qwen2Config, Qwen3Config])
def test_outliers_leave_the_logits_and_show_in_the_keys(config):
    model = model_of(config(**SHAPE))
    logits, keys = logits_and_keys(model)
    assert add_key_outliers(model, pairs=2, factor=8.0, seed=3) is model
    changed, outlying = logits_and_keys(model)
    torch.testing.assert_close(changed, logits, atol=1e-4, rtol=1e-4)
    assert spread(outlying) > 3 * spread(keys)


def test_a_factor_of_one_changes_nothing():
    model = model_of(LlamaConfig(**SHAPE))
    _, keys = logits_and_keys(model)
    assert torch.equal(logits_and_keys(add_key_outliers(model, factor=1.0))[1], keys)


def test_a_model_without_separate_projections_is_refused():
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2)
    with pytest.raises(HostError, match="no q_proj"):
        add_key_outliers(model_of(config))


@pytest.mark.parametrize("wrong", [{"pairs": 9}, {"pairs": -1}, {"factor": 0.0}])
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(RecipeError, match="must"):
        add_key_outliers(model_of(LlamaConfig(**SHAPE)), **wrong)
