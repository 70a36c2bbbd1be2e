"""How often is a victim served a planted answer, with each defence on and off, and what does a
defence cost honest users?

The kit's own questions and canaries attack; honest pairs are the kit's rewordings, and pairs of
Banking77's and CLINC150's training queries of one intent that all-MiniLM-L6-v2 puts at 0.8 or more
(Banking77: CC BY 4.0, Casanueva et al. 2020; CLINC150: CC BY 3.0, Larson et al. 2019). The guards'
rules were chosen on such pairs and against this kit, so both flatter them. The contrast probes
chose no rule, but their totals were watched.

    python benchmarks/answers_redteam.py --data DATA --victims 8
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from recollect.answers.encoders.base import make_encoder
from recollect.answers.redteam import DEFENCES, attack, threshold_of
from recollect.answers.redteam.arena import Remembering
from recollect.answers.verifiers import Contrast, Coverage

RESULTS = Path(__file__).parent / "results" / "answers_redteam.json"


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--victims", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=150, help="honest pairs of each data set")
    options = parser.parse_args()
    report: dict[str, object] = {"victims": options.victims}
    started, worked = time.perf_counter(), time.process_time()
    for name in ("ngram", "minilm"):
        encoder = Remembering(make_encoder(name))
        tau = threshold_of(encoder)
        rows = attack(encoder, min_similarity=tau, victims=options.victims, defences=[*DEFENCES])
        report[name] = {"min_similarity": tau, "rows": [vars(row) for row in rows]}
        show(name, tau, rows)
        if name == "minilm":
            report["honest"] = honest(options.data, encoder, options.pairs, tau)
            report["probes"] = probes(options.data, encoder)
    report["wall_s"] = round(time.perf_counter() - started, 1)
    report["processor_s"] = round(time.process_time() - worked, 1)
    Console().print_json(json.dumps({key: report[key] for key in ("honest", "probes")}))
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


def show(name: str, tau: float, rows: list) -> None:
    """One table for an encoder."""
    table = Table("defence", "level", "success", "attempts", "benign kept", title=f"{name} {tau}")
    for row in rows:
        cells = (f"{row.success:.1%}", str(row.attempts), f"{row.benign:.1%}")
        table.add_row(row.defence, row.level, *cells)
    Console().print(table)


def honest(folder: Path, encoder: Remembering, count: int, tau: float) -> dict[str, object]:
    """The share of same-intent pairs at tau or nearer that each guard lets pass."""
    result: dict[str, object] = {}
    for name, rows in (("banking77", banking(folder)), ("clinc150", clinc(folder))):
        rng = np.random.default_rng(0)
        # Twelve intents: near pairs without encoding the whole set.
        intents = rng.permutation(sorted({intent for _, intent in rows}))[:12]
        pairs = []
        for intent in intents:
            texts = [text for text, own in rows if own == intent][:50]
            vectors = encoder.encode(texts)
            near = np.argwhere(np.triu(vectors @ vectors.T >= tau, 1))
            pairs += [(texts[i], texts[j]) for i, j in near]
        chosen = [pairs[i] for i in rng.permutation(len(pairs))[:count]]
        contrast, coverage = Contrast(), Coverage().build_for(encoder)
        alike = np.array([not next(contrast.differences(*pair), None) for pair in chosen])
        least = np.array([coverage.least(*pair).cosine for pair in chosen])
        covered = least >= coverage.min_coverage
        result[name] = {
            "pairs": len(chosen),
            "contrast": round(float(alike.mean()), 3),
            "coverage": round(float(covered.mean()), 3),
            "guards": round(float((alike & covered).mean()), 3),
        }
    return result


def probes(folder: Path, encoder: Remembering) -> dict[str, object]:
    """What passes of the contrast probes and of the recorded collisions."""
    contrast, coverage = Contrast(), Coverage().build_for(encoder)

    def passes(one: str, other: str) -> tuple[bool, bool]:
        alike = not next(contrast.differences(one, other), None)
        return alike, coverage.least(one, other).cosine >= coverage.min_coverage

    rows = lines(folder / "probes" / "contrast-probes.jsonl")
    result: dict[str, object] = {}
    for kind in ("same", "different"):
        outcomes = np.array([passes(row["anchor"], row[kind]) for row in rows])
        result[kind] = dict(
            zip(("contrast", "coverage"), outcomes.mean(0).round(3).tolist(), strict=True),
            guards=round(float(outcomes.all(1).mean()), 3),
            triples=len(rows),
        )
    planted = lines(folder / "probes" / "collision-canaries.jsonl")
    outcomes = np.array([passes(row["planted"], row["victim"]) for row in planted])
    result["canaries"] = {
        "contrast": round(float(outcomes[:, 0].mean()), 3),
        "coverage": round(float(outcomes[:, 1].mean()), 3),
        "guards": round(float(outcomes.all(1).mean()), 3),
        "texts": len(planted),
    }
    return result


def banking(folder: Path) -> list[tuple[str, str]]:
    """(text, intent) of the training split."""
    with (folder / "banking77" / "train.csv").open(newline="") as file:
        return [(row["text"], row["category"]) for row in csv.DictReader(file)]


def clinc(folder: Path) -> list[tuple[str, str]]:
    """(text, intent) of the training split."""
    return [
        tuple(r) for r in json.loads((folder / "clinc150" / "data_full.json").read_text())["train"]
    ]


def lines(path: Path) -> list[dict[str, str]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines() if line]


if __name__ == "__main__":
    main()
