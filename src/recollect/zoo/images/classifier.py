"""A small classifier of drawn shapes: judges samples, and measures distances between pictures.

Its features stand in for the pretrained networks of LPIPS and FID, which do not fit in a package.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from safetensors.torch import load_file

from recollect.zoo.images.shapes import CLASSES, draw
from recollect.zoo.training import teach


class Classifier(torch.nn.Module):
    """Three convolutions and a linear layer: logits (B, 4) of pictures (B, 3, 16, 16)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 64)
        self.layers = torch.nn.ModuleList(
            torch.nn.Conv2d(a, b, 3, stride=1 if a == 3 else 2, padding=1)
            for a, b in itertools.pairwise(widths)
        )
        self.head = torch.nn.Linear(widths[-1], len(CLASSES))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(pictures)[-1].mean((2, 3)))

    def features(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """The maps (B, C, H, W) after every layer."""
        maps = []
        for layer in self.layers:
            pictures = torch.relu(layer(pictures))
            maps.append(pictures)
        return maps


def load(folder: str | Path) -> Classifier:
    """The classifier that was trained with the model in `folder`."""
    judge = Classifier()
    judge.load_state_dict(load_file(Path(folder) / "classifier.safetensors"))
    return judge.eval()


def train(steps: int = 1000, seed: int = 0, progress: bool = True) -> Classifier:
    """Learn the classes from freshly drawn pictures, with noise so that samples are in reach."""
    torch.manual_seed(seed)
    judge = Classifier()
    generator = torch.Generator().manual_seed(seed)

    def loss() -> torch.Tensor:
        labels = torch.randint(0, len(CLASSES), (128,), generator=generator)
        pictures = draw(labels, generator)
        pictures = pictures + 0.05 * torch.randn(pictures.shape, generator=generator)
        return torch.nn.functional.cross_entropy(judge(pictures), labels)

    return teach(judge, loss, steps, progress=progress)


@torch.no_grad()
def perceptual(judge: Classifier, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Distance of pictures (B, 3, 16, 16) by unit-normalized features, layer by layer: (B,)."""
    total = torch.zeros(len(one))
    for a, b in zip(judge.features(one), judge.features(other), strict=True):
        a, b = (x / x.norm(dim=1, keepdim=True).clamp_min(1e-8) for x in (a, b))
        total += (a - b).square().sum(1).mean((1, 2))
    return total / len(judge.layers)


@torch.no_grad()
def frechet(judge: Classifier, one: torch.Tensor, other: torch.Tensor) -> float:
    """Frechet distance between two sets of pictures, on the last features."""
    a, b = (judge.features(x)[-1].mean((2, 3)).double() for x in (one, other))
    means = (a.mean(0) - b.mean(0)).square().sum()
    ca, cb = torch.cov(a.T), torch.cov(b.T)
    # The trace of the root of ca @ cb is that of the root of a symmetric matrix with the same
    # eigenvalues.
    values, vectors = torch.linalg.eigh(ca)
    root = vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cb @ root).clamp_min(0).sqrt().sum()
    return float(means + ca.trace() + cb.trace() - 2 * cross)
