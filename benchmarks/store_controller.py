"""Question: how often is a deadline missed, and at what quality, under the adaptive controller and
under the policy of CacheGen's released script, on links whose bandwidth changes?

    python benchmarks/store_controller.py
    python benchmarks/store_controller.py --requests 500 --chunks 12 --deadline 2

Both get the same chunks, traces, and timeline (transfer, decoding and recomputation overlap where
they can). The released policy is told the bandwidth of the moment, as in its script; the adaptive
one only sees what its last transfer showed. "avoidable" counts deadlines that the best assignment,
found by trying all of them with the whole trace known, meets. Quality is the mean worth of the
chosen levels over requests that were in time, 1 being the best level everywhere. Results go to
benchmarks/results/store_controller.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from recollect.store.streaming.controller import AdaptivePolicy, Chunk, ReleasedPolicy
from recollect.store.streaming.simulation import Trace, brute_force, run, value

HERE = Path(__file__).resolve().parent
MB = 1e6
SIZES = (5.0 * MB, 3.6 * MB, 2.9 * MB, 2.4 * MB)  # what the four levels are to each other
RELEASED_TEXT = 0.2  # seconds: what its script assumes for computing a chunk again


def steady(draw: np.random.Generator) -> Trace:
    return Trace((10 ** draw.uniform(6.5, 8.3),))


def independent(draw: np.random.Generator) -> Trace:
    return Trace(tuple(10 ** draw.uniform(6.0, 8.3, 200)), step=0.05)


def wandering(draw: np.random.Generator) -> Trace:
    walk = draw.uniform(6.3, 8.3) + np.cumsum(draw.normal(0, 0.12, 200))
    return Trace(tuple(10 ** np.clip(walk, 5.5, 8.5)), step=0.05)


def dropping(draw: np.random.Generator) -> Trace:
    level = 10 ** draw.uniform(7, 8)
    return Trace(tuple(level * np.where(draw.random(200) < 0.15, 0.05, 1)), step=0.1)


TRACES: dict[str, Callable[[np.random.Generator], Trace]] = {
    "steady": steady,
    "independent every 50 ms": independent,
    "random walk": wandering,
    "sudden drops": dropping,
}


def measure(kind: str, given: argparse.Namespace) -> dict[str, Any]:
    """One row: a kind of trace."""
    policies = {"adaptive": AdaptivePolicy(), "released": ReleasedPolicy(given.chunks)}
    chunk = Chunk(tuple(int(size) for size in SIZES), given.text_seconds, 0.005)
    chunks = [chunk] * given.chunks
    late = {name: np.zeros(given.requests, bool) for name in policies}
    worth = {name: np.zeros(given.requests) for name in policies}
    possible, best = np.ones(given.requests, bool), np.zeros(given.requests)
    seconds = 0.0
    for seed in range(given.requests):
        trace = TRACES[kind](np.random.default_rng(seed))
        for name, policy in policies.items():
            start = time.process_time()
            found = run(
                policy, chunks, given.deadline, trace,
                known=trace.at(0), oracle=name == "released",
            )  # fmt: skip
            seconds += (time.process_time() - start) * (name == "adaptive")
            late[name][seed] = found.finish > given.deadline
            worth[name][seed] = value(found.choices, len(SIZES))
        if given.chunks <= 6:
            ideal = brute_force(chunks, given.deadline, trace)
            possible[seed] = ideal.finish <= given.deadline
            best[seed] = value(ideal.choices, len(SIZES))
    both = ~late["adaptive"] & ~late["released"]
    return {
        "trace": kind,
        "requests": given.requests,
        "late_adaptive": int(late["adaptive"].sum()),
        "late_released": int(late["released"].sum()),
        "avoidable_adaptive": int((late["adaptive"] & possible).sum()),
        "avoidable_released": int((late["released"] & possible).sum()),
        "quality_adaptive": _mean(worth["adaptive"][~late["adaptive"]]),
        "quality_released": _mean(worth["released"][~late["released"]]),
        "quality_where_both_in_time": [_mean(worth[n][both]) for n in ("adaptive", "released")],
        "share_of_brute_force": (
            _mean(worth["adaptive"][~late["adaptive"]] / best[~late["adaptive"]])
            if given.chunks <= 6
            else None
        ),
        "ms_per_decision": 1e3 * seconds / given.requests / given.chunks,
    }


def _mean(x: np.ndarray) -> float | None:
    return float(x.mean()) if len(x) else None


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Print the table."""
    table = Table(title=title)
    for heading in ("trace", "late: ours", "released", "avoidable: ours", "released",
                    "quality: ours", "released", "of brute force", "ms per decision"):  # fmt: skip
        table.add_column(heading, justify="left" if heading == "trace" else "right")
    for row in rows:
        share = row["share_of_brute_force"]
        table.add_row(
            row["trace"], *(str(row[f"{what}_{who}"]) for what in ("late", "avoidable")
                            for who in ("adaptive", "released")),
            *("–" if q is None else f"{q:.2f}" for q in
              (row["quality_adaptive"], row["quality_released"])),
            "–" if share is None else f"{share:.3f}", f"{row['ms_per_decision']:.1f}",
        )  # fmt: skip
    Console(width=120).print(table)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=100, help="seeded traces of each kind")
    parser.add_argument("--chunks", type=int, default=6)
    parser.add_argument("--deadline", type=float, default=1.0, help="seconds")
    parser.add_argument("--text-seconds", type=float, default=RELEASED_TEXT)
    given = parser.parse_args()
    rows = [measure(kind, given) for kind in TRACES]
    show(rows, f"{given.requests} requests of {given.chunks} chunks, deadline {given.deadline:g} s")
    target = HERE / "results" / "store_controller.json"
    target.parent.mkdir(exist_ok=True)
    command = " ".join(["python benchmarks/store_controller.py", *sys.argv[1:]])
    about = {**vars(given), "sizes_mb": [size / MB for size in SIZES], "command": command}
    target.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
