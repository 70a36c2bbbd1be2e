"""The shapes of the zoo's models: small, but with the parts that caches have to cope with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from recollect.zoo.tokenizer import VOCABULARY

# A large RoPE base leaves a third of the frequency pairs almost still over the whole context, so
# that keys match by content at any distance; with 10,000 recall does not carry over to lengths
# beyond those most trained on.
_SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 192,
    "intermediate_size": 448,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "head_dim": 32,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "max_position_embeddings": 8192,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
}


def tiny_llama() -> Any:
    """Llama: 8 query heads in groups of 2, rotary positions."""
    from transformers import LlamaConfig

    return LlamaConfig(num_key_value_heads=4, **_SHARED)


def tiny_qwen() -> Any:
    """Qwen3: 8 query heads in groups of 4, queries and keys normalized per head."""
    from transformers import Qwen3Config

    return Qwen3Config(num_key_value_heads=2, **_SHARED)


CONFIGS: dict[str, Callable[[], Any]] = {"tiny-llama": tiny_llama, "tiny-qwen": tiny_qwen}
