"""Train DuoAttention's head gates: which KV heads need the whole context (2410.10819).

Every KV head gets a gate in [0, 1] that mixes its full attention with attention to sinks and recent
tokens only. The gates learn to close as far as the model's last hidden state on the answer tokens
of retrieval texts stays what it was; the model itself is frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from recollect.errors import RecipeError
from recollect.kv.artefacts import save_gates
from recollect.kv.fingerprint import fingerprint
from recollect.kv.host import attention_modules, check_model

NAME = "recollect_gated_sdpa"

# (gates (L, K), sinks, recent) of the calibration that is running.
_GATES: ContextVar[tuple[torch.Tensor, int, int] | None] = ContextVar("gates", default=None)


def calibrate_gates(
    model: PreTrainedModel,
    texts: Iterable[tuple[torch.Tensor, torch.Tensor]],
    path: str | Path,
    *,
    sinks: int = 4,
    recent: int = 64,
    penalty: float = 0.05,
    learning_rate: float = 0.02,
    progress: Callable[[int, float, float], None] | None = None,
) -> torch.Tensor:
    """Train gates on one pass over `texts` and save them.

    Args:
        model: the frozen model; it has to support `sdpa` attention.
        texts: (input_ids (B, T), weight (B, T)) batches; the distance of hidden states counts where
            the weight is positive: the tokens that answer a question about the text.
        path: safetensors file to write.
        sinks, recent: what streaming heads see; `recent` no larger than at deployment.
        penalty: weight of the mean gate in the loss; larger closes more heads.
        progress: called with step, distance and mean gate.

    Returns:
        Gates (L, K) float32 in [0, 1].

    Raises:
        RecipeError: there are no texts.
        HostError: the model cannot be hosted.
    """
    model = check_model(model)
    config = model.config.get_text_config(decoder=True)
    layers, heads = max(attention_modules(model)) + 1, config.num_key_value_heads
    gates = torch.ones(layers, heads, requires_grad=True)
    optimizer = torch.optim.AdamW([gates], lr=learning_rate, weight_decay=0.0)
    frozen = [(p, p.requires_grad) for p in model.parameters()]
    before = model.config._attn_implementation
    AttentionInterface.register(NAME, _gated)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    steps = 0
    try:
        for parameter, _ in frozen:
            parameter.requires_grad_(False)
        for steps, (ids, weight) in enumerate(texts, 1):
            distance = _distance(model, gates, ids, weight, sinks, recent, before)
            loss = distance + penalty * gates.abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                gates.clamp_(0, 1)
            if progress is not None:
                progress(steps, float(distance), float(gates.detach().mean()))
    finally:
        model.set_attn_implementation(before)
        for parameter, required in frozen:
            parameter.requires_grad_(required)
    if steps == 0:
        raise RecipeError("there are no texts to calibrate on")
    found = gates.detach()
    save_gates(path, found, fingerprint(model))
    return found


def _distance(
    model: PreTrainedModel,
    gates: torch.Tensor,
    ids: torch.Tensor,
    weight: torch.Tensor,
    sinks: int,
    recent: int,
    before: str,
) -> torch.Tensor:
    """Mean squared distance of gated to full last hidden states where `weight` is positive."""
    body = model.get_decoder()
    with torch.no_grad():
        target = body(input_ids=ids, use_cache=False).last_hidden_state
    token = _GATES.set((gates, sinks, recent))
    model.set_attn_implementation(NAME)
    try:
        hidden = body(input_ids=ids, use_cache=False).last_hidden_state
    finally:
        model.set_attn_implementation(before)
        _GATES.reset(token)
    asked = (weight > 0).to(hidden.device)
    return (hidden - target)[asked].pow(2).mean()


def _gated(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Full and streaming attention of one layer, mixed by its gates."""
    settings = _GATES.get()
    assert settings is not None
    gates, sinks, recent = settings
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    total = key.shape[2]
    place = torch.arange(total, device=query.device)
    near = (place[None] < sinks) | (place[None] > place[:, None] - recent)
    lowest = torch.finfo(attention_mask.dtype).min
    full, _ = sdpa(module, query, key, value, attention_mask, **options)
    narrow = attention_mask.masked_fill(~near, lowest)
    streaming, _ = sdpa(module, query, key, value, narrow, **options)
    groups = query.shape[1] // key.shape[1]
    layer: int = module.layer_idx  # type: ignore[assignment]
    gate = (
        gates[layer].to(query).repeat_interleave(groups)[:, None]
    )  # (H, 1); outputs are (B,T,H,D)
    return gate * full + (1 - gate) * streaming, None
