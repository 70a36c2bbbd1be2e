"""Scores: what a cached token is worth. Higher stays.

A score may watch every forward pass (`observe`, which returns side data per token) and is asked to
`rank` the candidates when the schedule says so. `window` is how many recent queries it needs to
see; `protects` says which tokens it never lets go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from recollect.core import attention_stats, scores
from recollect.core.rope import mean_rotation
from recollect.errors import HostError, RecipeError
from recollect.kv.candidates import Chunk


@dataclass(frozen=True)
class Score:
    """Contract of a score. All are pure functions of what they are given."""

    needs: ClassVar[tuple[str, ...]] = ()
    shared_heads: ClassVar[bool] = False  # all heads of a layer keep the same tokens
    comparable: ClassVar[bool] = True  # scores of different heads are on one scale

    @property
    def queries(self) -> int:
        """How many of the last queries `rank` needs."""
        return 0

    def observe(self, chunk: Chunk) -> dict[str, torch.Tensor]:
        """Side data (B, K, T) to add to the candidates' columns; called after every pass."""
        return {}

    def protects(self, budget: int) -> tuple[int, int]:
        """Sinks and recent tokens per head that stay whatever their rank."""
        return 0, 0

    def rank(self, chunk: Chunk) -> torch.Tensor:
        """Scores (B, K, T) float32 of the candidates."""
        raise TypeError(f"{type(self).__name__} does not rank")  # every score defines it


def _recent_queries(chunk: Chunk, window: int) -> torch.Tensor:
    """The last `window` queries, or as many as were seen: they belong to the last candidates."""
    assert chunk.memory.queries is not None
    total = chunk.candidates.shape[2]
    return chunk.memory.queries[:, :, -min(window, total) :]


@dataclass(frozen=True)
class Recency(Score):
    """Newest first; with sinks this is StreamingLLM's window."""

    comparable: ClassVar[bool] = False

    def rank(self, chunk: Chunk) -> torch.Tensor:
        batch, heads, total = chunk.candidates.shape
        order = torch.arange(total, dtype=torch.float32, device=chunk.q.device)
        return order.expand(batch, heads, total).clone()


@dataclass(frozen=True)
class WindowAttention(Score):
    """SnapKV: attention of the last `window` queries, pooled along the sequence (2404.14469).

    Attributes:
        window: how many of the last queries vote; their own tokens always stay.
        kernel: width of the pooling, odd.
        pool: `avg`, `max` or `none`.
    """

    window: int = 64
    kernel: int = 5
    pool: str = "avg"

    def __post_init__(self) -> None:
        if self.window < 1:
            raise RecipeError(f"window must be at least 1, got {self.window}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise RecipeError(f"kernel must be odd and at least 1, got {self.kernel}")
        if self.pool not in ("avg", "max", "none"):
            raise RecipeError(f"pool is one of avg, max, none, not '{self.pool}'")

    @property
    def queries(self) -> int:
        return self.window

    def protects(self, budget: int) -> tuple[int, int]:
        return 0, min(self.window, budget)

    def rank(self, chunk: Chunk) -> torch.Tensor:
        c = chunk.candidates
        q = _recent_queries(chunk, self.window)
        votes = attention_stats.column_mass(q, c.k, chunk.scale, c.row_padding()) / q.shape[2]
        return scores.window_votes(
            votes, c.shape[1], q.shape[2], pool=self.pool, kernel=self.kernel
        )


@dataclass(frozen=True)
class LastQueryAttention(Score):
    """TOVA: attention of the newest query, averaged over all heads of the layer (2401.06104)."""

    shared_heads: ClassVar[bool] = True

    @property
    def queries(self) -> int:
        return 1

    def protects(self, budget: int) -> tuple[int, int]:
        return 0, 1

    def rank(self, chunk: Chunk) -> torch.Tensor:
        c = chunk.candidates
        row = attention_stats.last_row(_recent_queries(chunk, 1), c.k, chunk.scale, c.row_padding())
        return scores.tova(row, c.shape[1])


@dataclass(frozen=True)
class AttentionMass(Score):
    """H2O: attention received so far, part of the budget kept for recent tokens (2306.14048).

    Attributes:
        recent_share: share of the budget that the most recent tokens take.
    """

    recent_share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.recent_share <= 1:
            raise RecipeError(f"recent_share lies in [0, 1], got {self.recent_share}")

    def observe(self, chunk: Chunk) -> dict[str, torch.Tensor]:
        even = chunk.even()
        c = even.candidates
        mass = attention_stats.column_mass(even.q, c.k, even.scale, c.row_padding())
        hits = scores.heavy_hitters(mass, c.shape[1])
        return {"mass": hits.view(chunk.candidates.shape)}

    def protects(self, budget: int) -> tuple[int, int]:
        return 0, int(self.recent_share * budget)

    def rank(self, chunk: Chunk) -> torch.Tensor:
        return chunk.candidates.columns["mass"].clone()


@dataclass(frozen=True)
class KeyNorm(Score):
    """Tokens with small keys receive much attention: minus the L2 norm of the key (2406.11430)."""

    comparable: ClassVar[bool] = False

    def rank(self, chunk: Chunk) -> torch.Tensor:
        return scores.key_norm(chunk.candidates.k)


@dataclass(frozen=True)
class ExpectedAttention(Score):
    """Attention that future queries, Gaussian like the prompt's, are expected to pay (2510.00636).

    Attributes:
        future: how many coming positions to average the rotation over.
        sinks: first tokens, left out of the statistics and always kept.
        epsilon: added to the expected attention before it is weighted by the value norm; 0.01 is
            what the authors use on their leaderboard, and what retrieval needs.
    """

    needs: ClassVar[tuple[str, ...]] = ("rope",)

    future: int = 512
    sinks: int = 4
    epsilon: float = 0.01

    def __post_init__(self) -> None:
        if self.future < 1:
            raise RecipeError(f"future must be at least 1, got {self.future}")

    def observe(self, chunk: Chunk) -> dict[str, torch.Tensor]:
        if chunk.q.shape[2] == 1 and chunk.memory.statistics:
            return {}  # a generated token: the statistics describe the prompt
        assert chunk.rope is not None
        sums = scores.query_sums(
            chunk.q,
            self.sinks if chunk.first else 0,
            chunk.candidates.row_padding() if chunk.first else None,
            angles=chunk.rope.angles(chunk.q.shape[2]),
            interleaved=chunk.rope.interleaved,
        )
        known = chunk.memory.statistics
        chunk.memory.statistics = {n: x + known[n] if known else x for n, x in sums.items()}
        return {}

    def protects(self, budget: int) -> tuple[int, int]:
        return min(self.sinks, budget), 0

    def rank(self, chunk: Chunk) -> torch.Tensor:
        if chunk.rope is None:
            raise HostError("expected-attention needs the model's rotary embedding")
        c = chunk.candidates
        ahead = torch.arange(self.future, device=c.k.device)
        cos, sin = chunk.rope.cos_sin(chunk.next_position[:, None] + ahead)
        rotation = mean_rotation(cos, sin, c.k.shape[-1], interleaved=chunk.rope.interleaved)
        mean, covariance = scores.query_moments(chunk.memory.statistics)
        return scores.expected_attention(
            mean,
            covariance,
            c.k,
            c.v,
            rotation,
            padding=c.row_padding(),
            epsilon=self.epsilon,
            n_sink=self.sinks,
            scale=chunk.scale,
        )
