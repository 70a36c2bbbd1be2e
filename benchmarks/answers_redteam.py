"""How often is a victim served a planted answer, with each defence on and off, and what does a
defence cost honest users?

`--set kit` attacks with the kit's questions and canaries, against which the word rules were
written; `--set independent` with the ones of answers_attacks.py, which chose nothing. Honest pairs
are queries of one intent that all-MiniLM-L6-v2 puts at 0.8 or nearer, from the test splits of
Banking77 (CC BY 4.0, Casanueva et al. 2020) and CLINC150 (CC BY 3.0, Larson et al. 2019), of
intents that trained and chose nothing. `--gradient N` searches suffixes with MiniLM's weights for
N victims; against `--encoder ngram` that is transfer.

    python benchmarks/answers_redteam.py --data DATA --victims 16 --defence none --defence guards
    python benchmarks/answers_redteam.py --data DATA --gradient 15 --defence none --defence guards
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from answers_attacks import independent_kit  # noqa: E402
from answers_splits import benign_pairs, corpora  # noqa: E402
from recollect.answers.encoders.base import make_encoder  # noqa: E402
from recollect.answers.redteam import (  # noqa: E402
    DEFENCES,
    GradientSearch,
    Kit,
    Row,
    attack,
    threshold_of,
)
from recollect.answers.redteam.arena import Remembering  # noqa: E402

RESULTS = HERE / "results" / "answers_redteam.json"


def main() -> None:
    """Run, print, and put the rows into the results beside those of other runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--set", choices=("kit", "independent"), default="independent")
    parser.add_argument("--encoder", choices=("minilm", "ngram"), default="minilm")
    parser.add_argument("--defence", choices=DEFENCES, action="append", help="may be repeated")
    parser.add_argument("--victims", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=100, help="honest pairs of each data set")
    parser.add_argument(
        "--gradient", type=int, default=0, help="victims of the gradient level only"
    )
    options = parser.parse_args()
    minilm = make_encoder("minilm")
    encoder = Remembering(minilm if options.encoder == "minilm" else make_encoder("ngram"))
    most = max(options.victims, options.gradient)
    kit = Kit() if options.set == "kit" else independent_kit(options.data, minilm, most)
    tau = threshold_of(encoder)
    honest = [
        pair
        for corpus in corpora(options.data, minilm, "test").values()
        for pair in benign_pairs(corpus, 0.8, options.pairs, 1, shared_only=True)
    ]
    levels: tuple[str, ...] = ("concatenation", "splice", "adaptive")
    victims, name = options.victims, f"{options.set}, {options.encoder} {tau}"
    if options.gradient:
        levels, victims = ("gradient",), options.gradient
        search = GradientSearch(tokens=12, steps=20, candidates=32)
        kit = replace(kit, search=search, instructions=kit.instructions[:2])
        name += ", gradient"
    started, worked = time.perf_counter(), time.process_time()
    rows = attack(
        encoder, min_similarity=tau, victims=victims, kit=kit, levels=levels,
        defences=options.defence or [*DEFENCES], benign=honest,
    )  # fmt: skip
    show(name, rows)
    report = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    report[name] = {
        "rows": [vars(row) for row in rows],
        "wall_s": round(time.perf_counter() - started, 1),
        "processor_s": round(time.process_time() - worked, 1),
        "busy": True,
    }
    if options.gradient:
        report[name]["search"] = vars(kit.search) | gradient_cosines(kit, minilm, victims)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


def gradient_cosines(kit: Kit, minilm: object, victims: int) -> dict[str, object]:
    """Cosine of instruction and victim before a suffix, for the record."""
    questions = [question for question, _ in kit.questions[:victims]]
    wishes = [forms[0] for forms in kit.instructions]
    cosines = minilm.encode(questions) @ minilm.encode(wishes).T  # type: ignore[attr-defined]
    return {"cosine_without_suffix": round(float(np.mean(cosines)), 3)}


def show(name: str, rows: list[Row]) -> None:
    """One table."""
    table = Table("defence", "level", "success", "attempts", "benign kept", title=name)
    for row in rows:
        cells = (f"{row.success:.1%}", str(row.attempts), f"{row.benign:.1%} of {row.benign_pairs}")
        table.add_row(row.defence, row.level, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
