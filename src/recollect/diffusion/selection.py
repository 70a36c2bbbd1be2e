"""Which tokens are computed anew between full steps, and how much of every module (ToCa)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recollect.diffusion.sites import Modules
from recollect.errors import RecipeError

SCORES = ("values", "attention", "random")


@dataclass(frozen=True)
class Tokens(Modules):
    """Modules that compute their most important tokens on a skipped step and keep the other rows.

    ToCa (arXiv:2410.05317). What is computed is the product of `share` and the factors, at most
    everything. Modules that mix tokens otherwise than attention to a text does (self-attention with
    rotary embeddings, joint attention, convolutions, fused blocks) are reused whole.

    Attributes:
        share: share of the tokens, before the factors. 0 is FORA, 1 computes everything.
        on_attention, on_feed_forward: factors of these modules; those of DiT by default.
        slope: the factor of a block falls from ``1 + slope`` to ``1 - slope`` over the model.
        by: importance of a token: the norm of its `values` in self-attention, which any kernel
            leaves to see, the `attention` it receives, whose map is made once per full step, or
            `random`, another lot on every step, to compare with.
        age: weight of how long a token was not computed, in full intervals.
        bonus: added to the best token of every cell of 2 x 2, so that they spread over the image.
    """

    share: float = 0.07
    on_attention: float = 0.0
    on_feed_forward: float = 2.5
    slope: float = 0.5
    by: str = "values"
    age: float = 0.25
    bonus: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.share <= 1:
            raise RecipeError(f"share is between 0 and 1, not {self.share}")
        for name in ("on_attention", "on_feed_forward", "age", "bonus"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{name} is 0 or more, not {getattr(self, name)}")
        if not 0 <= self.slope <= 1:
            raise RecipeError(f"slope is between 0 and 1, not {self.slope}")
        if self.by not in SCORES:
            raise RecipeError(f"by is one of {', '.join(SCORES)}, not '{self.by}'")

    def count(self, tokens: int, feed_forward: bool, depth: float) -> int:
        """How many tokens of a module are computed; `depth` goes from 0 (first block) to 1."""
        if self.share == 1:
            return tokens
        factor = self.on_feed_forward if feed_forward else self.on_attention
        share = self.share * factor * (1 + self.slope * (1 - 2 * depth))
        return min(tokens, round(share * tokens))


def attention_received(
    query: torch.Tensor, key: torch.Tensor, heads: int, chunk: int = 1024
) -> torch.Tensor:
    """Column sums of the softmax of a self-attention, averaged over heads: (B, S) float32.

    Args:
        query, key: (B, S, heads * D), before rotary embeddings.
        heads: number of heads.
        chunk: queries at a time, which bounds the memory.
    """
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2).float() for x in (query, key))
    total = torch.zeros(k.shape[:3], device=k.device)
    for part in q.split(chunk, dim=2):
        total += (part @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1).sum(2)
    return total.mean(1)


def importance(
    score: torch.Tensor, age: torch.Tensor, site: Tokens, grid: tuple[int, int] | None
) -> torch.Tensor:
    """Scores (B, S) of tokens: normalized importance, age and the bonus of the best of each cell.

    Args:
        score: importance (B, S).
        age: steps since each was computed, in full intervals (B, S).
        site: the weights.
        grid: rows and columns of an image; tokens of several frames follow one another.
    """
    total = torch.nn.functional.normalize(score.float(), dim=-1) + site.age * age
    if grid is None or not site.bonus or any(side % 2 for side in grid):
        return total
    rows, columns = grid
    cells = total.view(len(total), -1, rows // 2, 2, columns // 2, 2).transpose(3, 4)
    flat = cells.flatten(4)
    best = torch.zeros_like(flat).scatter_(-1, flat.argmax(-1, keepdim=True), site.bonus)
    return total + best.unflatten(-1, (2, 2)).transpose(3, 4).reshape(total.shape)


def grid_of(tokens: int, latent: torch.Tensor) -> tuple[int, int] | None:
    """Rows and columns of the image that tokens stand for; None where it cannot be told.

    Args:
        tokens: their number.
        latent: (B, C, H, W), (B, C, F, H, W) or (B, F, C, H, W), cut into patches; or packed tokens
            (B, S, C) of a square.
    """
    if latent.ndim > 3:
        for patch in (1, 2, 4, 8):
            rows, columns = (side // patch for side in latent.shape[-2:])
            if rows and columns and tokens % (rows * columns) == 0:
                frames = tokens // (rows * columns)
                if frames == 1 or frames in latent.shape[1:-2]:
                    return rows, columns
        return None
    side = round(tokens**0.5)
    return (side, side) if side * side == tokens else None
