"""Train the pair verifier: minutes on one core, most of them spent reading the texts once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from recollect.answers.learning.pair_examples import PairExample
from recollect.answers.verifiers.pair_features import pair_features
from recollect.answers.verifiers.pair_model import PairModel, Pieces
from recollect.errors import RecipeError


@dataclass(frozen=True)
class PairTraining:
    """How a pair verifier is trained.

    Attributes:
        epochs: passes over the pairs.
        batch: pairs per step, of like length.
        rate: AdamW's step after warming up for 5% of the steps, decayed linearly to zero.
        decay: weight decay.
        smoothing: how far labels are from 0 and 1.
        seed: of the order of the pairs.
    """

    epochs: int = 3
    batch: int = 64
    rate: float = 1e-3
    decay: float = 0.02
    smoothing: float = 0.03
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or not self.rate > 0:
            raise RecipeError("training needs epochs >= 1, batch >= 1 and rate > 0")


class Prepared(NamedTuple):
    """What the frozen part says of the examples: texts as word pieces, features (N, F)."""

    pieces: dict[str, Pieces]
    features: np.ndarray


def prepare(model: PairModel, examples: Sequence[PairExample]) -> Prepared:
    """Read every text once; 10 KB of memory a text."""
    texts = list(dict.fromkeys(text for example in examples for text in example[:2]))
    features = np.array([pair_features(*example[:2]) for example in examples], np.float32)
    return Prepared(dict(zip(texts, model.read(texts), strict=True)), features)


def train_pairs(
    model: PairModel,
    examples: Sequence[PairExample],
    training: PairTraining,
    prepared: Prepared | None = None,
    progress: Callable[[int, int, float], None] = lambda step, steps, loss: None,
    seen: np.ndarray | None = None,
) -> None:
    """Train in place.

    Args:
        model: of one or more members, which learn beside each other.
        examples: pairs with labels.
        training: how.
        prepared: what `prepare` made of these examples.
        progress: told step, steps and the mean loss of the last 50 steps.
        seen: (members, N) which member learns from which example; all of all when None.
    """
    pieces, features = prepared or prepare(model, examples)
    rng = np.random.default_rng(training.seed)
    if model.shape.rules:
        model.centre.copy_(torch.from_numpy(features.mean(0)))
        model.spread.copy_(torch.from_numpy(features.std(0) + 1e-3))
    lengths = np.array([max(len(pieces[text].ids) for text in e[:2]) for e in examples])
    fit = np.flatnonzero([min(len(pieces[text].ids) for text in e[:2]) > 0 for e in examples])
    if seen is None:
        seen = np.ones((model.shape.members, len(examples)), bool)
    weights = seen.astype(np.float32)
    steps = training.epochs * -(-len(fit) // training.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.rate, weight_decay=training.decay)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    )
    model.train()
    losses: list[float] = []
    for _ in range(training.epochs):
        order = fit[np.argsort(lengths[fit] + rng.uniform(-2, 2, len(fit)))]
        batches = np.array_split(order, -(-len(fit) // training.batch))
        for at in rng.permutation(len(batches)):
            rows = batches[at]
            first, second = ([pieces[examples[row][side]] for row in rows] for side in (0, 1))
            labels = torch.tensor([float(examples[row].same) for row in rows])
            labels = labels * (1 - 2 * training.smoothing) + training.smoothing
            opinions = model.opinions(first, second, features[rows])
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                opinions, labels.expand_as(opinions), torch.from_numpy(weights[:, rows])
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            progress(len(losses), steps, float(np.mean(losses[-50:])))
    model.eval()
