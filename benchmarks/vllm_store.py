"""Question: what does the store cost a vLLM engine that hits nothing, and what does a hit save?

    python benchmarks/vllm_store.py                     # hooks and copies, in this process
    python benchmarks/vllm_store.py --engine            # and time to first token on an 8k hit
    python benchmarks/vllm_store.py --engine --lmcache  # and the same through LMCache's server

Engines need `make vllm`; LMCache `python scripts/make_vllm_env.py lmcache`. The engine's model is a
random Llama of four layers and width 512 in float32, 16 KiB of KV per token. Each figure is the
best of several. Results go to benchmarks/results/vllm_store.json; traces are in vllm_trace.py.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/vllm"))

from engine_client import Engine, connector, make_wide_model  # noqa: E402

from recollect.store import Store  # noqa: E402
from recollect.vllm.blocks import CpuVec  # noqa: E402
from recollect.vllm.identity import ChunkKeys  # noqa: E402
from recollect.vllm.messages import Forward, Load, Orders, Part, Report  # noqa: E402
from recollect.vllm.mover import LayerCache, Mover  # noqa: E402
from recollect.vllm.planner import Planner, Policy  # noqa: E402
from recollect.vllm.presence import Presence  # noqa: E402
from recollect.vllm.worth import Measured  # noqa: E402

BLOCK, CHUNK = 32, 256
FIRST = 12  # entries that a store holds
SHAPES = {
    "tiny-llama (4 layers, 4 heads of 32)": (4, 4, 32),
    "wide (4 layers, 8 of 64)": (4, 8, 64),
}
MOST_TOKENS = 8192


class Request:
    """A request as the planner sees it, in the middle of its decoding."""

    kv_transfer_params = None

    def __init__(self, name: str, tokens: int) -> None:
        self.request_id, self.num_tokens, self.num_prompt_tokens = name, tokens, tokens
        self.num_computed_tokens = 0
        draw = random.Random(name)
        self.block_hashes = [draw.randbytes(32) for _ in range(tokens // BLOCK)]


def hooks(requests: int = 64, tokens: int = 2048, steps: int = 300) -> dict[str, float]:
    """Microseconds per request-step of the scheduler's hooks at zero hits."""
    keys = ChunkKeys("m", namespace="n", salt="", chunk=CHUNK, hashed=BLOCK)
    worth = Measured(nbytes=CHUNK << 14, chunk=CHUNK)
    worth.heard(Report(forwards=[Forward(CHUNK, CHUNK**2 / 2, 0.05)] * 3))
    planner = Planner(Policy(chunk=CHUNK, block=BLOCK), keys, Presence(None), worth=worth)
    made = [Request(f"{n}", tokens) for n in range(requests)]
    table = list(range(tokens // BLOCK))

    def timed(work: Callable[[], object], per: int) -> float:
        started = time.perf_counter()
        work()
        return (time.perf_counter() - started) / per * 1e6

    def admit() -> None:
        for request in made:
            planner.arrived(request)
            planner.matched(request, 0)

    def decode() -> None:
        for _ in range(steps):
            planner.orders(scheduled, lambda _: table)

    admitted = min(timed(admit, requests) for _ in range(5))
    for request in made:
        request.num_computed_tokens = tokens
    scheduled = {request.request_id: 1 for request in made}
    planner.orders(scheduled, lambda _: table)  # this one orders the saves
    return {"admission": admitted, "step": min(timed(decode, requests * steps) for _ in range(5))}


def copies(layers: int, heads: int, width: int, repeats: int = 60) -> dict[str, float]:
    """Milliseconds to save and to fetch an entry of 256 tokens in float32.

    A store takes new memory for its first entries, which the kernel has to find and to clear; once
    it is full, entries take the place of others. Both are told.
    """
    codec, count = CpuVec(width, width), CHUNK // BLOCK
    caches = {
        str(n): LayerCache(torch.randn(4 * count, heads, BLOCK, 2 * width), codec)
        for n in range(layers)
    }
    store = Store(host=FIRST * (2 * layers * heads * width * 4 * CHUNK + 2**16))
    mover = Mover(store, caches, model="m", chunk=CHUNK, block=BLOCK)
    best: dict[str, float] = {}

    def note(name: str, started: float) -> None:
        best[name] = min(best.get(name, math.inf), (time.perf_counter() - started) * 1e3)

    draw = random.Random(0)
    for turn in range(repeats):
        ids = tuple(draw.sample(range(4 * count), count))
        key = turn.to_bytes(32, "big")
        started = time.perf_counter()
        mover.save(Orders(saves=[Part(key, ids)]))
        note("save, engine waits", started)
        wait(list(mover._saving.values()))
        note(f"save, until readable{', new memory' * (turn < FIRST)}", started)
        started = time.perf_counter()
        mover.start(Orders(loads=[Load("r", (Part(key, ids),))]))
        note("fetch", started)
        assert not mover.take_bad_blocks()
    mover.close()
    return best


def prompt(seed: object, length: int) -> list[int]:
    draw = random.Random(str(seed))
    return [draw.randrange(8, 2000) for _ in range(length)]


def start(model: Path, transfer: dict[str, Any] | None, python: Path | None = None) -> Engine:
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1"}
    return Engine(
        model, transfer, environment=settings, python=python, max_model_len=MOST_TOKENS + 256,
        max_num_batched_tokens=MOST_TOKENS + 256,
    ).wait()  # fmt: skip


def first_token(engine: Engine, repeats: int, tokens: int = MOST_TOKENS) -> dict[str, Any]:
    """Seconds to the first token of a prompt of 8k tokens, cold and as a hit."""
    cold, hit, cached, same = [], [], 0, True
    for turn in range(repeats):
        one = prompt(turn, tokens)
        (before,) = engine.generate([one], tokens=1)
        time.sleep(1.0)  # let it be written
        engine.forget()
        (after,) = engine.generate([one], tokens=1)
        cold.append(before["seconds"])
        hit.append(after["seconds"])
        cached, same = after["cached"], same and before["tokens"] == after["tokens"]
    return {"cold_s": min(cold), "hit_s": min(hit), "cached": cached, "same_text": same}


def lmcache_server(python: Path, port: int, chunk: int = CHUNK) -> subprocess.Popen[bytes]:
    """LMCache's server on this machine, as its documentation runs it."""
    command = [
        *(str(python.with_name("lmcache")), "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--l1-size-gb", "1", "--chunk-size", str(chunk), "--supported-transfer-mode", "auto"),
        *("--eviction-policy", "LRU"),
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env={**os.environ, "LMCACHE_TRACK_USAGE": "false"}, **quiet)


def lmcache_connector(port: int) -> dict[str, Any]:
    return {
        "kv_connector": "LMCacheMPConnector",
        "kv_connector_module_path": "lmcache.integration.vllm.lmcache_mp_connector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "lmcache.mp.host": "tcp://127.0.0.1",
            "lmcache.mp.port": port,
        },
    }


def engines(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that needs an engine."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        make_wide_model(model)
        ours = connector("auto", host="4GiB", chunk=CHUNK)
        choices: list[tuple[str, Any, Any]] = [("none", None, None), ("recollect", ours, None)]
        server = None
        if arguments.lmcache:
            python, port = ROOT / ".venvs/lmcache/bin/python", 6555
            server = lmcache_server(python, port)
            time.sleep(20)
            choices.append(("LMCache 0.5.6", lmcache_connector(port), python))
        try:
            for name, transfer, python in choices:
                engine = start(model, transfer, python)
                try:
                    found[name] = first_token(engine, arguments.repeats)
                finally:
                    engine.close()
        finally:
            if server is not None:
                server.terminate()
    return found


def show(results: dict[str, Any], console: Console) -> None:
    """One table for each part."""
    table = Table(title="in process, best of several", box=None)
    for name in ("what", "measured", "goal"):
        table.add_column(name)
    table.add_row("hooks, per request at admission", f"{results['hooks']['admission']:.1f} µs", "")
    table.add_row("hooks, per request-step", f"{results['hooks']['step']:.2f} µs", "< 50 µs")
    goals = {"save, until readable": "<= 4 ms", "fetch": "<= 2 ms"}
    for shape, figures in results["copies"].items():
        for name, value in figures.items():
            table.add_row(f"256 tokens, {shape}: {name}", f"{value:.2f} ms", goals.get(name, ""))
    console.print(table)
    if rows := results.get("engines"):
        columns = ("cold_s", "hit_s", "cached", "same_text")
        table = Table("store", *columns, title="time to first token, 8k tokens", box=None)
        for name, row in rows.items():
            table.add_row(name, *(_cell(row[column]) for column in columns))
        console.print(table)


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", action="store_true", help="start engines: 8k tokens")
    parser.add_argument("--lmcache", action="store_true", help="and LMCache beside us")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/vllm_store.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {
        "machine": f"{platform.processor() or platform.machine()}, {platform.system()}",
        "hooks": hooks(),
        "copies": {name: copies(*shape) for name, shape in SHAPES.items()},
    }
    if arguments.engine:
        results["engines"] = engines(arguments)
    elif arguments.out.exists():  # of an earlier run
        results["engines"] = json.loads(arguments.out.read_text()).get("engines")
    show(results, Console())
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
