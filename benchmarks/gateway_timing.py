"""Question: does the time of an answer tell what others have asked?

    python benchmarks/gateway_timing.py                    # exact, semantic and examples
    python benchmarks/gateway_timing.py --probes 300 --encoder minilm

A victim asks; then an attacker, a caller of his own, asks what the victim asked (semantic: the same
in other words), and what nobody asked, in random order. AUC is the chance that he tells one from
the other by time: 0.5 is a guess, the goal at most 0.6. The upstream takes 20 to 30 ms; with
examples the small model takes that, the large one 50 to 60 ms. Upstream, gateway and client are
processes on loopback. The deviation is that of AUC when there is nothing to tell.
Results go to benchmarks/results/gateway_timing.json.
"""

from __future__ import annotations

import argparse
import json
import math
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

from gateway_latency import Client, Process, auc

HERE = Path(__file__).resolve().parent
THINGS = ("password", "invoice", "alarm", "router", "garden", "printer", "camera", "boiler")
VERBS = ("reset", "change", "move", "cancel", "repair", "order", "return", "clean")


def texts(number: int) -> tuple[str, str]:
    """A question, and the same in other words."""
    rng = random.Random(number)
    words = [f"{rng.choice(THINGS)}{rng.randrange(10**6)}" for _ in range(4)]
    about = f"{rng.choice(VERBS)} {' '.join(words)}"
    return f"how do I {about}?", f"how do I {about}, please?"


def probe(gateway: Process, probes: int, model: str, reworded: bool) -> float:
    """AUC of an attacker who probes what a victim asked and what nobody did."""
    victim, attacker = Client(gateway.port, "alice"), Client(gateway.port, "mallory")
    for number in range(probes):
        victim.ask_text(texts(number)[0], model="large" if model == "auto" else model)
    # In random order and with pauses, or the storing of what nobody asked would slow the next one.
    order = [number for known in (0, 10**6) for number in range(known, known + probes)]
    random.Random(0).shuffle(order)
    times: dict[bool, list[float]] = {True: [], False: []}
    for number in order:
        time.sleep(0.02)
        seconds, _ = attacker.ask_text(texts(number)[reworded], model=model)
        times[number < 10**6].append(seconds)
    return auc(times[True], times[False])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--probes", type=int, default=150)
    parser.add_argument("--encoder", default="ngram", help="ngram or minilm")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    given = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    calls = multiprocessing.Value("i", 0)
    small = Process("upstream", delay=(0.02, 0.03), calls=calls)
    large = Process("upstream", delay=(0.05, 0.06), calls=calls)
    semantic: dict[str, Any] = {"recipe": "gptcache", "arguments": {"encoder": given.encoder}}
    models = {"small": {"cost": 1}, "large": {"cost": 8, "strong": True}}
    routing: dict[str, Any] = {
        "examples": {"models": models, "encoder": given.encoder},
        "models": {"large": large.url},
    }
    shared, floor = {"scope": "global"}, {"scope": "global", "floor": True}
    cases: list[tuple[str, dict[str, Any], str, bool]] = [
        ("exact, shared, no floor", shared, "m", False),
        ("exact, shared, floor", floor, "m", False),
        ("exact, scope user", {}, "m", False),
        ("semantic, shared, no floor", {**semantic, **shared}, "m", True),
        ("semantic, shared, floor", {**semantic, **floor}, "m", True),
        ("semantic, scope user", semantic, "m", True),
        ("examples, shared", {**routing, **shared}, "auto", True),
        ("examples, scope user", routing, "auto", True),
    ]
    told: dict[str, float] = {}
    for name, settings, model, reworded in cases:
        if given.only not in name:
            continue
        gateway = Process("gateway", upstream=small.url, **settings)
        told[name] = probe(gateway, given.probes, model, reworded)
        gateway.stop()
    small.stop()
    large.stop()
    error = math.sqrt((2 * given.probes + 1) / (12 * given.probes**2))
    table = Table("", "AUC", title=f"what timing tells; {error:.3f} is the deviation of a guess")
    for name, value in told.items():
        table.add_row(name, f"{value:.3f}")
    Console().print(table)
    about = {
        "probes": given.probes,
        "encoder": given.encoder,
        "deviation_of_a_guess": error,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "command": " ".join(["python benchmarks/gateway_timing.py", *sys.argv[1:]]),
    }
    if given.only:
        return
    target = HERE / "results" / "gateway_timing.json"
    target.write_text(json.dumps({"about": about, "auc": told}, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
