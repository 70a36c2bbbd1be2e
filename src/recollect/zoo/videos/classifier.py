"""A small classifier of clips: tells the shape and how it moves, and so judges samples."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from recollect.zoo.training import teach
from recollect.zoo.videos.clips import MOTIONS, SHAPES, asked, draw


class Classifier(torch.nn.Module):
    """Three convolutions over space and time and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            [
                torch.nn.Conv3d(3, 24, (3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2)),
                torch.nn.Conv3d(24, 48, 3, stride=2, padding=1),
                torch.nn.Conv3d(48, 64, 3, stride=(2, 1, 1), padding=1),
            ]
        )
        self.shape = torch.nn.Linear(64, len(SHAPES))
        self.motion = torch.nn.Linear(64, len(MOTIONS))

    def forward(self, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the shapes (B, 4) and of the motions (B, 2) of clips (B, 3, 8, 16, 16)."""
        for layer in self.layers:
            clips = torch.relu(layer(clips))
        features = clips.mean((2, 3, 4))
        return self.shape(features), self.motion(features)

    @torch.no_grad()
    def recognizes(
        self, clips: torch.Tensor, shapes: torch.Tensor, motions: torch.Tensor
    ) -> torch.Tensor:
        """Of every clip, whether its shape and its motion are what was asked for: (B, 2) bool."""
        found = (logits.argmax(1) for logits in self(clips))
        return torch.stack([a == b for a, b in zip(found, (shapes, motions), strict=True)], 1)


def load(folder: str | Path) -> Classifier:
    """The classifier that was trained with the model in `folder`."""
    judge = Classifier()
    judge.load_state_dict(load_file(Path(folder) / "classifier.safetensors"))
    return judge.eval()


def train(steps: int = 900, seed: int = 0, progress: bool = True) -> Classifier:
    """Learn from freshly drawn clips, with noise so that samples are in reach."""
    torch.manual_seed(seed)
    judge = Classifier()
    generator = torch.Generator().manual_seed(seed)

    def loss() -> torch.Tensor:
        shapes, motions = asked(64, generator)
        clips, _ = draw(shapes, motions, generator)
        clips = clips + 0.05 * torch.randn(clips.shape, generator=generator)
        both = map(torch.nn.functional.cross_entropy, judge(clips), (shapes, motions))
        return torch.stack(list(both)).sum()

    return teach(judge, loss, steps, rate=3e-3, progress=progress)
