"""Merges: fewer tokens by averaging similar ones instead of dropping them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recollect.core import merge
from recollect.errors import RecipeError
from recollect.kv.candidates import Candidates


@dataclass(frozen=True)
class Merge:
    """Contract of a merge: the candidates, reduced to `tokens` per head of every row."""

    @property
    def weighs(self) -> bool:
        """Whether merged tokens carry a bias that attention has to add."""
        return False

    def apply(self, candidates: Candidates, tokens: int) -> Candidates:
        """Reduced candidates of one batch row, with a `bias` column: log of how many tokens each
        stands for, to be added to its logit."""
        raise TypeError(f"{type(self).__name__} does not merge")  # every merge defines it


@dataclass(frozen=True)
class ClusterMerge(Merge):
    """Chelsea: bipartite soft matching of neighbours inside chunks, round after round.

    Attributes:
        chunk: tokens per chunk; kept small because averaging rotated keys blurs high frequencies.
        sinks, recent: tokens at both ends that are never merged.
        weigh: add log(count) to a centroid's logit, exact for equal keys.
    """

    chunk: int = 64
    sinks: int = 4
    recent: int = 32
    weigh: bool = True

    def __post_init__(self) -> None:
        if self.chunk < 2 or self.chunk % 2:
            raise RecipeError(f"chunk must be even and at least 2, got {self.chunk}")

    @property
    def weighs(self) -> bool:
        return self.weigh

    def apply(self, candidates: Candidates, tokens: int) -> Candidates:
        total = candidates.shape[2]
        ends = self.sinks + self.recent
        if tokens >= total or tokens <= ends:
            tokens = max(min(tokens, total), min(ends + 1, total))
        if tokens == total:
            return candidates
        middle = slice(self.sinks, total - self.recent)
        count = candidates.columns["bias"].exp()[:, :, middle]
        k, v, count, index = merge.chelsea_rounds(
            candidates.k[:, :, middle],
            candidates.v[:, :, middle],
            count,
            target=tokens - ends,
            chunk=self.chunk,
        )
        position = candidates.columns["position"]
        columns = {
            "position": self._join(position, position[:, :, middle].gather(2, index), 2),
            "bias": self._join(
                candidates.columns["bias"],
                count.log() if self.weigh else torch.zeros_like(count),
                2,
            ),
        }
        return Candidates(
            self._join(candidates.k, k, 2), self._join(candidates.v, v, 2), None, columns
        )

    def _join(self, whole: torch.Tensor, middle: torch.Tensor, dim: int) -> torch.Tensor:
        total = whole.shape[dim]
        first = whole.narrow(dim, 0, self.sinks)
        last = whole.narrow(dim, total - self.recent, self.recent)
        return torch.cat([first, middle.to(whole.dtype), last], dim)
