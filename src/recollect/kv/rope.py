"""The model's own rotary embedding, for recipes that rotate or un-rotate cached vectors."""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import PreTrainedModel

from recollect.core import rope as core_rope
from recollect.errors import HostError


class LayerRope:
    """Rotary embedding of one attention layer.

    `cos_sin` of the current forward pass are read by a hook on the attention module (`RopeTap`),
    those of other positions are asked of the model's rotary module.
    """

    def __init__(self, rotary: torch.nn.Module, interleaved: bool, layer_type: str | None) -> None:
        self.rotary = rotary
        self.interleaved = interleaved
        self.layer_type = layer_type
        self.current: tuple[torch.Tensor, torch.Tensor] | None = None

    def cos_sin(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos, sin (..., R) in float32 at `positions` (...)."""
        flat = positions.reshape(1, -1)
        like = torch.zeros(1, dtype=torch.float32, device=flat.device)
        arguments: tuple[Any, ...] = (like, flat)
        if self.layer_type is not None:
            arguments = (*arguments, self.layer_type)
        cos, sin = (self._laid_out(t.float()) for t in self.rotary(*arguments))
        return cos[0].view(*positions.shape, -1), sin[0].view(*positions.shape, -1)

    def angles(self, new: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos, sin (B or 1, 1, new, R) of the last `new` tokens of the current forward pass."""
        if self.current is None:
            raise HostError("the model did not pass position_embeddings to its attention")
        cos, sin = (self._laid_out(t.float())[:, None, -new:] for t in self.current)
        return cos, sin

    def rotate_by(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """Move vectors x (..., T, D) forward by `shift` (..., T) positions."""
        cos, sin = self.cos_sin(shift)
        return core_rope.rerotate(x, cos, sin, interleaved=self.interleaved)

    def _laid_out(self, angles: torch.Tensor) -> torch.Tensor:
        """Angles (..., R) as core wants them: interleaved models may give the half-split layout and
        rearrange it inside their own rotation."""
        half = angles.shape[-1] // 2
        if self.interleaved and torch.equal(angles[..., :half], angles[..., half:]):
            return core_rope.interleave_angles(angles)
        return angles


class RopeTap:
    """Forward pre-hooks that only read: they note the cos and sin each attention layer is given."""

    def __init__(self, model: PreTrainedModel, modules: dict[int, torch.nn.Module]) -> None:
        self.layers: dict[int, LayerRope] = {}
        self._hooks = []
        rotary = _rotary_module(model)
        types = getattr(model.config.get_text_config(decoder=True), "layer_types", None)
        for index, module in modules.items():
            layer_type = types[index] if types and _takes_layer_type(rotary) else None
            rope = LayerRope(rotary, _is_interleaved(module), layer_type)
            self.layers[index] = rope
            self._hooks.append(module.register_forward_pre_hook(_noting(rope), with_kwargs=True))

    def remove(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def _noting(rope: LayerRope) -> Any:
    def note(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pair = kwargs.get("position_embeddings")
        if pair is None:
            pair = next((a for a in args if isinstance(a, tuple) and len(a) == 2), None)
        rope.current = pair

    return note


def _rotary_module(model: PreTrainedModel) -> torch.nn.Module:
    for module in model.modules():
        rotary = getattr(module, "rotary_emb", None)
        if isinstance(rotary, torch.nn.Module) and any(
            "inv_freq" in n for n, _ in rotary.named_buffers()
        ):
            return rotary
    raise HostError(
        f"{type(model).__name__} has no rotary embedding; this recipe needs one "
        "(expected-attention and contiguous positions do)"
    )


def _takes_layer_type(rotary: torch.nn.Module) -> bool:
    return "layer_type" in rotary.forward.__code__.co_varnames


def _is_interleaved(module: torch.nn.Module) -> bool:
    """Probe the model's own `rotate_half`: (0 1 2 3) → (-2 -3 0 1) or, interleaved, (-1 0 -3 2)."""
    rotate_half = getattr(sys.modules[type(module).__module__], "rotate_half", None)
    if rotate_half is None:
        raise HostError(
            f"{type(module).__name__} rotates keys in a way recollect does not know; "
            "recipes that need un-rotated keys cannot run on it"
        )
    turned = rotate_half(torch.arange(4.0)).tolist()
    if turned == [-2.0, -3.0, 0.0, 1.0]:
        return False
    if turned == [-1.0, 0.0, -3.0, 2.0]:
        return True
    raise HostError(f"{type(module).__name__} rotates keys in a way recollect does not know")
