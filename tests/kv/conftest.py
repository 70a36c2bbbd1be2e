"""Small random models and inputs for the tests of the kv room."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from recollect.kv.artefacts import save_gates
from recollect.kv.fingerprint import fingerprint

SMALL = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}


@pytest.fixture(scope="session")
def model():
    """A random Llama with grouped queries. Its keys are scaled up so that attention is peaked."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL)).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_proj.weight *= 30
            layer.self_attn.q_proj.weight *= 30
    return model


@pytest.fixture
def ids():
    """Two prompts of 120 tokens."""
    return torch.randint(2, 256, (2, 120), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def gates(model, tmp_path_factory):
    """Head gates for the small model: heads 0, 3 and 5 retrieve."""
    path = tmp_path_factory.mktemp("gates") / "gates.safetensors"
    save_gates(path, torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.0, 0.7]]), fingerprint(model))
    return str(path)


@pytest.fixture
def arguments(gates):
    """Recipe name -> arguments that fit the small model's short prompts."""
    window = {"window": 8}
    return {
        "snapkv": window,
        "adakv": window,
        "pyramidkv": window,
        "kivi": {"recent": 16, "group": 16},
        "chelsea": {"recent": 8, "chunk": 16},
        "duo-attention": {"gates": gates, "recent": 16, "steps": 2},
        "streaming-llm": {"steps": 4},
    }
