"""Budgets: how many tokens a layer may keep, and how its heads share them.

`keep` is a fraction of the tokens or a number of tokens, per KV head on average over the layers.
A layer budget turns it into tokens per head of one layer, a head budget divides those up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from recollect.core import budgets
from recollect.core.gates import head_classes
from recollect.errors import RecipeError


@dataclass(frozen=True)
class LayerBudget:
    """Contract: tokens per head of every layer, summing to the mean times the layers."""

    def tokens(self, keep: float | int, length: int, layers: int, window: int) -> list[int]:
        """Tokens per head, layer by layer, for a sequence of `length` tokens.

        `window` is how many recent tokens the score keeps anyway, in every layer.
        """
        raise TypeError(f"{type(self).__name__} has no rule")  # every budget defines it


@dataclass(frozen=True)
class UniformLayers(LayerBudget):
    """Every layer keeps the same."""

    def tokens(self, keep: float | int, length: int, layers: int, window: int) -> list[int]:
        return [budgets.count_kept(keep, length)] * layers


@dataclass(frozen=True)
class PyramidLayers(LayerBudget):
    """PyramidKV: early layers keep more, falling linearly with depth (2406.02069).

    Attributes:
        beta: how steep: the last layer's scored part is the mean divided by beta.
    """

    beta: float = 20.0

    def __post_init__(self) -> None:
        if self.beta < 1:
            raise RecipeError(f"beta must be at least 1, got {self.beta}")

    def tokens(self, keep: float | int, length: int, layers: int, window: int) -> list[int]:
        mean = budgets.count_kept(keep, length)
        return budgets.pyramid_layers(mean, layers, length, min(window, mean), self.beta)


@dataclass(frozen=True)
class HeadBudget:
    """Contract: kept tokens per KV head of one layer."""

    even: ClassVar[bool] = True  # all heads of a row keep the same number

    def counts(
        self,
        scores: torch.Tensor,
        tokens: torch.Tensor,
        lengths: torch.Tensor,
        prompt: torch.Tensor,
        layer: int,
    ) -> torch.Tensor:
        """Kept tokens (B, K).

        Args:
            scores: (B, K, T), protected tokens at +inf, padding at -inf.
            tokens: (B,) the layer's budget per head.
            lengths: (B, K) candidates each head has.
            prompt: (B,) tokens the budget was computed for.
            layer: index of the layer in the model.
        """
        raise TypeError(f"{type(self).__name__} has no rule")  # every budget defines it


@dataclass(frozen=True)
class EqualHeads(HeadBudget):
    """Every head keeps the same number."""

    def counts(
        self,
        scores: torch.Tensor,
        tokens: torch.Tensor,
        lengths: torch.Tensor,
        prompt: torch.Tensor,
        layer: int,
    ) -> torch.Tensor:
        return torch.minimum(tokens[:, None].expand_as(lengths), lengths)


@dataclass(frozen=True)
class FlatHeads(HeadBudget):
    """Ada-KV: one ranking over all heads of the layer, with a floor for each (2407.11550).

    Attributes:
        floor: share of the budget that every head keeps for itself.
    """

    even: ClassVar[bool] = False
    floor: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 1:
            raise RecipeError(f"floor lies in [0, 1], got {self.floor}")

    def counts(
        self,
        scores: torch.Tensor,
        tokens: torch.Tensor,
        lengths: torch.Tensor,
        prompt: torch.Tensor,
        layer: int,
    ) -> torch.Tensor:
        return budgets.flat_head_counts(scores, tokens, self.floor)


@dataclass(frozen=True)
class HeadClasses(HeadBudget):
    """DuoAttention: retrieval heads keep all, streaming heads sinks and recents (2410.10819).

    The number of retrieval heads follows from `keep`: as many as fit when the others hold
    `sinks + recent` tokens. Which heads they are is read from gates trained by
    `recollect.kv.calibrate_gates` and saved as safetensors.

    Attributes:
        gates: path of the gates; empty means `recollect/duo-attention.safetensors` in the
            checkpoint's folder.
        sinks, recent: what streaming heads hold.
        classes: the gates (L, K) themselves, read when a cache is made.
    """

    even: ClassVar[bool] = False
    gates: str = ""
    sinks: int = 4
    recent: int = 64
    classes: tuple[tuple[float, ...], ...] | None = field(default=None, repr=False)

    def counts(
        self,
        scores: torch.Tensor,
        tokens: torch.Tensor,
        lengths: torch.Tensor,
        prompt: torch.Tensor,
        layer: int,
    ) -> torch.Tensor:
        assert self.classes is not None
        gates, rows = torch.tensor(self.classes), []
        for row, (budget, total) in enumerate(zip(tokens.tolist(), prompt.tolist(), strict=True)):
            streaming = min(self.sinks + self.recent, budget)
            share = (budget - streaming) / max(total - streaming, 1)
            retrieval = head_classes(gates, 1 - share)[layer].to(lengths.device)
            rows.append(torch.where(retrieval, lengths[row], streaming))
        return torch.minimum(torch.stack(rows), lengths)
