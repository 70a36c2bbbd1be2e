"""Question: how much of a slow load hides behind the model's own computing, layer by layer?

    python benchmarks/store_streamed.py
    python benchmarks/store_streamed.py --tokens 2048 --rounds 9

A random Llama (12 layers, width 256, float32) continues prompts of which all full chunks of 512
tokens lie on a tier behind a link, about three quarters. The link sleeps, so that it needs no
processor, and is as fast as to bring the prefix in half, just, or twice the time that the model
needs for the rest. Time to the first token of stock `generate` through `recollect.prefix_cache`:
`whole`, where entries come before the model starts, and `streamed`, where layer k + 1 comes while
layer k is computed. If loading and computing hid each other perfectly, the time would be the larger
of the two; the hidden share is how much of the smaller one did not show. Wall-clock time, medians
of rounds that take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

import recollect
from recollect.store import Store
from recollect.store.admission import Admission, AdmissionPolicy
from recollect.store.tiers.base import Lease
from recollect.store.tiers.host import HostTier
from recollect.store.tiers.partial import PartialLease

CHUNK, TAIL, LATENCY = 512, 500, 1e-3


class SleepingTier(HostTier):
    """Memory behind a link of `speed` bytes per second that sleeps."""

    def __init__(self, by_ranges: bool) -> None:
        super().__init__(1 << 30, name="link")
        self.speed, self.by_ranges, self.slept = float("inf"), by_ranges, 0.0

    def get(self, key: bytes) -> Lease | None:
        lease = super().get(key)
        if lease is not None:
            self._sleep(lease.nbytes)
        return lease

    def open(self, key: bytes) -> Lease | None:
        if not self.by_ranges:
            return self.get(key)
        lease = super().get(key)
        if lease is None:
            return None

        def read(start: int, stop: int) -> memoryview:
            self._sleep(stop - start)
            return lease.data[start:stop]

        return PartialLease(lease.nbytes, read)

    def _sleep(self, nbytes: int) -> None:
        seconds = nbytes / self.speed + (LATENCY if self.speed != float("inf") else 0)
        self.slept += seconds
        time.sleep(seconds)


def random_model(tokens: int) -> LlamaForCausalLM:
    """12 layers of width 256."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=256, intermediate_size=704, num_hidden_layers=12,
        num_attention_heads=4, num_key_value_heads=4, head_dim=64,
        max_position_embeddings=tokens + 8, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def first_token(model: Any, ids: torch.Tensor) -> tuple[float, int]:
    """Seconds, and the token."""
    began = time.perf_counter()
    out = model.generate(ids, max_new_tokens=1, do_sample=False, pad_token_id=0)
    return time.perf_counter() - began, int(out[0, -1])


def measure(tokens: int, ratios: list[float], rounds: int) -> list[dict[str, Any]]:
    """One row for each ratio of loading to computing."""
    prefix = max(1, round((tokens - TAIL) / CHUNK)) * CHUNK
    model = random_model(prefix + TAIL)
    ids = torch.randint(2, 1000, (1, prefix + TAIL), generator=torch.Generator().manual_seed(0))
    plain, answer = first_token(model, ids)
    always = Admission(AdmissionPolicy(mode="always"))
    tiers = {"whole": SleepingTier(False), "streamed": SleepingTier(True)}
    stores = {n: Store(tiers=[t], chunk=CHUNK, admission=always) for n, t in tiers.items()}
    for store in stores.values():
        with recollect.prefix_cache(model, store) as prefixes:
            prefixes.remember(ids[:, :prefix])

    def run(name: str) -> float:
        with recollect.prefix_cache(model, stores[name]) as prefixes:
            seconds, token = first_token(model, ids)
            assert (prefixes.report.matched, token) == (prefix, answer)
        return seconds

    run("whole")
    computing = statistics.median(run("whole") for _ in range(rounds))
    rows = []
    for ratio in ratios:
        nbytes = tiers["whole"].stat().bytes
        for tier in tiers.values():
            tier.speed = nbytes / (ratio * computing)
        times: dict[str, list[float]] = {"whole": [], "streamed": [], "computing": []}
        links: dict[str, list[float]] = {"whole": [], "streamed": []}
        for _ in range(rounds):
            for name, tier in tiers.items():
                before = tier.slept
                times[name].append(run(name))
                links[name].append(tier.slept - before)
            speed, tiers["whole"].speed = tiers["whole"].speed, float("inf")
            times["computing"].append(run("whole"))
            tiers["whole"].speed = speed
        row = {name: statistics.median(t) for name, t in times.items()}
        row |= {f"{name}_link": statistics.median(t) for name, t in links.items()}
        hidden = row["computing"] + row["streamed_link"] - row["streamed"]
        row |= {
            "ratio": ratio,
            "never": plain,
            "ideal": max(row["computing"], row["streamed_link"]),
            "hidden_share": hidden / min(row["computing"], row["streamed_link"]),
        }
        rows.append(row)
    for store in stores.values():
        store.close()
    return rows


def main() -> None:
    """Command line."""
    about = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    about.add_argument("--tokens", type=int, default=2048)
    about.add_argument("--ratios", type=float, nargs="+", default=[0.5, 1.0, 2.0])
    about.add_argument("--rounds", type=int, default=5)
    given = about.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = measure(given.tokens, given.ratios, given.rounds)
    table = Table(title=f"milliseconds to the first token, {given.tokens} tokens", box=None)
    names = ("computing", "streamed_link", "whole", "streamed", "ideal")
    for heading in ("computing", "link", "whole", "streamed", "the larger", "hidden"):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [f"{1e3 * row[name]:.0f}" for name in names]
        table.add_row(*cells, f"{row['hidden_share']:.0%}")
    Console().print(table)
    results = {
        "machine": platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "load_average": [round(x, 1) for x in os.getloadavg()],
        "tokens": given.tokens,
        "rows": rows,
    }
    target = Path(__file__).resolve().parent / "results" / "store_streamed.json"
    target.write_text(json.dumps(results, indent=1) + "\n")
    print(target.name)


if __name__ == "__main__":
    main()
