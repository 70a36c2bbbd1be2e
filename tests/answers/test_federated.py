"""Contrastive training and federated averaging: gradients, FedAvg's two oracles, Flower itself."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recollect.answers.encoders import unit_rows
from recollect.answers.learning.contrastive import (
    Pairs,
    Training,
    contrastive,
    head_projection,
    pairs_from_labels,
    ranking,
    train_head,
)
from recollect.answers.learning.federated import (
    Federation,
    Shard,
    average,
    client_threshold,
    server_app,
    simulate,
    train_client,
)
from recollect.errors import HostError, RecipeError

ROOT = Path(__file__).resolve().parents[2]
DIM = 12


def topics(seed, count=90):
    """Unit vectors whose topic is in the first four of twelve directions; the rest is noise."""
    centres = 2 * np.random.default_rng(7).standard_normal((5, 4))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, count)
    vectors = rng.standard_normal((count, DIM))
    vectors[:, :4] += centres[labels]
    return unit_rows(vectors), labels


def shard(seed):
    vectors, labels = topics(seed)
    return Shard(
        pairs_from_labels(vectors, labels, 80, seed), pairs_from_labels(vectors, labels, 60)
    )


@pytest.mark.parametrize("objective", [contrastive, ranking])
def test_gradients_equal_finite_differences(objective):
    vectors, labels = topics(0)
    pairs = pairs_from_labels(vectors, labels, 40)
    head = np.random.default_rng(1).standard_normal((DIM, 5))
    _, gradient = objective(head, pairs, Training())
    for at in [(0, 0), (3, 4), (11, 2)]:
        losses = []
        for step in (1e-5, -1e-5):
            moved = head.copy()
            moved[at] += step
            losses.append(objective(moved, pairs, Training())[0])
        assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(gradient[at], rel=1e-3, abs=1e-7)


def test_training_separates_topics_it_has_not_seen_pairs_of():
    (train, labels), (test, others) = topics(0, 300), topics(1, 200)
    head = train_head(np.eye(DIM), pairs_from_labels(train, labels, 400), Training(rate=0.01))

    def gap(vectors):
        cosines, same = vectors @ vectors.T, others[:, None] == others
        return cosines[same].mean() - cosines[~same].mean()

    projected = head_projection(head, "some-encoder").apply(test)
    assert gap(projected) > 1.2 * gap(test)


def test_pairs_are_half_of_one_label_and_never_a_text_with_itself():
    vectors, labels = topics(3)
    pairs = pairs_from_labels(vectors, labels, 50)
    assert pairs.same.sum() == 25
    assert not (pairs.first == pairs.second).all(1).any()


def test_pairs_need_labels_to_choose_from():
    with pytest.raises(RecipeError, match="two labels"):
        pairs_from_labels(np.eye(3), np.zeros(3), 4)
    with pytest.raises(RecipeError, match="a label with two texts"):
        pairs_from_labels(np.eye(3), np.arange(3), 4)


def test_averaging_one_client_is_plain_training():
    client, training = shard(0), Training(epochs=1)
    alone = train_client(np.eye(DIM), client, training, turn=3)
    np.testing.assert_array_equal(average([alone], [client.training.size]), alone)
    plain = train_head(np.eye(DIM), client.training, Training(epochs=1, seed=3))
    np.testing.assert_array_equal(alone, plain)


def test_averaging_equal_clients_is_the_arithmetic_mean_and_others_count_by_size():
    a, b = np.ones((2, 2)), np.full((2, 2), 4.0)
    np.testing.assert_allclose(average([a, b], [10, 10]), 2.5)
    np.testing.assert_allclose(average([a, b], [20, 10]), 2.0)


def test_a_client_chooses_the_threshold_that_separates_its_pairs():
    unit = np.eye(4)
    near = unit_rows(unit + 0.2)
    validation = Pairs(unit, np.stack([near[0], near[1], unit[0], unit[1]]), np.array([1, 1, 0, 0]))
    threshold = client_threshold(np.eye(4), Shard(validation, validation))
    assert 0 < threshold < unit[0] @ near[0]


def test_more_clients_a_round_than_there_are_is_refused():
    with pytest.raises(RecipeError, match="5 clients a round, but there are 2"):
        server_app(np.eye(2), 2, Federation(per_round=5), [])


def test_without_flower_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(HostError, match=r"pip install recollect\[federated\]"):
        simulate([shard(0)], np.eye(DIM), Federation(per_round=1))


def python_with_flower():
    """An interpreter that has Flower: this one, or that of benchmarks/peers/make_env.py."""
    for python in (Path(sys.executable), ROOT / ".venvs" / "flower" / "bin" / "python"):
        if python.exists():
            probe = "import importlib.util as u; raise SystemExit(u.find_spec('flwr') is None)"
            if subprocess.run([python, "-c", probe], check=False).returncode == 0:
                return python
    return None


@pytest.mark.slow
def test_flower_simulation_equals_averaging_by_hand():
    python = python_with_flower()
    if python is None:
        pytest.skip("Flower is not installed: python benchmarks/peers/make_env.py flower")
    script = ROOT / "tests" / "answers" / "flower_run.py"
    paths = os.pathsep.join([str(ROOT / "src"), str(script.parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"FLWR_TELEMETRY_ENABLED": "0"}
    done = subprocess.run(
        [python, script], capture_output=True, text=True, env=environment, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "same as by hand" in done.stdout
