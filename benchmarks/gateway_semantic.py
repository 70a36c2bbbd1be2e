"""Question: what does the semantic tier add to a request through the gateway, its encoder apart?

    python benchmarks/gateway_semantic.py                       # MiniLM, memory
    python benchmarks/gateway_semantic.py --requests 500 --encoder ngram

An upstream that answers at once, the gateway and this client are processes on loopback. In turns:
the upstream itself, a question never asked before (it is encoded, searched for, and stored), the
same again (an exact hit, which needs no encoder) and the same in slightly other words (a semantic
hit). The encoder is timed by itself in this process, in the same turns. What a miss adds is the
difference of the medians. Results go to benchmarks/results/gateway_semantic.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gateway_latency import Client, Process, quantiles

HERE = Path(__file__).resolve().parent
NAMES = ("direct", "encoder", "miss", "exact hit", "semantic hit")
WORDS = (
    "password", "invoice", "alarm", "router", "garden", "printer", "camera", "boiler",
    "window", "engine", "guitar", "passport", "bread", "river", "mountain", "ticket",
    "doctor", "piano", "bicycle", "planet", "lemon", "castle", "wallet", "battery",
    "mirror",
)  # fmt: skip


def measure(requests: int, encoder_name: str) -> dict[str, Any]:
    """Milliseconds of every kind of request."""
    from recollect.answers.encoders import make_encoder

    encoder = make_encoder(encoder_name)
    calls = multiprocessing.Value("i", 0)
    upstream = Process("upstream", delay=(0.0, 0.0), calls=calls)
    arguments = {"encoder": encoder_name, "min_similarity": 0.9}
    gateway = Process("gateway", upstream=upstream.url, recipe="gptcache", arguments=arguments)
    direct, through = Client(upstream.port), Client(gateway.port)
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    for number in range(-10, requests):
        text = f"How do I get my {' '.join(random.Random(number).sample(WORDS, 5))} back"
        seconds = {"direct": direct.ask_text(text)[0]}
        seconds["miss"], head = through.ask_text(text)
        if b"x-recollect-cache: miss" not in head:
            continue  # too much like an earlier one
        start = time.perf_counter()
        encoder.encode([text])
        seconds["encoder"] = time.perf_counter() - start
        while b"tier: exact" not in through.ask_text(text)[1]:
            time.sleep(0.002)  # it is stored just after it is delivered
        seconds["exact hit"] = through.ask_text(text)[0]
        seconds["semantic hit"], head = through.ask_text(f"{text}?")
        assert b"tier: semantic" in head, head
        if number >= 0:
            for name, value in seconds.items():
                found[name].append(value)
    gateway.stop()
    upstream.stop()
    result: dict[str, Any] = {name: quantiles(values) for name, values in found.items()}
    for name in ("miss", "semantic hit"):
        base = result["direct"]["p50"] if name == "miss" else 0.0
        result[name]["p50_without_encoder"] = result[name]["p50"] - base - result["encoder"]["p50"]
    return {**result, "counted": len(found["miss"])}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--encoder", default="minilm", help="minilm or ngram")
    given = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    found = measure(given.requests, given.encoder)
    table = Table("", "p50", "p95", title=f"milliseconds, encoder {given.encoder}")
    for name in NAMES:
        table.add_row(name, *(f"{found[name][q]:.2f}" for q in ("p50", "p95")))
    for name in ("miss", "semantic hit"):
        table.add_row(f"{name}, encoder apart", f"{found[name]['p50_without_encoder']:.2f}", "")
    Console().print(table)
    about = {
        "encoder": given.encoder,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "command": " ".join(["python benchmarks/gateway_semantic.py", *sys.argv[1:]]),
    }
    target = HERE / "results" / "gateway_semantic.json"
    target.write_text(json.dumps({"about": about, "milliseconds": found}, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
