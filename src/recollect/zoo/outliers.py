"""Give a model the key outliers that large models have, without changing what it computes.

Keys of large models have a few channels with far larger values than the rest, which is what codecs
for keys have to cope with; tiny models have none. RoPE rotates channels d and d + D/2 together, so
scaling both in the keys by a factor and in the queries by its inverse leaves every logit as it is.
"""

from __future__ import annotations

from typing import Any

import torch

from recollect.errors import HostError, RecipeError


@torch.no_grad()
def add_key_outliers(model: Any, pairs: int = 2, factor: float = 8.0, seed: int = 0) -> Any:
    """Scale some RoPE pairs of the keys up and of the queries down, in place; returns the model.

    Args:
        model: a causal language model whose attention has `q_proj` and `k_proj` and rotates all
            channels in halves (Llama, Qwen, Mistral …). Where queries and keys are normalized per
            head, the gains of the norms are scaled, which all heads of a layer share.
        pairs: how many of the D/2 pairs of each KV head; drawn from the slower half, which rotates
            least and where large models have their outliers.
        factor: how much larger these channels of the keys become.
        seed: of the choice of pairs.

    Raises:
        HostError: the model's attention is of another kind.
        RecipeError: `pairs` or `factor` is out of range.
    """
    width = _head_width(model.config)
    half = width // 2
    if not 0 <= pairs <= half - half // 2:
        raise RecipeError(f"pairs={pairs} must lie between 0 and {half - half // 2}")
    if not factor > 0:
        raise RecipeError(f"factor={factor} must be positive")
    generator = torch.Generator().manual_seed(seed)
    found = [m for m in model.modules() if hasattr(m, "q_proj") and hasattr(m, "k_proj")]
    if not found:
        raise HostError(f"{type(model).__name__} has no q_proj and k_proj whose rows can be scaled")
    for attention in found:
        query, key = _rows(attention, width)
        heads = key.shape[0] // width
        for head in range(heads):
            drawn = torch.randperm(half - half // 2, generator=generator)[:pairs] + half // 2
            channels = torch.cat([drawn, drawn + half]).to(key.device)
            _scale(key, heads, head, width, channels, factor)
            _scale(query, heads, head, width, channels, 1 / factor)
            for name, by in (("k_proj", factor), ("q_proj", 1 / factor)):
                bias = getattr(getattr(attention, name), "bias", None)
                if bias is not None and not hasattr(attention, "k_norm"):
                    _scale(bias, heads, head, width, channels, by)
    return model


def _head_width(config: Any) -> int:
    rope = getattr(config, "rope_parameters", None) or {}
    partial = rope.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", 1.0))
    if partial not in (None, 1.0):
        raise HostError(f"{config.model_type} rotates only some channels; pairs cannot be scaled")
    width = getattr(config, "head_dim", None)
    return int(width or config.hidden_size // config.num_attention_heads)


def _rows(attention: Any, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What carries one row or number per channel of queries and of keys."""
    if not hasattr(attention, "k_norm"):
        return attention.q_proj.weight, attention.k_proj.weight
    query, key = attention.q_norm.weight, attention.k_norm.weight
    if key.numel() != width:
        raise HostError("keys are normalized over all heads together; pairs cannot be scaled")
    return query, key


def _scale(
    rows: torch.Tensor, heads: int, head: int, width: int, channels: torch.Tensor, by: float
) -> None:
    """Scale these channels of one KV head, or of every query head of its group."""
    rows.view(heads, -1, width, *rows.shape[1:])[head][:, channels] *= by
