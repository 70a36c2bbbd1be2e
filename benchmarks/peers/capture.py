"""Tensors of one attention layer: random, or from a real model that reads real source text."""

from __future__ import annotations

import argparse as some_source_text
from pathlib import Path

import torch
from kvpress_client import Inputs, angles
from transformers import AutoModelForCausalLM, AutoTokenizer

from recollect.core.rope import apply_rope


def random_tensors(tokens: int, heads: int, kv_heads: int, width: int) -> Inputs:
    """Gaussian queries, keys and values, seeded."""
    draw = torch.Generator().manual_seed(0)
    q = torch.randn(1, heads, tokens, width, generator=draw) + 0.2
    k, v = torch.randn(2, 1, kv_heads, tokens, width, generator=draw)
    theta = 500_000.0
    return Inputs(q, apply_rope(k, *angles(theta, width, torch.arange(tokens))), v, theta)


def model_tensors(path: str, layer: int, tokens: int) -> Inputs:
    """Queries before RoPE, rotated keys and values of `layer`, reading a standard-library file.

    For models of Llama's layout (q_proj, optional q_norm, default rotary embedding).
    """
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokens = min(tokens, model.config.max_position_embeddings)
    text = Path(some_source_text.__file__).read_text()
    ids = AutoTokenizer.from_pretrained(path)(text, return_tensors="pt").input_ids[:, :tokens]
    attention = model.model.layers[layer].self_attn
    seen = {}

    def note(_module, args, kwargs):
        seen["hidden"] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]

    hook = attention.register_forward_pre_hook(note, with_kwargs=True)
    with torch.inference_mode():
        cache = model(ids, use_cache=True).past_key_values.layers[layer]
        q = attention.q_proj(seen["hidden"]).unflatten(-1, (-1, attention.head_dim))
        q = attention.q_norm(q) if hasattr(attention, "q_norm") else q
    hook.remove()
    theta = model.config.rope_parameters["rope_theta"]
    return Inputs(q.transpose(1, 2), cache.keys, cache.values, theta)
