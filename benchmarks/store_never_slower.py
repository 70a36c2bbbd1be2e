"""Question: does the store ever make a request slower than having no cache, however slow the tier?

    python benchmarks/store_never_slower.py                            # 16 cells, about 3 minutes
    python benchmarks/store_never_slower.py --speeds 10 --lengths 512  # one cell

A random Llama (4 layers, width 512, float32) prefills prompts whose chunks all lie on one tier that
is throttled to 1, 10, 100 or 1,000 MB/s. Time to first token three ways: `never` computes the whole
prompt, `always` loads all chunks, `measured` lets the admission decide from what it has seen: a
prefill of each length, and one request of each length before the clock runs. The three run in
turns, and a cell's figure is the median of the rounds.

A time is processor seconds plus the seconds that the link takes, which pass on a clock of their
own: on a busy machine wall-clock time measures the other programs. With --wall the link really
sleeps and the wall clock counts. Results go to benchmarks/results/store_never_slower.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from recollect.store.admission import Admission, AdmissionPolicy
from recollect.store.store import Store
from recollect.store.tiers.base import Lease
from recollect.store.tiers.objects import ObjectTier

LAYERS, HEADS, WIDTH, CHUNK = 4, 2, 64, 64
NBYTES = LAYERS * 2 * HEADS * CHUNK * WIDTH * 4
TAIL = 8  # tokens after the last chunk, always computed


class ThrottledTier(ObjectTier):
    """Memory behind a link of so many bytes per second, with half a millisecond of latency."""

    def __init__(self, speed: float, wall: bool) -> None:
        super().__init__("memory:///", name="throttled")
        self.speed, self.wall, self.waited = speed, wall, 0.0

    def clock(self) -> float:
        """Seconds, link included."""
        return time.perf_counter() if self.wall else time.process_time() + self.waited

    def get(self, key: bytes) -> Lease | None:
        lease = super().get(key)
        if lease is not None:
            seconds = 5e-4 + lease.nbytes / self.speed
            if self.wall:
                time.sleep(seconds)
            self.waited += seconds
        return lease


class Bench:
    """A model, prompts, and the three ways to the first token."""

    def __init__(self, lengths: list[int]) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=1024, hidden_size=512, intermediate_size=1408, num_hidden_layers=LAYERS,
            num_attention_heads=8, num_key_value_heads=HEADS, head_dim=WIDTH,
            max_position_embeddings=max(lengths) + TAIL,
        )  # fmt: skip
        self.model = LlamaForCausalLM(config).eval()
        self.prompts = {n: torch.randint(1024, (1, n + TAIL)) for n in lengths}

    @torch.inference_mode()
    def compute(self, length: int, cache: DynamicCache | None = None) -> DynamicCache:
        """The first token of a prompt whose head is in `cache`; the cache afterwards."""
        cache = cache or DynamicCache()
        ids = self.prompts[length][:, cache.get_seq_length() :]
        return self.model(ids, past_key_values=cache, logits_to_keep=1).past_key_values

    def fill(self, store: Store, length: int) -> None:
        """Put all chunks of a prompt."""
        cache = self.compute(length)
        for i, key in enumerate(self.keys(store, length)):
            span = slice(i * CHUNK, (i + 1) * CHUNK)
            parts = [torch.stack([x.keys[0, :, span], x.values[0, :, span]]) for x in cache.layers]
            store.put(key, torch.stack(parts).numpy().tobytes())
        store.flush()

    def keys(self, store: Store, length: int) -> list[bytes]:
        return store.chunk_keys("bench", self.prompts[length][0, :length].tolist(), CHUNK)

    def request(self, store: Store, length: int) -> tuple[float, int]:
        """(seconds to the first token, chunks loaded) with a store."""
        began = store.clock()
        keys = self.keys(store, length)
        leases = store.load(keys, length + TAIL, nbytes=NBYTES, chunk=CHUNK)
        cache = DynamicCache()
        if leases:
            chunks = np.stack([np.frombuffer(lease.data, np.float32) for lease in leases])
            kv = torch.from_numpy(chunks).view(len(leases), LAYERS, 2, HEADS, CHUNK, WIDTH)
            kv = kv.permute(1, 2, 3, 0, 4, 5).flatten(3, 4)  # layers, k/v, heads, tokens, width
            for layer in range(LAYERS):
                cache.update(kv[layer, 0][None], kv[layer, 1][None], layer)
        ready = store.clock()
        self.compute(length, cache)
        ended = store.clock()
        loaded = len(leases) * CHUNK
        store.admission.observe_prefill(length + TAIL - loaded, ended - ready, loaded)
        for lease in leases:
            lease.release()
        return ended - began, len(leases)

    def without(self, store: Store, length: int) -> float:
        """Seconds to the first token without a store."""
        began = store.clock()
        self.compute(length)
        return store.clock() - began


def measure(speed: float, lengths: list[int], rounds: int, wall: bool) -> list[dict[str, Any]]:
    """One row of cells: a speed in MB/s, all lengths."""
    bench = Bench(lengths)
    tier = ThrottledTier(speed * 1e6, wall)
    store = Store(tiers=[tier], chunk=CHUNK)
    always = Store(tiers=[tier], chunk=CHUNK, admission=Admission(AdmissionPolicy("always")))
    store.clock = always.clock = tier.clock
    for length in lengths:
        bench.fill(store, length)
        store.admission.observe_prefill(length + TAIL, bench.without(store, length))
    learning = {length: bench.request(store, length)[0] for length in lengths}
    cells = []
    for length in lengths:
        times: dict[str, list[float]] = {"never": [], "always": [], "measured": []}
        for _ in range(rounds):
            times["never"].append(bench.without(store, length))
            seconds, loaded = bench.request(store, length)
            times["measured"].append(seconds)
            times["always"].append(bench.request(always, length)[0])
        median = {way: statistics.median(t) for way, t in times.items()}
        best = min(median["never"], median["always"])
        cells.append({
            "megabytes_per_second": speed, "tokens": length, **median, "loaded_chunks": loaded,
            "first_request": learning[length],
            "ratio": median["measured"] / best,
        })  # fmt: skip
    store.close()
    return cells


def main() -> None:
    about = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    about.add_argument("--speeds", type=float, nargs="+", default=[1, 10, 100, 1000], help="MB/s")
    about.add_argument("--lengths", type=int, nargs="+", default=[64, 256, 1024, 4096])
    about.add_argument("--rounds", type=int, default=5)
    about.add_argument("--wall", action="store_true", help="really sleep; count wall-clock time")
    options = about.parse_args()
    torch.set_num_threads(1)
    cells = [
        cell
        for speed in options.speeds
        for cell in measure(speed, options.lengths, options.rounds, options.wall)
    ]
    table = Table(title="Seconds to the first token")
    for name in ("MB/s", "tokens", "never", "always", "measured", "chunks loaded", "÷ better"):
        table.add_column(name, justify="right")
    for c in cells:
        table.add_row(
            f"{c['megabytes_per_second']:g}", f"{c['tokens']:,}", f"{c['never']:.3f}",
            f"{c['always']:.3f}", f"{c['measured']:.3f}",
            f"{c['loaded_chunks']}", f"{c['ratio']:.2f}",
        )  # fmt: skip
    Console().print(table)
    machine = {
        "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__, "threads": 1, "rounds": options.rounds,
        "seconds": "wall" if options.wall else "processor and link",
    }  # fmt: skip
    out = Path(__file__).resolve().parent / "results" / "store_never_slower.json"
    out.write_text(json.dumps({"machine": machine, "cells": cells}, indent=1) + "\n")
    print(
        f"the worst cell took {max(c['ratio'] for c in cells):.2f} times the better way; {out.name}"
    )


if __name__ == "__main__":
    main()
