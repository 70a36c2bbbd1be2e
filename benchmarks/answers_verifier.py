"""Does a small trained pair verifier stop wrong answers and let right ones pass?

    python benchmarks/answers_verifier.py --data DATA --train      # minutes on one core
    python benchmarks/answers_verifier.py --data DATA              # measure the packaged model

DATA holds banking77/, clinc150/, gptcache-mock/ and probes/. Trained on pairs of 80% of the intents
of Banking77 (CC BY 4.0, Casanueva et al. 2020) and CLINC150 (CC BY 3.0, Larson et al. 2019), on
GPTCache's paraphrases (MIT) and on made-up questions. Each network leaves out a fifth of these
intents; the threshold was chosen by what networks accept there and of words and frames held out.
Reported on the test splits of the other 20% and on the contrast probes, which neither trained nor
chose anything.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from answers_splits import (  # noqa: E402
    benign_pairs,
    corpora,
    fold_of,
    part_of,
    reworded,
    wrong_pairs,
)
from recollect.answers.encoders.base import make_encoder  # noqa: E402
from recollect.answers.encoders.minilm import MiniLMEncoder  # noqa: E402
from recollect.answers.learning.pair_examples import (  # noqa: E402
    Corpus,
    Mixture,
    PairExample,
    make_examples,
)
from recollect.answers.learning.pair_training import (  # noqa: E402
    PairTraining,
    prepare,
    train_pairs,
)
from recollect.answers.verifiers import Contrast, Pair  # noqa: E402
from recollect.answers.verifiers.pair import PACKAGED  # noqa: E402

if TYPE_CHECKING:
    from recollect.answers.verifiers.pair_model import PairModel

RESULTS = HERE / "results" / "answers_verifier.json"
THRESHOLD = 0.25  # chosen on the held-out intents and words
MEMBERS = 3  # networks; each leaves out its own fold of the intents
CHOICES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
PAIRS = 600  # of each set of a data set
TAU = 0.8


def train(data: Path, encoder: MiniLMEncoder, path: Path) -> None:
    """Train and write the model; say what each member accepts of the intents it has not seen."""
    import torch

    from recollect.answers.verifiers.pair_model import PairModel, PairShape

    torch.manual_seed(0)
    found = [*corpora(data, encoder, "chosen").values(), reworded(data, encoder)]
    examples = make_examples(found, Mixture(), seed=0)
    folds = [{fold_of(intent) for intent in pair.intents} for pair in examples]
    seen = np.array([[member not in own for own in folds] for member in range(MEMBERS)])
    model = PairModel(encoder, PairShape(members=MEMBERS), THRESHOLD)
    with Progress(console=Console(stderr=True)) as bar:
        bar.console.print(f"reading the texts of {len(examples):,} pairs")
        prepared = prepare(model, examples)
        task = bar.add_task("training", total=None)

        def show(step: int, steps: int, loss: float) -> None:
            bar.update(task, completed=step, total=steps, description=f"loss {loss:.3f}")

        train_pairs(model, examples, PairTraining(), prepared, show, seen)
    path.parent.mkdir(exist_ok=True)
    model.save(path)
    unseen(model, found)


def unseen(model: PairModel, found: list[Corpus]) -> None:
    """What members accept of pairs of intents, words and frames they did not learn from."""
    chances: dict[str, list[float]] = defaultdict(list)
    for fold, member in enumerate(model.alone()):
        held = [part_of(corpus, fold) for corpus in found]
        pairs = make_examples(held, Mixture().scaled(0.03), seed=1, part="held")
        for corpus in held[:2]:
            near = benign_pairs(corpus, TAU, PAIRS, 0, shared_only=True)
            pairs += [PairExample(*pair, same=True, kind="benign") for pair in near]
        for pair, chance in zip(pairs, member.probabilities([p[:2] for p in pairs]), strict=True):
            chances[pair.kind].append(chance)
    table = Table("accepted from", *map(str, CHOICES), "pairs", title="unseen intents and words")
    for kind, values in sorted(chances.items()):
        shares = (np.mean(np.array(values) >= least) for least in CHOICES)
        table.add_row(kind, *(f"{share:.1%}" for share in shares), str(len(values)))
    Console(width=120).print(table)


def measure(data: Path, encoder: MiniLMEncoder, path: Path) -> dict[str, object]:
    """What each verifier accepts, by set of pairs; at the model's own threshold."""
    sets: dict[str, list[tuple[str, str]]] = {}
    for name, corpus in corpora(data, encoder, "test").items():
        sets[f"benign {name}"] = benign_pairs(corpus, TAU, PAIRS, 0, shared_only=True)
        sets[f"wrong {name}"] = wrong_pairs(corpus, TAU, PAIRS, 0)
        sets[f"same intent {name}"] = benign_pairs(corpus, TAU, PAIRS, 1, shared_only=False)
    probes = [
        json.loads(line)
        for line in (data / "probes" / "contrast-probes.jsonl").read_text().splitlines()
    ]
    for label in ("same", "different"):
        sets[f"probes {label}"] = [(row["anchor"], row[label]) for row in probes]
    planted = (data / "probes" / "collision-canaries.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in planted]
    sets["canaries"] = [(row["victim"], row["planted"]) for row in rows]
    sets = {key: found for key, found in sets.items() if found}
    guard, contrast = Pair(str(path)).build_for(encoder), Contrast()
    pairs = [pair for found in sets.values() for pair in found]
    chances = np.array(guard.model.probabilities(pairs))  # texts of like length read together
    parts = np.split(chances, np.cumsum([len(found) for found in sets.values()])[:-1])
    accepted = {
        "pair": {
            key: found >= guard.min_probability for key, found in zip(sets, parts, strict=True)
        },
        "contrast": {
            key: np.array([not next(contrast.differences(*pair), None) for pair in found])
            for key, found in sets.items()
        },
    }
    accepted["both"] = {key: accepted["pair"][key] & accepted["contrast"][key] for key in sets}
    report: dict[str, object] = {
        name: {
            key: {"pairs": len(rows), "accepted": round(float(rows.mean()), 4)}
            for key, rows in found.items()
        }
        for name, found in accepted.items()
    }
    started = time.process_time()
    for one, other in pairs[:20]:
        guard.model.probability(one, other)
    each = (time.process_time() - started) / 20
    report["pair, processor ms of a check of unread texts"] = round(each * 1e3, 2)
    by_kind: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for label in ("same", "different"):
        for row, found in zip(probes, accepted["pair"][f"probes {label}"], strict=True):
            by_kind[row["kind"]][label].append(bool(found))
    report["pair, probes by kind"] = {
        kind: {"triples": len(found["same"])}
        | {label: round(float(np.mean(found[label])), 3) for label in ("same", "different")}
        for kind, found in sorted(by_kind.items())
    }
    return report


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--train", action="store_true", help="train a model")
    parser.add_argument("--model", type=Path, default=PACKAGED, help="file to write or to measure")
    options = parser.parse_args()
    encoder = make_encoder("minilm")
    assert isinstance(encoder, MiniLMEncoder)
    started, worked = time.perf_counter(), time.process_time()
    if options.train:
        train(options.data, encoder, options.model)
        print(f"{time.process_time() - worked:.0f} s of the processor")
        return
    report = measure(options.data, encoder, options.model)
    report["wall_s"] = round(time.perf_counter() - started, 1)
    report["processor_s"] = round(time.process_time() - worked, 1)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    sets = [key for key in report["pair"] if isinstance(report["pair"][key], dict)]  # type: ignore[index, attr-defined]
    table = Table("accepted", *sets)
    for name in ("pair", "contrast", "both"):
        table.add_row(name, *(f"{report[name][key]['accepted']:.1%}" for key in sets))  # type: ignore[index]
    Console(width=170).print(table)
    Console().print_json(json.dumps(report["pair, probes by kind"]))


if __name__ == "__main__":
    main()
