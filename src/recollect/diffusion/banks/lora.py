"""Low-rank adapters that work on condition tokens only, and how they are learned.

While a condition runs by itself its linear layers add `up(down(x))`; text and noise never meet
them, so the model is what it was for everything else (EasyControl, arXiv 2503.07027).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from recollect.diffusion.artefacts import Artefact, fingerprint
from recollect.errors import RecipeError

KIND = "condition-lora"
_LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "proj_mlp", "proj_out", "ff.net.0.proj", "ff.net.2")
Weights = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""Name of a linear layer -> (down (r, in), up (out, r))."""


def read_adapter(artefact: Artefact) -> dict[str, Any]:
    """The weights of an adapter that `train_condition` made."""
    kept = artefact.tensors
    layers = sorted({key.rpartition(".")[0] for key in kept})
    return {n: (kept[f"{n}.down"].float(), kept[f"{n}.up"].float()) for n in layers}


def new_adapter(model: torch.nn.Module, rank: int = 8, seed: int = 0) -> dict[str, Any]:
    """Trainable weights of an adapter that changes nothing yet.

    Args:
        model: a denoiser in FLUX's layout.
        rank: of every layer's adapter.
        seed: of the weights.
    """
    if rank < 1:
        raise RecipeError(f"rank is 1 or more, not {rank}")
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "blocks" in name and name.endswith(_LAYERS):
            down = torch.randn(rank, module.in_features, generator=generator) / rank**0.5
            down = (down / module.in_features**0.5).to(module.weight.device)
            up = torch.zeros(module.out_features, rank, device=down.device)
            found[name] = (down.requires_grad_(), up.requires_grad_())
    return found


def train_condition(
    model: torch.nn.Module,
    weights: Weights,
    loss: Callable[[], torch.Tensor],
    steps: int,
    rate: float = 2e-3,
    progress: Callable[[int, float], None] | None = None,
) -> Artefact:
    """Learn an adapter; the model's own weights stay.

    Args:
        model: the denoiser, accelerated with a `LearningBank` of these weights.
        weights: what `new_adapter` made.
        loss: draws a batch and gives its loss, with gradients to the weights.
        steps: updates.
        rate: highest learning rate; it falls to 0.
        progress: told the number of updates made and the loss before the last one.
    """
    learned = [t for pair in weights.values() for t in pair]
    optimizer = torch.optim.AdamW(learned, lr=rate, weight_decay=0.0)
    for step in range(steps):
        value = loss()
        # What follows the last keys and values of a condition is never used.
        gradients = torch.autograd.grad(value, learned, allow_unused=True)
        for tensor, gradient in zip(learned, gradients, strict=True):
            tensor.grad = gradient
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20) * (1 - step / steps)
        optimizer.step()
        if progress is not None:
            progress(step + 1, value.item())
    return adapter(model, weights, steps)


def adapter(
    model: torch.nn.Module, weights: Weights, steps: int, dtype: torch.dtype = torch.float32
) -> Artefact:
    """Weights after so many updates, for `ConditionBank(lora=FILE)`; layers that stayed as they
    were are left out.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, (down, up) in weights.items():
        if up.any():
            tensors |= {
                f"{name}.down": down.detach().to(dtype),
                f"{name}.up": up.detach().to(dtype),
            }
    return Artefact(KIND, fingerprint(model), {"steps": steps}, tensors)
