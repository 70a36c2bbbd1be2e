"""Which tokens of a picture an edit changes: compare an estimate of the result with the original.

A token is edited where the two point in different directions; specks are cleaned away by an
erosion, and what remains grows by a dilation (RegionE, Chen et al. 2025, arXiv 2510.25590).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recollect.errors import HostError


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a call lie.

    Attributes:
        count: tokens of the result; they come first.
        rows, columns: place of each on the grid, int64 (count,).
        counterpart: for each, the token of the picture at the same place, int64 (count,).
    """

    count: int
    rows: torch.Tensor
    columns: torch.Tensor
    counterpart: torch.Tensor

    @classmethod
    def of(cls, ids: torch.Tensor) -> Layout:
        """Read position ids (N, 3) of flag, row and column: flag 0 for the result.

        Raises:
            HostError: there is no picture to edit, or its grid is another one.
        """
        places = ids.long()
        result = places[:, 0] == 0
        count = int(result.sum())
        if count == len(places) or not bool(result[:count].all()):
            raise HostError(
                "a call without tokens of a picture to edit (position ids with a first coordinate "
                "other than 0, after those of the result)"
            )
        first = places[count:, 0] == places[count, 0]
        own, other = places[:count, 1:], places[count:][first, 1:]
        if own.shape != other.shape or not torch.equal(own, other):
            raise HostError(
                f"the picture to edit has {len(other)} tokens and the result {count}, or they lie "
                "on different grids; give both the same height and width"
            )
        rows, columns = own.unbind(1)
        found = torch.arange(len(places) - count, device=ids.device)[first] + count
        return cls(count, rows - rows.min(), columns - columns.min(), found)


def edited(
    estimate: torch.Tensor,
    picture: torch.Tensor,
    layout: Layout,
    similarity: float,
    erode: int,
    dilate: int,
) -> torch.Tensor:
    """Which tokens an edit changes: (B, S) bool.

    Args:
        estimate: the result as far as it is known (B, S, C).
        picture: the picture to edit (B, S, C).
        layout: where the tokens lie.
        similarity: cosine at or below which a token is edited.
        erode: width of the cross that takes specks away, in tokens; odd, 1 for none.
        dilate: width of the square that what remains grows by; odd, 1 for none.
    """
    cosine = torch.nn.functional.cosine_similarity(estimate.float(), picture.float(), dim=-1)
    size = int(layout.rows.max()) + 1, int(layout.columns.max()) + 1
    grid = cosine.new_zeros(len(cosine), *size, dtype=torch.bool)
    grid[:, layout.rows, layout.columns] = cosine <= similarity
    grid = dilated(eroded(grid, erode), dilate)
    return grid[:, layout.rows, layout.columns]


def eroded(grid: torch.Tensor, width: int) -> torch.Tensor:
    """Where a whole cross of this width is marked; outside (B, H, W) nothing is."""
    centre = width // 2
    cross = torch.zeros(width, width, device=grid.device)
    cross[centre, :] = cross[:, centre] = 1
    return _count(grid, cross) == cross.sum()


def dilated(grid: torch.Tensor, width: int) -> torch.Tensor:
    """Where anything in a square of this width is marked."""
    return _count(grid, torch.ones(width, width, device=grid.device)) > 0


def _count(grid: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    found = torch.nn.functional.conv2d(
        grid[:, None].float(), kernel[None, None], padding=len(kernel) // 2
    )
    return found[:, 0].round()
