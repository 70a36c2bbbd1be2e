"""Keys and values of tokens that are not computed on a step."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from recollect.diffusion.engine.values import nbytes

Pair = tuple[torch.Tensor, torch.Tensor]
"""Keys and values (B, N, W), before norm and before rotary embedding."""


@dataclass
class KVBank:
    """Keys and values of all image tokens, by attention module.

    They are kept before norm and rotary embedding: both are done per token whenever they are used,
    so a row can be overwritten on its own.

    Attributes:
        layers: name of the attention module -> what is kept of it.
        learning: whether gradients flow through what is kept.
    """

    layers: dict[str, Pair] = field(default_factory=dict)
    learning: bool = False

    def put(self, layer: str, key: torch.Tensor, value: torch.Tensor) -> Pair:
        """Keep keys and values (B, N, W) of every token; gives them back."""
        kept = (key, value) if self.learning else (key.detach(), value.detach())
        self.layers[layer] = (kept[0].contiguous(), kept[1].contiguous())
        return key, value

    def get(self, layer: str) -> Pair:
        """What was put, with the rows overwritten since."""
        return self.layers[layer]

    def overwrite(
        self,
        layer: str,
        samples: torch.Tensor,
        places: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
    ) -> Pair:
        """Replace some tokens of some samples; gives all tokens of these samples.

        Args:
            layer: name of the attention module.
            samples: rows of the batch (b,) int64.
            places: tokens of each (b, n) int64; one named twice must have the same row twice.
            key, value: new rows (b, n, W).
        """
        rows = samples[:, None]
        for kept, new in zip(self.layers[layer], (key, value), strict=True):
            kept[rows, places] = new.detach().to(kept.dtype)
        keys, values = self.layers[layer]
        return keys[samples], values[samples]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(nbytes(pair) for pair in self.layers.values())
