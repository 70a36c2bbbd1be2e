"""Captions of clips as the text encoder's output would be: three tokens from a learned table."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from recollect.zoo.videos.clips import MOTIONS, SHAPES

WIDTH = 32
"""Width of a caption's tokens."""
_FILE = "captions.safetensors"
_START = 0  # the tokens of the table: a start, nothing, the shapes, the motions
_NOTHING = 1
_FIRST = 2


class Captions(torch.nn.Module):
    """Embeddings (B, 3, 32) of captions: a start token, the shape, the motion."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(_FIRST + len(SHAPES) + len(MOTIONS), WIDTH)

    def forward(self, shapes: torch.Tensor, motions: torch.Tensor) -> torch.Tensor:
        """Captions of clips.

        Args:
            shapes: (B,) int64; -1 for a caption that does not tell.
            motions: the same.
        """
        first = torch.where(shapes < 0, _NOTHING, _FIRST + shapes)
        second = torch.where(motions < 0, _NOTHING, _FIRST + len(SHAPES) + motions)
        start = torch.full_like(first, _START)
        return self.table(torch.stack([start, first, second], 1))

    def empty(self, count: int) -> torch.Tensor:
        """Captions that tell nothing, for guidance."""
        nothing = torch.full((count,), -1, device=self.table.weight.device)
        return self(nothing, nothing)

    def save(self, folder: Path) -> None:
        """Write the table beside the model's weights."""
        save_file({"table": self.table.weight.detach().half().cpu()}, folder / _FILE)

    @classmethod
    def load(cls, folder: str | Path) -> Captions:
        """The table that was trained with the model in `folder`."""
        captions = cls()
        captions.load_state_dict({"table.weight": load_file(Path(folder) / _FILE)["table"].float()})
        return captions.eval().requires_grad_(False)
