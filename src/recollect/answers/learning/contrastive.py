"""Train a linear head over an encoder, so that its cosines say "same answer" and not "same topic".

The two objectives that MeanCache alternates (arXiv 2403.02694): online contrastive loss over the
hard pairs of a batch, and multiple-negatives ranking over its duplicates. The encoder stays as it
is, so training takes seconds on one core and needs numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from recollect.answers.encoders.projection import Projection
from recollect.errors import RecipeError

NEAR = 10  # neighbours that a hard pair is drawn from


class Pairs(NamedTuple):
    """Vectors (N, D) of two texts each, and whether one answer serves both (N,)."""

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray

    @property
    def size(self) -> int:
        """Number of pairs N."""
        return len(self.same)

    def take(self, rows: np.ndarray) -> Pairs:
        """The pairs of these rows."""
        return Pairs(self.first[rows], self.second[rows], self.same[rows])


@dataclass(frozen=True)
class Training:
    """How a head is trained.

    Attributes:
        epochs: passes over the pairs.
        batch: pairs per step.
        rate: Adam's step, decayed linearly to zero.
        margin: cosine distance that different pairs should keep.
        scale: of cosines in the ranking loss.
        seed: of the order of the pairs.
    """

    epochs: int = 6
    batch: int = 128
    rate: float = 1e-3
    margin: float = 0.5
    scale: float = 20.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 2 or not self.rate > 0:
            raise RecipeError("training needs epochs >= 1, batch >= 2 and rate > 0")


def train_head(matrix: np.ndarray, pairs: Pairs, training: Training) -> np.ndarray:
    """The head (D, d) after training on `pairs`, starting from `matrix`. float32 in and out."""
    rng = np.random.default_rng(training.seed)
    head = matrix.astype(np.float64)
    mean, square = np.zeros_like(head), np.zeros_like(head)
    per_epoch = max(1, -(-pairs.size // training.batch))
    steps, done = training.epochs * per_epoch * 2, 0
    for _ in range(training.epochs):
        for rows in np.array_split(rng.permutation(pairs.size), per_epoch):
            batch = pairs.take(rows)
            for objective in (contrastive, ranking):
                _, gradient = objective(head, batch, training)
                done += 1
                mean += 0.1 * (gradient - mean)
                square += 0.001 * (gradient**2 - square)
                step = mean / (1 - 0.9**done) / (np.sqrt(square / (1 - 0.999**done)) + 1e-8)
                head -= training.rate * (1 - done / (steps + 1)) * step
    return head.astype(np.float32)


def contrastive(head: np.ndarray, pairs: Pairs, training: Training) -> tuple[float, np.ndarray]:
    """Online contrastive loss and its gradient (D, d).

    Only hard pairs count: same ones farther apart than the nearest different pair, and different
    ones nearer than the farthest same pair. Distances are 1 - cosine.
    """
    first, second = _Side(head, pairs.first), _Side(head, pairs.second)
    distance = 1 - (first.unit * second.unit).sum(1)
    same = pairs.same.astype(bool)
    closest = distance[~same].min(initial=np.inf)
    farthest = distance[same].max(initial=-np.inf)
    if not same.any() or same.all():
        closest, farthest = -np.inf, np.inf  # nothing to compare with: all pairs count
    pull = np.where(same & (distance > closest), distance, 0)
    push = np.where(~same & (distance < farthest), np.maximum(training.margin - distance, 0), 0)
    slope = 2 * (push - pull)[:, None] / len(distance)  # d loss / d cosine
    gradient = first.backward(slope * second.unit) + second.backward(slope * first.unit)
    return float((pull**2 + push**2).mean()), gradient


def ranking(head: np.ndarray, pairs: Pairs, training: Training) -> tuple[float, np.ndarray]:
    """Multiple-negatives ranking loss over the same pairs, both directions; gradient (D, d)."""
    same = pairs.same.astype(bool)
    if same.sum() < 2:
        return 0.0, np.zeros_like(head)
    first, second = _Side(head, pairs.first[same]), _Side(head, pairs.second[same])
    scores = training.scale * first.unit @ second.unit.T
    loss, slope = 0.0, np.zeros_like(scores)
    for axis in (0, 1):
        weights = np.exp(scores - scores.max(axis, keepdims=True))
        weights /= weights.sum(axis, keepdims=True)
        loss -= float(np.log(np.diag(weights) + 1e-300).mean()) / 2
        slope += (weights - np.eye(len(scores))) / (2 * len(scores))
    slope *= training.scale
    gradient = first.backward(slope @ second.unit) + second.backward(slope.T @ first.unit)
    return loss, gradient


class _Side:
    """One text of each pair after the head, and the way back through its normalization."""

    def __init__(self, head: np.ndarray, vectors: np.ndarray) -> None:
        self._vectors = vectors
        projected = vectors @ head
        self._length = np.linalg.norm(projected, axis=1, keepdims=True) + 1e-12
        self.unit = projected / self._length

    def backward(self, gradient: np.ndarray) -> np.ndarray:
        """From the gradient of the unit vectors (N, d) to the gradient of the head (D, d)."""
        along = (gradient * self.unit).sum(1, keepdims=True)
        return self._vectors.T @ ((gradient - along * self.unit) / self._length)


def head_projection(matrix: np.ndarray, encoder_id: str) -> Projection:
    """A trained head as the projection that follows its encoder."""
    mean = np.zeros(len(matrix), np.float32)
    return Projection(matrix.astype(np.float32), mean, encoder_id, f"head{matrix.shape[1]}")


def pairs_from_labels(
    vectors: np.ndarray, labels: np.ndarray, count: int, seed: int = 0, hard: float = 0.5
) -> Pairs:
    """`count` pairs, half of them of one label; of the others the share `hard` are neighbours.

    Raises RecipeError when there are no two labels, or no label has two vectors.
    """
    rng = np.random.default_rng(seed)
    names, sizes = np.unique(labels, return_counts=True)
    several = np.flatnonzero(np.isin(labels, names[sizes > 1]))
    if len(names) < 2 or not len(several):
        raise RecipeError("pairs need two labels and a label with two texts")
    rows = np.concatenate(
        [rng.choice(several, count // 2), rng.choice(len(labels), count - count // 2)]
    )
    partners = np.empty(count, np.int64)
    for at, row in enumerate(rows):
        if at < count // 2:
            alike = np.flatnonzero(labels == labels[row])
            partners[at] = rng.choice(alike[alike != row])
            continue
        if rng.random() < hard:
            near = np.where(labels == labels[row], -np.inf, vectors @ vectors[row])
            few = min(NEAR, int((near > -np.inf).sum()))
            others = np.argpartition(-near, few - 1)[:few]
        else:
            others = np.flatnonzero(labels != labels[row])
        partners[at] = rng.choice(others)
    return Pairs(vectors[rows], vectors[partners], labels[rows] == labels[partners])
