"""Question: is a vLLM engine with a store ever slower than one without, and what do hits save it?

    python benchmarks/vllm_trace.py --trace conversation_trace.jsonl.gz
    python benchmarks/vllm_trace.py --trace conversation_trace.jsonl.gz --rounds 4 --lmcache

Two engines, one without a store and one with it, take turns with the same requests, round after
round (ABAB); every round has prompts of its own, so nothing is left of the one before. Requests are
those of a Mooncake trace, one after the other, where each block of 512 tokens becomes one of 32:
``low`` are the first of the trace, which share little; ``high`` the requests of conversations of at
least three turns. Engines forget their own prefix cache after every request. The model is a random
Llama of four layers and width 512 in float32. Every worker is bound to one processor: with more,
vLLM gives an engine with a connector another number of threads than one without.
Engines need `make vllm`; LMCache `python scripts/make_vllm_env.py lmcache`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vllm_store import (
    MOST_TOKENS,
    ROOT,
    Engine,
    connector,
    lmcache_connector,
    lmcache_server,
    make_wide_model,
    prompt,
)

TRACE_BLOCK = 32  # tokens that stand for one of Mooncake's blocks of 512
TURNS = 3
ONE_PROCESSOR = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "0"}
Request = list[int]  # numbers of blocks


def read_trace(path: Path) -> list[Request]:
    """Numbers of the blocks of every request, cut to what the model takes."""
    with gzip.open(path, "rt") as lines:
        return [json.loads(line)["hash_ids"][: MOST_TOKENS // TRACE_BLOCK] for line in lines]


def conversations(requests: list[Request], count: int) -> list[Request]:
    """The requests of the first conversations of at least `TURNS` turns, in order of time."""
    found: dict[int, list[int]] = defaultdict(list)  # by the block behind the common first one
    for at, blocks in enumerate(requests):
        if len(blocks) > 1:
            found[blocks[1]].append(at)
    long = [turns for turns in found.values() if len(turns) >= TURNS]
    return [requests[at] for at in sorted(at for turns in long[:count] for at in turns)]


def possible(requests: list[Request]) -> float:
    """Share of tokens that a store without limits can supply."""
    seen: set[int] = set()
    hits = 0
    for blocks in requests:
        hits += next((n for n, block in enumerate(blocks) if block not in seen), len(blocks))
        seen.update(blocks)
    return hits / sum(map(len, requests))


def processor_seconds(engine: Engine) -> float:
    """Of the process that computes; the others wait in a loop, which costs as much as it lasts."""
    ticks, parents = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                name, rest = (folder / "stat").read_text().rsplit(")", 1)
            except OSError:  # it ended
                continue
            fields = rest.split()
            parents[int(folder.name)] = int(fields[1])
            if "Worker" in name:
                ticks[int(folder.name)] = int(fields[11]) + int(fields[12])

    def ours(process: int) -> bool:
        while process > 1 and process != engine.process.pid:
            process = parents.get(process, 0)
        return process == engine.process.pid

    return sum(n for process, n in ticks.items() if ours(process)) / os.sysconf("SC_CLK_TCK")


def replay(engine: Engine, requests: list[Request], seed: object) -> dict[str, float]:
    """Seconds to the first token, summed over requests; what came from a cache; processor time."""
    seconds, cached, tokens = 0.0, 0, 0
    before = processor_seconds(engine)
    for blocks in requests:
        asked = [token for block in blocks for token in prompt((seed, block), TRACE_BLOCK)]
        (answer,) = engine.generate([asked], tokens=1)
        seconds += answer["seconds"]
        cached, tokens = cached + answer["cached"], tokens + len(asked)
        engine.forget()
    time.sleep(0.5)  # what is still being written belongs to this run
    return {
        "seconds": seconds,
        "processor_s": processor_seconds(engine) - before,
        "cached_share": cached / tokens,
    }


def measure(
    arguments: argparse.Namespace, console: Console, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Every engine's runs for both kinds of load; `keep` is told after every round."""
    trace = read_trace(arguments.trace)
    loads = {
        "low": trace[: arguments.requests],
        "high": conversations(trace, arguments.conversations),
    }
    found: dict[str, Any] = {
        kind: {"requests": len(load), "possible_share": possible(load), "runs": []}
        for kind, load in loads.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        make_wide_model(Path(folder))
        store = {"host": "4GiB", "chunk": arguments.chunk, **json.loads(arguments.settings)}
        choices: dict[str, Any] = {"none": (None, None), "recollect": (connector(**store), None)}
        server = None
        if arguments.lmcache:
            python, port = ROOT / ".venvs/lmcache/bin/python", 6557
            server = lmcache_server(python, port, arguments.chunk)
            time.sleep(20)
            choices["LMCache 0.5.6"] = lmcache_connector(port), python
        engines = {
            name: Engine(
                Path(folder), transfer, environment=ONE_PROCESSOR, python=python,
                max_model_len=MOST_TOKENS + 256, max_num_batched_tokens=MOST_TOKENS + 256,
            )
            for name, (transfer, python) in choices.items()
        }  # fmt: skip
        try:
            for name, engine in engines.items():
                replay(engine.wait(), loads["low"][:15], "warm")
                console.print(f"{name} is ready")
            for turn in range(arguments.rounds):
                for kind, load in loads.items():
                    # Not always the same one first: the machine's other work comes and goes.
                    engines = dict(reversed(engines.items()))
                    run = {name: replay(e, load, (kind, turn)) for name, e in engines.items()}
                    found[kind]["runs"].append(run)
                    for name, figures in run.items():
                        console.print(
                            turn, kind, name, {n: round(x, 2) for n, x in figures.items()}
                        )
                for kind in loads:
                    found[kind]["ratio"] = ratios(found[kind]["runs"])
                keep(found)
        finally:
            for engine in engines.values():
                engine.stop()
            for engine in engines.values():
                engine.close()
            if server is not None:
                server.terminate()
    return found


def ratios(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Totals of an engine against those of the one without a store: over all rounds, and of each
    round the median and the worst."""
    found = {}
    for name in [name for name in runs[0] if name != "none"]:
        each = [run[name]["seconds"] / run["none"]["seconds"] for run in runs]
        sums = {
            what: sum(run[name][what] for run in runs) / sum(run["none"][what] for run in runs)
            for what in ("seconds", "processor_s")
        }
        found[name] = {
            "seconds": sums["seconds"], "processor": sums["processor_s"],
            "median": statistics.median(each), "worst": max(each),
        }  # fmt: skip
    return found


def show(results: dict[str, Any], console: Console) -> None:
    """One row for each engine and load."""
    names = ("load", "store", "hits", "possible", "time", "median", "worst", "processor time")
    table = Table(*names, title="against the engine without a store, totals of a run", box=None)
    for kind in ("low", "high"):
        for name, ratio in results[kind]["ratio"].items():
            runs = [run[name] for run in results[kind]["runs"]]
            cells = [statistics.mean(run["cached_share"] for run in runs)]
            cells += [results[kind]["possible_share"], *(ratio[n] for n in ("seconds", "median"))]
            cells += [ratio["worst"], ratio["processor"]]
            table.add_row(kind, name, *(f"{cell:.2f}" for cell in cells))
    console.print(table)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, required=True, help="a Mooncake trace, .jsonl.gz")
    parser.add_argument("--requests", type=int, default=50, help="of the load with few hits")
    parser.add_argument("--conversations", type=int, default=12, help="of the load with many")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunk", type=int, default=32, help="tokens per entry")
    parser.add_argument("--settings", default="{}", help="more of the connector's, as JSON")
    parser.add_argument("--lmcache", action="store_true", help="and LMCache's server beside us")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/vllm_trace.json")
    arguments = parser.parse_args()
    console = Console()
    about = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors",
        "trace": arguments.trace.name, "chunk": arguments.chunk,
        "load_average": [round(x, 1) for x in os.getloadavg()],
    }  # fmt: skip

    def keep(results: dict[str, Any]) -> None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(about | results, indent=2) + "\n")

    show(measure(arguments, console, keep), console)


if __name__ == "__main__":
    main()
