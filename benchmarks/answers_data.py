"""Queries with labels for the answers benchmarks, and their vectors, computed once.

The folder holds `banking77/` (CC BY 4.0, Casanueva et al. 2020), `clinc150/` (CC BY 3.0, Larson et
al. 2019), `meancache-contextual/` (MIT, Gill et al. 2024) and `gptcache-mock/` (MIT), each as its
authors publish it. Vectors are kept in runs/embeddings.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recollect.answers.encoders import Encoder

VECTORS = Path(__file__).resolve().parents[1] / "runs" / "embeddings"

# Same intent is not same answer here: the answer depends on a slot, on the time, or on the person.
VOLATILE = (
    "weather",
    "calculator",
    "translate",
    "exchange_rate",
    "flight_status",
    "balance",
    "time",
    "date",
    "transactions",
    "distance",
    "measurement_conversion",
    "definition",
)


@dataclass(frozen=True)
class Queries:
    """Texts, unit vectors (N, D) of them, the intent of each, and which answer is right (N,).

    Two queries may share an answer when their `answer` is equal.
    """

    texts: list[str]
    vectors: np.ndarray
    intents: np.ndarray
    answer: np.ndarray

    def take(self, rows: np.ndarray) -> Queries:
        """The queries of these rows, in this order."""
        texts = [self.texts[row] for row in rows]
        return Queries(texts, self.vectors[rows], self.intents[rows], self.answer[rows])


def vectors_of(texts: Sequence[str], encoder: Encoder) -> np.ndarray:
    """Unit vectors (N, D), read from disk where they were computed before."""
    digest = hashlib.sha256(encoder.encoder_id.encode())
    for text in texts:
        digest.update(b"\0" + text.encode())
    path = VECTORS / f"{digest.hexdigest()[:24]}.npy"
    if path.exists():
        return np.load(path)
    VECTORS.mkdir(parents=True, exist_ok=True)
    vectors = encoder.encode(texts)
    np.save(path, vectors)
    return vectors


def banking77(folder: Path, split: str, encoder: Encoder) -> Queries:
    """Customers' questions to a bank; same intent, same answer. Splits: train, test."""
    with (folder / "banking77" / f"{split}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    texts, intents = [row["text"] for row in rows], np.array([row["category"] for row in rows])
    answer = np.unique(intents, return_inverse=True)[1]
    return Queries(texts, vectors_of(texts, encoder), intents, answer)


def clinc150(folder: Path, splits: Sequence[str], encoder: Encoder) -> Queries:
    """Questions to an assistant. Volatile intents and out-of-scope queries share no answer."""
    data = json.loads((folder / "clinc150" / "data_full.json").read_text())
    rows = [row for split in splits for row in data[split]]
    vectors = [vectors_of([text for text, _ in data[split]], encoder) for split in splits]
    intents = np.array([intent for _, intent in rows])
    answer = np.unique(intents, return_inverse=True)[1]
    alone = np.isin(intents, [*VOLATILE, "oos"])
    answer = np.where(alone, -1 - np.arange(len(rows)), answer)
    return Queries([text for text, _ in rows], np.concatenate(vectors), intents, answer)


def clinc_domains(folder: Path) -> dict[str, str]:
    """Intent -> domain (ten of them); volatile intents and out-of-scope make up their own."""
    domains = json.loads((folder / "clinc150" / "domains.json").read_text())
    domain_of = {intent: name for name, intents in domains.items() for intent in intents}
    return domain_of | dict.fromkeys(VOLATILE, "volatile") | {"oos": "volatile"}


def dialogues(folder: Path) -> list[dict[str, str]]:
    """Two-turn dialogues of MeanCache, one for each first question."""
    rows = json.loads((folder / "meancache-contextual" / "new_claude.json").read_text())
    return list({row["u0"]: row for row in rows}.values())


def paraphrases(folder: Path) -> tuple[list[str], list[str]]:
    """GPTCache's own benchmark: statements and their paraphrases, in the same order."""
    rows = json.loads((folder / "gptcache-mock" / "mock_data.json").read_text())
    return [row["origin"] for row in rows], [row["similar"] for row in rows]
