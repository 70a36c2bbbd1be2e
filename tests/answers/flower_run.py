"""Three clients, two rounds in Flower's simulation engine, compared with averaging by hand."""

from __future__ import annotations

import numpy as np

from recollect.answers.encoders import unit_rows
from recollect.answers.learning.contrastive import Training, pairs_from_labels
from recollect.answers.learning.federated import (
    Federation,
    Shard,
    average,
    client_threshold,
    simulate,
    train_client,
)

DIM = 16


def shard(seed: int) -> Shard:
    """One client's pairs; the topics are common to all."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((6, DIM))
    labels = rng.integers(0, 6, 80)
    vectors = unit_rows(centres[labels] + rng.standard_normal((80, DIM)))
    size = 40 + 20 * seed  # clients of several sizes: the average must be weighted
    return Shard(
        pairs_from_labels(vectors, labels, size, seed), pairs_from_labels(vectors, labels, 40, 9)
    )


def main() -> None:
    """Raises AssertionError where the two differ."""
    shards = [shard(seed) for seed in range(3)]
    start = np.eye(DIM, 8, dtype=np.float32)
    federation = Federation(rounds=2, per_round=3, training=Training(epochs=2, batch=32))
    found = simulate(shards, start, federation)
    head = start
    for turn in (1, 2):
        trained = [train_client(head, one, federation.training, turn) for one in shards]
        head = average(trained, [one.training.size for one in shards])
    np.testing.assert_allclose(found.head, head, atol=1e-5)
    thresholds = [client_threshold(head, one) for one in shards]
    np.testing.assert_allclose(found.threshold, np.mean(thresholds), atol=1e-3)
    print("same as by hand")


if __name__ == "__main__":
    main()
