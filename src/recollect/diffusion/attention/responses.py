"""Which blocks answer to the text: a probe for Focal Guidance (arXiv:2601.07287).

A block responds where its map of the text is coherent over the frame (Moran's I) and varies over
it; semantic-weak blocks are those whose maps do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from recollect.diffusion.artefacts import Artefact, fingerprint
from recollect.diffusion.attention.focal import FOCAL_LAYERS, FocalGuidance
from recollect.diffusion.attention.maps import AttentionMaps, record_maps
from recollect.diffusion.host.blocks import find_blocks
from recollect.errors import HostError, RecipeError


@dataclass(frozen=True)
class LayerRanks:
    """How clearly each block answers to the text.

    Attributes:
        model: the denoiser that was probed.
        coherence: by block, Moran's I of its text maps over the frame: about 0 for noise, towards 1
            where neighbours respond alike.
        contrast: by block, standard deviation of the maps over places, relative to their mean.
    """

    model: torch.nn.Module = field(repr=False)
    coherence: tuple[float, ...]
    contrast: tuple[float, ...]

    @property
    def response(self) -> tuple[float, ...]:
        """Both in one: a coherent map that varies over the frame, (blocks,)."""
        pairs = zip(self.coherence, self.contrast, strict=True)
        return tuple(max(0.0, coherence) * contrast for coherence, contrast in pairs)

    def choose(self, sources: int = 1, weak: int = 1) -> FocalGuidance:
        """So many of the most responsive blocks as sources, and of the least after them as weak.

        Raises RecipeError where not so many blocks come after a source.
        """
        ranked = sorted(range(len(self.response)), key=self.response.__getitem__)
        lending = sorted(ranked[-sources:])
        after = [block for block in ranked if block > lending[0] and block not in lending]
        if len(after) < weak:
            raise RecipeError(
                f"only {len(after)} blocks come after the source {lending[0]}; ask for more "
                "sources or fewer weak blocks"
            )
        return FocalGuidance(sources=tuple(lending), weak=tuple(after[:weak]))

    def save(self, path: str | Path, sources: int = 1, weak: int = 1) -> FocalGuidance:
        """Write what `choose` chooses; returns the companion that uses the file."""
        chosen = self.choose(sources, weak)
        tensors = {
            "coherence": torch.tensor(self.coherence),
            "contrast": torch.tensor(self.contrast),
            "sources": torch.tensor(chosen.sources),
            "weak": torch.tensor(chosen.weak),
        }
        Artefact(FOCAL_LAYERS, fingerprint(self.model), {}, tensors).save(path)
        return FocalGuidance(layers=str(path))


def rank_layers(
    model: torch.nn.Module, run: Callable[[], Any], grid: tuple[int, int, int]
) -> LayerRanks:
    """Probe which blocks answer to the text, from uncached samples.

    Args:
        model: the denoiser.
        run: draws one batch with prompts.
        grid: frames, rows and columns of visual tokens.

    Raises:
        HostError: no block attends to text, or the grid does not fit.
    """
    maps = record_maps(model, run, AttentionMaps(rows=None, keys="text"))
    coherence, contrast = [], []
    for block in find_blocks(model):
        own = [one.mean for name, one in maps.items() if name.startswith(f"{block.name}.")]
        if not own:
            raise HostError(f"{block.name} has no attention to text")
        places = own[0].shape[1]
        if places != grid[0] * grid[1] * grid[2]:
            raise HostError(f"the grid {grid} does not hold the model's {places} visual tokens")
        planes = torch.cat([one.transpose(1, 2).unflatten(2, grid).flatten(0, 2) for one in own])
        coherence.append(float(moran(planes).mean()))
        deviation = planes.flatten(1).std(1) / planes.flatten(1).mean(1).clamp_min(1e-12)
        contrast.append(float(deviation.mean()))
    return LayerRanks(model, tuple(coherence), tuple(contrast))


def moran(planes: torch.Tensor) -> torch.Tensor:
    """Moran's I of planes (N, H, W), where places that share an edge are neighbours: (N,).

    A plane without any variation has 0.
    """
    away = planes.double() - planes.double().mean((1, 2), keepdim=True)
    down = (away[:, 1:] * away[:, :-1]).sum((1, 2))
    across = (away[:, :, 1:] * away[:, :, :-1]).sum((1, 2))
    height, width = planes.shape[1:]
    pairs = (height - 1) * width + height * (width - 1)
    spread = away.square().sum((1, 2))
    found = (down + across) / pairs * (height * width) / spread.clamp_min(1e-300)
    return torch.where(spread > 0, found, torch.zeros_like(found)).float()
