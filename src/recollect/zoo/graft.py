"""Grow a Llama from a trained Qwen3: the same model without the norms on queries and keys.

Without these norms small models take many times longer to learn sharp attention, so the zoo's Llama
does not start from nothing. Layer by layer, the linear maps closest to the normalized queries and
keys (and the values) of the Qwen3 are fitted to what the Llama's layer really sees, and every KV
head is doubled. What the fit loses comes back in minutes of further training.
"""

from __future__ import annotations

from typing import Any

import torch

RIDGE = 1e-5  # of the fit, relative to inputs of size 1


@torch.no_grad()
def grow(parent: Any, model: Any, ids: torch.Tensor, rows: int = 4) -> Any:
    """Fill a Llama, in place, with the best imitation of a Qwen3; returns the Llama.

    Args:
        parent: the trained Qwen3.
        model: a Llama of the same shape, except that it may have a multiple of the KV heads.
        ids: (B, T) tokens to fit on; B * T should be many times the hidden width.
        rows: sequences read at a time.
    """
    kept = {name: w for name, w in parent.state_dict().items() if not _differs(name)}
    model.load_state_dict(kept, strict=False)
    wanted = _projected(parent, ids, rows)
    for index, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        seen = _inputs(model, attention, ids, rows).double()
        gram = seen.T @ seen + RIDGE * len(seen) * torch.eye(seen.shape[1], dtype=seen.dtype)
        for name in ("q_proj", "k_proj", "v_proj"):
            fitted = torch.linalg.solve(gram, seen.T @ wanted[index, name].double()).T
            weight = getattr(attention, name).weight
            weight.copy_(_repeat_heads(fitted, weight.shape[0], attention.head_dim))
    return model


def _differs(name: str) -> bool:
    return any(part in name for part in ("q_proj", "k_proj", "v_proj", "q_norm", "k_norm"))


def _projected(parent: Any, ids: torch.Tensor, rows: int) -> dict[tuple[int, str], torch.Tensor]:
    """Normalized queries and keys, and values, of every layer: (N, heads * D) each."""
    kept: dict[tuple[int, str], list[torch.Tensor]] = {}
    hooks = []
    for index, layer in enumerate(parent.model.layers):
        attention = layer.self_attn
        for name, module in (
            ("q_proj", attention.q_norm),
            ("k_proj", attention.k_norm),
            ("v_proj", attention.v_proj),
        ):
            found = kept.setdefault((index, name), [])
            hooks.append(
                module.register_forward_hook(
                    lambda _, __, out, found=found: found.append(out.flatten(0, 1).flatten(1))
                )
            )
    _read(parent, ids, rows)
    for hook in hooks:
        hook.remove()
    return {key: torch.cat(found) for key, found in kept.items()}


def _inputs(model: Any, attention: Any, ids: torch.Tensor, rows: int) -> torch.Tensor:
    """What the projections of a layer see: (N, E)."""
    found: list[torch.Tensor] = []
    hook = attention.q_proj.register_forward_pre_hook(
        lambda _, inputs: found.append(inputs[0].flatten(0, 1))
    )
    _read(model, ids, rows)
    hook.remove()
    return torch.cat(found)


def _read(model: Any, ids: torch.Tensor, rows: int) -> None:
    for part in ids.split(rows):
        model.model(input_ids=part, use_cache=False)


def _repeat_heads(weight: torch.Tensor, size: int, width: int) -> torch.Tensor:
    """Every head of a projection repeated until it has `size` rows."""
    heads = weight.view(-1, width, weight.shape[1])
    return heads.repeat_interleave(size // weight.shape[0], 0).reshape(size, -1)
