"""Question: how many right answers do learned decisions save, at a bound on the wrong ones?

    python benchmarks/answers_semantic.py --data DATA --part bound      # delta of 1, 2 and 5%
    python benchmarks/answers_semantic.py --data DATA --part category   # Zipf stream of CLINC150
    python benchmarks/answers_semantic.py --data DATA --part chain      # MeanCache's dialogues
    python benchmarks/answers_semantic.py --data DATA --part head       # bound, trained vectors
    python benchmarks/answers_semantic.py --data DATA --part width      # PCA and a trained head

DATA holds banking77/, clinc150/ and meancache-contextual/ as their authors publish them. Streams
are drawn from test splits, five seeds; whatever is trained or calibrated sees train splits only.
The static baseline may choose its threshold in hindsight, on the stream itself. All use
all-MiniLM-L6-v2, whose vectors are computed once into runs/embeddings. Results go to
benchmarks/results/answers_semantic_PART.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from answers_data import (  # noqa: E402
    Queries,
    banking77,
    clinc150,
    clinc_domains,
    dialogues,
    vectors_of,
)
from answers_replay import Outcome, best_static, replay, static_outcomes  # noqa: E402
from recollect.answers.decision import Candidate, Context, Verdict  # noqa: E402
from recollect.answers.decisions import (  # noqa: E402
    Centroids,
    Chain,
    PerCategory,
    Pooled,
    Verified,
)
from recollect.answers.decisions.category import CategoryRule  # noqa: E402
from recollect.answers.encoders import Encoder, fit_pca, make_encoder, unit_rows  # noqa: E402
from recollect.answers.learning.calibrate import category_thresholds  # noqa: E402
from recollect.answers.learning.contrastive import (  # noqa: E402
    Training,
    head_projection,
    pairs_from_labels,
    train_head,
)

DELTAS = (0.01, 0.02, 0.05)
SEEDS = range(5)
LENGTH = 3000


def projected(queries: Queries, projection: object) -> Queries:
    """The same queries with other vectors."""
    vectors = projection.apply(queries.vectors)
    return Queries(queries.texts, vectors, queries.intents, queries.answer)


def trained_head(train: Queries, encoder_id: str, pairs: int = 6000) -> object:
    """A head trained on pairs of the train split with MeanCache's two objectives."""
    examples = pairs_from_labels(train.vectors, train.answer, pairs, seed=0)
    start = np.eye(train.vectors.shape[1], dtype=np.float32)
    return head_projection(train_head(start, examples, Training(epochs=3)), encoder_id)


def stream(queries: Queries, seed: int) -> Queries:
    """LENGTH queries in an order of their own."""
    return queries.take(np.random.default_rng(seed).permutation(len(queries.texts))[:LENGTH])


