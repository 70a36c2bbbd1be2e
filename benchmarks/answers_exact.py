"""Question: how long does an exact hit take in process, by backend, and against GPTCache?

    python benchmarks/peers/make_env.py gptcache
    python benchmarks/answers_exact.py
    python benchmarks/answers_exact.py --url redis://localhost --url postgresql://localhost/answers

Chat requests of two messages are stored, then asked for again in random order, one after the other
on one thread. A hit of ours is the whole of it: canonical JSON, both fingerprints, the keyed scope,
the entry with its checksum, the hit count, the audit log. GPTCache 0.1.44 matches the prompt alone,
in a map in memory. `processor` is processor time per hit of the asking process, which a busy
machine disturbs less than wall time. Also: seconds to import the room, and to open a store of that
size. Servers must be running and their stores disposable. Results go to
benchmarks/results/answers_exact.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))

from make_env import python_of  # noqa: E402

from recollect.answers import Answers  # noqa: E402

GOAL = 300.0  # microseconds at the median


def request(number: int) -> dict[str, Any]:
    """A chat request as applications send them."""
    system = "You are a helpful assistant of a bank. Answer briefly and politely."
    return {
        "model": "large-1",
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": f"How do I activate card number {number}?"},
        ],
        "temperature": 0.2,
        "max_tokens": 256,
    }


def response(number: int) -> dict[str, Any]:
    """Its answer: about one kilobyte."""
    message = {"role": "assistant", "content": f"Card {number} is activated in the app. " * 25}
    return {"id": f"chatcmpl-{number}", "choices": [{"finish_reason": "stop", "message": message}]}


def ours(url: str, entries: int, asked: list[int], ledger: str | None) -> dict[str, Any]:
    """Times of exact hits on one backend, in microseconds."""
    with Answers(url, ledger=ledger, secret=b"benchmark") as answers:
        for number in range(entries):
            while not answers.store(request(number), response(number), scope_id="user"):
                time.sleep(0.2)  # a server that was too slow for once is left alone for a while
    start = time.perf_counter()
    with Answers(url, ledger=ledger, secret=b"benchmark") as answers:
        opening = time.perf_counter() - start
        if url == "memory":
            for number in range(entries):
                answers.store(request(number), response(number), scope_id="user")
        requests = [request(number) for number in asked]
        times, late = [], 0
        cpu = time.process_time()
        for each in requests:
            start = time.perf_counter()
            lookup = answers.lookup(each, scope_id="user")
            times.append(time.perf_counter() - start)
            if not lookup.hit:  # only a server that missed the deadline is an excuse
                assert not url.startswith(("memory", "sqlite")), lookup.reason
                late += 1
                time.sleep(0.6)
        cpu = time.process_time() - cpu
    return {**summary(times, cpu), "opening_s": opening, "past_deadline": late}


def summary(times: list[float], cpu: float) -> dict[str, float]:
    """Microseconds per hit."""
    ordered = sorted(times)
    return {
        "p50_us": statistics.median(ordered) * 1e6,
        "p99_us": ordered[int(len(ordered) * 0.99)] * 1e6,
        "processor_us": cpu / len(ordered) * 1e6,
    }


def gptcache(entries: int, asked: list[int], folder: Path) -> dict[str, Any] | None:
    """The peer's times, or None where its environment is not made."""
    python = python_of("gptcache")
    if not python.exists():
        return None
    prompts = [request(number)["messages"][-1]["content"] for number in range(entries)]
    job = {"prompts": prompts, "asked": [prompts[number] for number in asked]}
    (folder / "job.json").write_text(json.dumps(job))
    worker = str(HERE / "peers" / "gptcache_exact_worker.py")
    command = [str(python), worker, str(folder / "job.json"), str(folder / "result.json")]
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
        return None
    result = json.loads((folder / "result.json").read_text())
    return summary(result["times"], result["processor_seconds"])


def import_seconds(runs: int = 5) -> tuple[float, float]:
    """Wall and processor seconds that importing the room adds to an interpreter, best of some."""
    code = (
        "import time; wall, cpu = time.perf_counter(), time.process_time(); "
        "import recollect.answers; "
        "print(time.perf_counter() - wall, time.process_time() - cpu)"
    )
    times = [
        tuple(map(float, subprocess.check_output([sys.executable, "-c", code], text=True).split()))
        for _ in range(runs)
    ]
    return min(wall for wall, _ in times), min(cpu for _, cpu in times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=2000, help="requests stored (2000)")
    parser.add_argument("--lookups", type=int, default=4000, help="requests asked (4000)")
    parser.add_argument("--url", action="append", default=[], help="a server's URL; repeatable")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    rng = random.Random(0)
    asked = [rng.randrange(arguments.entries) for _ in range(arguments.lookups)]
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for url in ["memory", f"sqlite:///{folder}/answers.db", *arguments.url]:
            ledger = None if url == "memory" else str(folder / "ledger")
            name = "redis" if url.startswith("unix") else url.partition(":")[0]
            rows[name] = ours(url, arguments.entries, asked, ledger)
        peer = gptcache(arguments.entries, asked, folder)
        if peer is not None:
            rows["GPTCache 0.1.44, exact match"] = peer
    wall, cpu = import_seconds()
    result = {
        "entries": arguments.entries,
        "lookups": arguments.lookups,
        "goal_p50_us": GOAL,
        "import_s": wall,
        "import_processor_s": cpu,
        "python": platform.python_version(),
        "rows": rows,
    }
    out = HERE / "results" / "answers_exact.json"
    out.write_text(json.dumps(result, indent=2) + "\n")
    if arguments.json:
        print(json.dumps(result))
        return
    table = Table(title=f"Exact hits in process, µs ({arguments.entries} entries)")
    for column in ("", "p50", "p99", "processor", "goal p50"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in rows.items():
        numbers = (f"{row[key]:.0f}" for key in ("p50_us", "p99_us", "processor_us"))
        table.add_row(name, *numbers, "" if name.startswith("GPT") else f"{GOAL:.0f}")
    console = Console()
    console.print(table)
    console.print(f"import: {wall * 1000:.0f} ms, {cpu * 1000:.0f} ms of the processor")


if __name__ == "__main__":
    main()
