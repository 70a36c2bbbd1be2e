"""A small classifier that says which shapes of which colours are in a picture."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from safetensors.torch import load_file

from recollect.zoo.edits.pairs import FAMILIES, Edits, draw_edits
from recollect.zoo.images.shapes import CLASSES
from recollect.zoo.training import teach

BATCH = 128


class EditJudge(torch.nn.Module):
    """Four convolutions, the maximum over places, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 64, 64)
        self.layers = torch.nn.ModuleList(
            torch.nn.Conv2d(a, b, 3, stride=2 if n == 1 else 1, padding=1)
            for n, (a, b) in enumerate(itertools.pairwise(widths))
        )
        self.head = torch.nn.Linear(widths[-1], len(CLASSES) * len(FAMILIES))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Logits (B, 4, 4) that a shape of each class and colour is in pictures (B, 3, 16, 16)."""
        for layer in self.layers:
            pictures = torch.relu(layer(pictures))
        return self.head(pictures.amax((2, 3))).unflatten(1, (len(CLASSES), len(FAMILIES)))


def load(folder: str | Path) -> EditJudge:
    """The judge that was trained with the model in `folder`."""
    judge = EditJudge()
    judge.load_state_dict(load_file(Path(folder) / "judge.safetensors"))
    return judge.eval()


def train(steps: int = 1600, seed: int = 0, progress: bool = True) -> EditJudge:
    """Learn from drawn pictures, with noise so that samples are in reach."""
    torch.manual_seed(seed)
    judge = EditJudge()
    generator = torch.Generator().manual_seed(seed)

    def loss() -> torch.Tensor:
        edits = draw_edits(BATCH, generator)
        truth = torch.zeros(BATCH, len(CLASSES), len(FAMILIES))
        for shape in (edits.others, edits.drawn):
            truth[torch.arange(BATCH), shape[:, 0], shape[:, 1]] = 1
        pictures = edits.after + 0.05 * torch.randn(edits.after.shape, generator=generator)
        return torch.nn.functional.binary_cross_entropy_with_logits(judge(pictures), truth)

    return teach(judge, loss, steps, progress=progress)


@torch.no_grad()
def recognized(judge: EditJudge, pictures: torch.Tensor, edits: Edits) -> torch.Tensor:
    """Whether pictures (B, 3, 16, 16) show what was asked for, and nothing else: (B,) bool.

    Exactly two shapes: the one that stays in its colour, the edited one in its class and, where
    the instruction names one, its colour.
    """
    seen = judge(pictures) > 0
    rows = torch.arange(len(pictures))
    stays = seen[rows, edits.others[:, 0], edits.others[:, 1]]
    its_class, colour = edits.wanted.unbind(1)
    exact = seen[rows, its_class, colour.clamp_min(0)]
    made = torch.where(colour < 0, seen[rows, its_class].sum(1) == 1, exact)
    return stays & made & (seen.sum((1, 2)) == 2)
