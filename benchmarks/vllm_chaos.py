"""Question: can a store that drops, delays, corrupts, truncates, crashes or lies change the text?

    python benchmarks/vllm_chaos.py                    # 500 schedules, one engine with faults
    python benchmarks/vllm_chaos.py --schedules 50 --model wide
    python benchmarks/vllm_chaos.py --admission measured --out measured.json

One engine without a store says what the texts are; another, whose store misbehaves by seeded
schedules (`tests/vllm/faulty_store.py` lists the kinds), must say the same for every schedule, hold
no lease when it is done, and never die. All chunks are saved and loaded, unless `--admission` says
to do what pays, by measured cost. Needs `make vllm`. Results go to
benchmarks/results/vllm_chaos.json.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/vllm"))

from engine_client import Engine, connector, copy_zoo_model, make_wide_model  # noqa: E402
from faulty_store import KINDS  # noqa: E402

PROMPTS, CHUNK = 24, 64
MODELS = {"zoo": copy_zoo_model, "wide": make_wide_model}


def prompts() -> list[list[int]]:
    """Prompts of 70 to 400 tokens; every third begins like the one before."""
    draw, made = random.Random(0), []
    for n in range(PROMPTS):
        tokens = [draw.randrange(8, 2000) for _ in range(draw.randrange(70, 400))]
        made.append(made[-1][:CHUNK] + tokens if n % 3 == 2 else tokens)
    return made


def schedule(seed: int) -> tuple[dict[str, Any], list[int]]:
    """What goes wrong, how often, and which prompts are asked for meanwhile."""
    draw = random.Random(seed)
    kinds = draw.sample(KINDS, draw.randint(1, len(KINDS)))
    plan = {"seed": seed, "rate": draw.choice([0.1, 0.3, 0.6, 0.9]), "kinds": kinds}
    return plan, draw.sample(range(PROMPTS), draw.randint(1, 4))


def held(status: Path, seconds: float = 20.0) -> int:
    """Leases and reservations open, once what is in flight has ended."""
    end = time.monotonic() + seconds
    while True:
        told = json.loads(status.read_text())
        if (count := told["leases"] + told["writing"]) == 0 or time.monotonic() > end:
            return int(count)
        time.sleep(0.1)


def run(model: str, schedules: int, load: str, minutes: float, admission: str) -> dict[str, Any]:
    """All schedules on one engine, or as many as fit in the time."""
    found: Counter[str] = Counter(schedules=0, same=0, different=0, failed=0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        MODELS[model](folder / "model")
        asked = prompts()
        plain = Engine(folder / "model", None, max_model_len=1024).wait()
        truth = [plain.generate([one], tokens=4)[0]["tokens"] for one in asked]
        plain.close()
        control = folder / "plan.json"
        transfer = connector(
            load, path=str(folder / "store"), host="16MiB", chunk=CHUNK,
            admission=admission, store_factory="faulty_store:open_store",
        )  # fmt: skip
        engine = Engine(
            folder / "model", transfer, environment={"RECOLLECT_FAULTS": str(control)},
            max_model_len=1024,
        ).wait()  # fmt: skip
        try:
            end = time.monotonic() + 60 * minutes
            for seed in track(range(schedules), description="schedules"):
                if time.monotonic() > end:
                    break
                plan, chosen = schedule(seed)
                control.write_text(json.dumps(plan))
                before = found["different"]
                for _ in range(2):
                    answers = engine.generate([asked[n] for n in chosen], tokens=4)
                    engine.forget()
                    right = [a["tokens"] == truth[n] for a, n in zip(answers, chosen, strict=True)]
                    found["failed"] += sum(a["reason"] != "length" for a in answers)
                    found["different"] += right.count(False)
                    found["cached_tokens"] += sum(a["cached"] for a in answers)
                found["schedules"] += 1
                found["same"] += int(found["different"] == before)
            control.write_text(json.dumps({"seed": -1, "rate": 0.0, "kinds": []}))
            for one, want in zip(asked, truth, strict=True):
                found["different_after"] += engine.generate([one], tokens=4)[0]["tokens"] != want
            found["held"] = held(control.with_suffix(".status"))
            injected = json.loads(control.with_suffix(".status").read_text())["injected"]
            metrics = {k: v for k, v in engine.metrics().items() if "recollect" in k}
            deaths = int(engine.process.poll() is not None)
        finally:
            engine.close()
    about = {"model": model, "admission": admission}
    return {**found, "deaths": deaths, "injected": injected, "metrics": metrics, **about}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--schedules", type=int, default=500)
    parser.add_argument("--model", choices=sorted(MODELS), default="zoo")
    parser.add_argument("--load", choices=("auto", "sync", "async"), default="auto")
    parser.add_argument("--admission", choices=("always", "measured"), default="always")
    parser.add_argument("--minutes", type=float, default=60, help="stop after so many")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/vllm_chaos.json")
    arguments = parser.parse_args()
    result = run(
        arguments.model, arguments.schedules, arguments.load, arguments.minutes,
        arguments.admission,
    )  # fmt: skip
    table = Table("what", "count", title=f"{arguments.model}, load {arguments.load}", box=None)
    for name in ("schedules", "same", "different", "failed", "held", "deaths", "cached_tokens"):
        table.add_row(name, str(result[name]))
    told = {k: n for k, n in result["injected"].items() if k != "lie"}  # those are in lookups
    for name, count in told.items():
        table.add_row(f"injected: {name}", str(count))
    Console().print(table)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