def summary(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """Means over seeds, and each seed's share of wrong hits."""
    return {
        "hits": float(np.mean([o.hit_rate for o in outcomes])),
        "wrong_of_hits": float(np.mean([o.wrong_hits for o in outcomes])),
        "wrong_of_hits_by_seed": [round(o.wrong_hits, 4) for o in outcomes],
        "wrong_of_requests": float(np.mean([o.wrong_requests for o in outcomes])),
    }


def bound(data: Path, encoder: Encoder) -> list[dict[str, object]]:
    """Wrong hits against the promised delta, hits against the best threshold in hindsight."""
    tests = {
        "banking77": banking77(data, "test", encoder),
        "clinc150": clinc150(data, ["test", "oos_test"], encoder),
    }
    rows = []
    for name, test in tests.items():
        rows += bounded(name, [stream(test, seed) for seed in SEEDS])
    return rows


def head(data: Path, encoder: Encoder) -> list[dict[str, object]]:
    """The same with vectors of a head trained on Banking77's train split, 4,000 of its texts."""
    train = banking77(data, "train", encoder)
    few = train.take(np.random.default_rng(0).permutation(len(train.texts))[:4000])
    projection = trained_head(few, encoder.encoder_id)
    test = banking77(data, "test", encoder)
    streams = [projected(stream(test, seed), projection) for seed in SEEDS]
    return bounded("banking77, trained head", streams)


def bounded(name: str, streams: Sequence[Queries]) -> list[dict[str, object]]:
    """One row a policy and delta. vCache promises a share of requests, pooled of hits."""
    plain = [static_outcomes(queries) for queries in streams]
    rows = []
    for delta in DELTAS:
        makers = {
            "pooled": ("hits", lambda seed, delta=delta: Pooled(delta, seed=seed)),
            "vcache": ("requests", lambda seed, delta=delta: Verified(delta, seed)),
        }
        for policy, (per, make) in makers.items():
            static = [best_static(outcomes, delta, per) for outcomes in plain]
            ours = [replay(make(seed).build(), one) for seed, one in enumerate(streams)]
            most = sum(outcome.hits for outcome in static)
            times = sum(outcome.hits for outcome in ours) / most if most else None
            for kind, outcomes in ((f"best static per {per}", static), (policy, ours)):
                row = {"data": name, "delta": delta, "policy": kind, **summary(outcomes)}
                rows.append(row | {"times_best_static": times if kind == policy else 1.0})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def category(data: Path, encoder: Encoder) -> list[dict[str, object]]:
    """Thresholds by category against one for all, on intents of Zipf popularity."""
    domain_of = clinc_domains(data)
    calibration = clinc150(data, ["val", "oos_val"], encoder)
    examples = clinc150(data, ["train"], encoder)
    test = clinc150(data, ["test", "oos_test"], encoder)
    topics = np.unique(examples.intents)
    means = np.array([examples.vectors[examples.intents == t].mean(0) for t in topics])
    classifier = Centroids(
        unit_rows(means), tuple(domain_of[t] for t in topics), encoder.encoder_id, 0.4, 0.005
    )

    def classified(queries: Queries) -> list[str]:
        return [classifier.classify("", vector) for vector in queries.vectors]

    rows = []
    right_category = np.mean(
        [a == domain_of[i] for a, i in zip(classified(test), test.intents, strict=True)]
    )
    print(f"category found for {right_category:.1%} of the queries")
    for wrong in (0.01, 0.02, 0.05):
        rules = calibrated_rules(calibration, classified(calibration), wrong)
        pairs = []
        for seed in SEEDS:
            queries = zipf_stream(test, seed)
            policy = PerCategory(rules)
            ours = replay(policy, queries, classified(queries))
            theirs = best_with_errors(static_outcomes(queries), ours.wrong)
            pairs.append((ours, theirs))
        ours, theirs = ([p[k] for p in pairs] for k in (0, 1))
        gain = sum(o.hits for o in ours) / max(1, sum(o.hits for o in theirs)) - 1
        for name, outcomes in (("per category", ours), ("best single threshold", theirs)):
            row = {"data": "clinc150, Zipf", "calibrated_for": wrong, "policy": name}
            rows.append(row | summary(outcomes) | {"gain": gain})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def calibrated_rules(queries: Queries, names: list[str], wrong: float) -> dict[str, CategoryRule]:
    """Thresholds from the calibration split: nearest other query of the same category."""
    observations = {}
    labels = np.array(names)
    for name in sorted(set(names) - {"", "volatile"}):
        rows = np.flatnonzero(labels == name)
        similar = queries.vectors[rows] @ queries.vectors[rows].T
        np.fill_diagonal(similar, -1)
        nearest = similar.argmax(1)
        right = queries.answer[rows][nearest] == queries.answer[rows]
        observations[name] = (similar.max(1).tolist(), right.tolist())
    chosen = category_thresholds(observations, wrong)
    rules = {name: CategoryRule(min(1.0, value), floor=-1) for name, value in chosen.items()}
    return rules | {"volatile": CategoryRule(cacheable=False)}


def zipf_stream(queries: Queries, seed: int, exponent: float = 1.0) -> Queries:
    """Intents by Zipf's law, a text of each at random; texts may come again, as in traffic.

    A repeated text of a volatile intent still needs an answer of its own.
    """
    rng = np.random.default_rng(seed)
    intents = rng.permutation(np.unique(queries.intents))
    chances = 1 / np.arange(1, len(intents) + 1) ** exponent
    drawn = rng.choice(intents, LENGTH, p=chances / chances.sum())
    rows = np.array([rng.choice(np.flatnonzero(queries.intents == one)) for one in drawn])
    taken = queries.take(rows)
    alone = taken.answer < 0
    answer = np.where(alone, -1 - np.arange(LENGTH), taken.answer)
    return Queries(taken.texts, taken.vectors, taken.intents, answer)


def best_with_errors(outcomes: dict[float, Outcome], wrong: int) -> Outcome:
    """The single threshold with most hits and at most as many wrong ones."""
    allowed = [outcome for outcome in outcomes.values() if outcome.wrong <= wrong]
    nothing = Outcome(LENGTH, 0, 0)
    return max(allowed, key=lambda outcome: outcome.hits, default=nothing)


def chain(data: Path, encoder: Encoder) -> list[dict[str, object]]:
    """Follow-ups with and without the chain: hits under the right parent, refusals under others."""
    rows = []
    talks = dialogues(data)
    parts = ("u0", "u0_duplicate", "u1", "u1_duplicate")
    vectors = {part: vectors_of([talk[part] for talk in talks], encoder) for part in parts}
    first = np.arange(len(talks))  # entry ids: first turns, then follow-ups
    stored = np.concatenate([vectors["u0"], vectors["u1"]])
    parents = [None] * len(talks) + first.tolist()
    rng = np.random.default_rng(0)
    others = [int(rng.choice(np.delete(first, at))) for at in first]
    asked = {
        "first turn": [(vectors["u0_duplicate"][at], None, at) for at in first],
        "follow-up": [(vectors["u1_duplicate"][at], at, len(talks) + at) for at in first]
        + [(vectors["u1_duplicate"][at], others[at], None) for at in first],
    }
    for threshold, chained, turn in product((0.5, 0.6, 0.7, 0.8), (True, False), asked):
        decision = Chain(threshold, reach=0.0, follow_ups=chained).build()
        right = wrong = 0
        for vector, parent, target in asked[turn]:
            cosines = stored @ vector
            near = [
                Candidate(int(at), float(cosines[at]), "", parents[at], 0.0, 9e9, "", "live")
                for at in np.argsort(-cosines)[:8]
            ]
            found = decision.decide(near, Context("", conversation_parent=parent))
            hit = found.entry_id if found.verdict is Verdict.HIT else None
            right += int(hit is not None and hit == target)
            wrong += int(hit is not None and hit != target)
        row = {"threshold": threshold, "chain": chained, "turn": turn, "hits": right + wrong}
        precision, recall = right / max(1, right + wrong), right / len(talks)
        rows.append(row | {"precision": precision, "recall": recall})
    return rows


def width(data: Path, encoder: Encoder) -> list[dict[str, object]]:
    """What narrower vectors cost: hits of the best threshold at 5% wrong, and bytes."""
    train, test = banking77(data, "train", encoder), banking77(data, "test", encoder)
    few = train.take(np.random.default_rng(0).permutation(len(train.texts))[:4000])
    trained = trained_head(few, encoder.encoder_id)
    rows = []
    for dim in (384, 128, 64, 32):
        for name, source, queries in (
            ("pca", train, test),
            ("head + pca", projected(train, trained), projected(test, trained)),
        ):
            pca = fit_pca(source.vectors, dim, encoder.encoder_id)
            streams = [projected(stream(queries, seed), pca) for seed in SEEDS]
            outcomes = [best_static(static_outcomes(one), 0.05) for one in streams]
            rows.append({"vectors": name, "width": dim, "bytes": 4 * dim, **summary(outcomes)})
            print(json.dumps(rows[-1]), flush=True)
    return rows


PARTS = {"bound": bound, "head": head, "category": category, "chain": chain, "width": width}


def show(part: str, rows: list[dict[str, object]]) -> None:
    """The rows as a table; lists stay in the JSON."""
    columns = [name for name, value in rows[0].items() if not isinstance(value, list)]
    table = Table(*columns, title=f"answers: {part}")
    for row in rows:
        cells = [row[name] for name in columns]
        table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells))
    Console(width=150).print(table)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--part", choices=PARTS, required=True)
    arguments = parser.parse_args()
    encoder = make_encoder("minilm")
    wall, cpu = time.perf_counter(), time.process_time()
    rows = PARTS[arguments.part](arguments.data, encoder)
    show(arguments.part, rows)
    report = {
        "encoder": encoder.encoder_id,
        "rows": rows,
        "wall_seconds": round(time.perf_counter() - wall, 1),
        "processor_seconds": round(time.process_time() - cpu, 1),
    }
    path = HERE / "results" / f"answers_semantic_{arguments.part}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {path.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
