"""Question: how many lookups a second, and how long is one, against GPTCache on the same queries?

    python benchmarks/peers/make_env.py gptcache
    python benchmarks/answers_lookup.py --data DATA

Banking77: 5,000 questions of its train split are stored, 1,000 of its test split are asked, one
after the other on one thread. Both caches get the same vectors of all-MiniLM-L6-v2, computed
before, so that what is timed is the cache and not the encoder; both keep answers in a SQLite file
and serve at cosine 0.6, which is what GPTCache's default of 0.8 means. A hit is wrong when its
question has another intent. The index alone is timed at 5,000 and 50,000 entries. Results go to
benchmarks/results/answers_lookup.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE / "peers"))

from make_env import python_of  # noqa: E402

from answers_data import Queries, banking77  # noqa: E402
from recollect.answers import Answers  # noqa: E402
from recollect.answers.encoders import make_encoder  # noqa: E402
from recollect.answers.index import FlatIndex, VectorIndex  # noqa: E402
from recollect.answers.index.graph import GraphIndex  # noqa: E402

STORED, ASKED = 5000, 1000


class Known:
    """An encoder that looks its vectors up: both caches are timed without one."""

    def __init__(self, queries: Sequence[Queries], encoder_id: str) -> None:
        self.encoder_id = encoder_id
        self.dim = queries[0].vectors.shape[1]
        self._vectors = {t: v for q in queries for t, v in zip(q.texts, q.vectors, strict=True)}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors (B, D) of texts that are known."""
        return np.stack([self._vectors[text] for text in texts])


def request(text: str) -> dict[str, object]:
    """A chat request with nothing but the question."""
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


def ours(backend: str, stored: Queries, asked: Queries, encoder_id: str) -> dict[str, object]:
    """Times and answers of `Answers` with the recipe gptcache."""
    with Answers(backend, recipe="gptcache", encoder=Known([stored, asked], encoder_id)) as answers:
        for number, text in enumerate(stored.texts):
            reply = {"choices": [{"message": {"role": "assistant", "content": str(number)}}]}
            kept = answers.store(request(text), reply, scope_id="u")
            assert kept, kept.reason
        answers.wait()  # as FAISS is ready in GPTCache before it is asked
        found, times, cpu = [], [], time.process_time()
        for text in asked.texts:
            start = time.perf_counter()
            lookup = answers.lookup(request(text), scope_id="u")
            times.append(time.perf_counter() - start)
            found.append(lookup.document)
        cpu = time.process_time() - cpu
    replies = [d["choices"][0]["message"]["content"] if d else None for d in found]
    return {"processor_seconds": cpu, "times": times, "answers": replies}


def gptcache(stored: Queries, asked: Queries) -> dict[str, object]:
    """Times and answers of GPTCache, from its own environment."""
    python = python_of("gptcache")
    if not python.exists():
        sys.exit("GPTCache is missing: python benchmarks/peers/make_env.py gptcache")
    with tempfile.TemporaryDirectory() as folder:
        job, result = Path(folder) / "job.npz", Path(folder) / "result.json"
        np.savez(
            job,
            stored=np.array(stored.texts),
            stored_vectors=stored.vectors,
            asked=np.array(asked.texts),
            asked_vectors=asked.vectors,
        )
        command = [str(python), str(HERE / "peers" / "gptcache_worker.py"), str(job), str(result)]
        subprocess.run(command, check=True)
        return json.loads(result.read_text())


def row(name: str, run: dict[str, object], stored: Queries, asked: Queries) -> dict[str, object]:
    """What a run comes to: speed, hits, and wrong ones among them."""
    times = np.array(run["times"])
    hits = [(at, int(reply)) for at, reply in enumerate(run["answers"]) if reply is not None]
    wrong = sum(stored.answer[number] != asked.answer[at] for at, number in hits)
    return {
        "cache": name,
        "lookups_per_second": len(times) / times.sum(),
        "p50_ms": 1e3 * float(np.median(times)),
        "p99_ms": 1e3 * float(np.quantile(times, 0.99)),
        "processor_ms": 1e3 * run["processor_seconds"] / len(times),
        "hits": len(hits) / len(times),
        "wrong_of_hits": float(wrong / max(1, len(hits))),
    }


def index_rows(vectors: np.ndarray) -> list[dict[str, object]]:
    """One search for the eight nearest: exact at 5,000, graph at 50,000 entries."""
    rng = np.random.default_rng(0)
    rows = []
    for kind, count in ((FlatIndex, 5000), (GraphIndex, 50_000)):
        noise = 0.02 * rng.standard_normal((count, vectors.shape[1])).astype(np.float32)
        many = vectors[rng.integers(0, len(vectors), count)] + noise
        many /= np.linalg.norm(many, axis=1, keepdims=True)
        index = kind(vectors.shape[1], "timed")
        if isinstance(index, GraphIndex):
            index.extend(np.arange(count), many)
        else:
            for at, vector in enumerate(many):
                index.add(at, vector)
        asked = vectors[rng.integers(0, len(vectors), 1000)]
        times = [timed(index, vector) for vector in asked]
        found = np.mean([(many @ v).argmax() == index.search(v, 8)[0][0] for v in asked[:200]])
        rows.append(
            {
                "index": kind.__name__,
                "entries": count,
                "p50_ms": 1e3 * float(np.median(times)),
                "best_ms": 1e3 * min(times),
                "nearest_found": float(found),
            }
        )
    return rows


def timed(index: VectorIndex, vector: np.ndarray) -> float:
    """Seconds of one search."""
    start = time.perf_counter()
    index.search(vector, 8)
    return time.perf_counter() - start


def show(title: str, rows: list[dict[str, object]]) -> None:
    """Print rows as a table."""
    table = Table(*rows[0], title=title)
    for one in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in one.values()))
    Console(width=140).print(table)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    arguments = parser.parse_args()
    encoder = make_encoder("minilm")
    train = banking77(arguments.data, "train", encoder)
    test = banking77(arguments.data, "test", encoder)
    rng = np.random.default_rng(0)
    stored = train.take(rng.permutation(len(train.texts))[:STORED])
    asked = test.take(rng.permutation(len(test.texts))[:ASKED])
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            "GPTCache 0.1.44, SQLite + FAISS": gptcache(stored, asked),
            "recollect, SQLite": ours(
                f"sqlite:///{folder}/answers.db", stored, asked, encoder.encoder_id
            ),
            "recollect, memory": ours("memory", stored, asked, encoder.encoder_id),
        }
    rows = [row(name, run, stored, asked) for name, run in runs.items()]
    for one in rows:
        one["times_gptcache"] = one["lookups_per_second"] / rows[0]["lookups_per_second"]
    indices = index_rows(train.vectors)
    show("lookups, one thread", rows)
    show("index alone", indices)
    path = HERE / "results" / "answers_lookup.json"
    path.write_text(json.dumps({"lookups": rows, "indices": indices}, indent=1) + "\n")
    print(f"wrote {path.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
