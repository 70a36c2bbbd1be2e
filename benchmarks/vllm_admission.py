"""Question: what does the connector's admission cost and save on a trace, if costs are known?

    python benchmarks/vllm_admission.py --trace conversation_trace.jsonl.gz

Requests of a Mooncake trace, one after the other, each of its blocks one chunk, go through the real
planner with the real admission. The workers are played: a forward, a load and a save take what this
table says per chunk, and are reported back like by real workers, with noise. Nothing is evicted. So
it is known how long the trace takes without a store, with one that always moves everything, and
with measured admission, on any machine and without an engine; `vllm_trace.py` has the engines.
Results go to benchmarks/results/vllm_admission.json.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console
from rich.table import Table

from recollect.store.costs import pairs
from recollect.vllm.identity import ChunkKeys
from recollect.vllm.messages import Forward, Measured, Report
from recollect.vllm.planner import Planner, Policy
from recollect.vllm.presence import Presence
from recollect.vllm.worth import Always
from recollect.vllm.worth import Measured as ByMeasure
from vllm_trace import read_trace

CHUNK, NBYTES = 32, 512 << 10
# Milliseconds. A chunk of 32 tokens takes a processor about 10 ms on the random model of width 512;
# 0.5 ms is a save into warm memory, 2 ms one into memory never used before, 8 ms a slow machine's.
START, PER_TOKEN, PER_PAIR = 1.0, 0.3, 2e-5
READS = (0.3, 8.0, 20.0)
WRITES = (0.5, 2.0, 8.0)


def run(trace: list[list[int]], worth: Always | None, read: float, write: float) -> dict[str, Any]:
    """Seconds of all requests, the share of tokens that was loaded, and chunks saved."""
    keys = ChunkKeys("m", namespace="n", salt="", chunk=CHUNK, hashed=CHUNK)
    planner = Planner(Policy(chunk=CHUNK, block=CHUNK), keys, Presence(None), worth=worth)
    forwards, transfers = random.Random(0), random.Random(1)  # forwards are alike in every way
    spent, loaded, tokens, saved = 0.0, 0, 0, 0

    def noisy(milliseconds: float, draw: random.Random = transfers) -> float:
        return milliseconds / 1e3 * draw.lognormvariate(0, 0.1)

    for number, blocks in enumerate(trace):
        length = len(blocks) * CHUNK
        request = SimpleNamespace(
            request_id=str(number), num_tokens=length, num_prompt_tokens=length,
            num_computed_tokens=0, kv_transfer_params=None,
            block_hashes=[block.to_bytes(8, "big") for block in blocks],
        )  # fmt: skip
        table = list(range(len(blocks)))
        planner.arrived(request)
        external, _ = planner.matched(request, 0)
        planner.allocated(request, table, external or 0)
        request.num_computed_tokens = external or 0
        new = length - request.num_computed_tokens
        orders = planner.orders({request.request_id: new}, lambda _, table=table: table)
        parts = [part for load in orders.loads for part in load.parts]
        reads = [Measured("host", NBYTES, noisy(read)) for _ in parts]
        writes = [Measured("", NBYTES, noisy(write)) for _ in orders.saves]
        work = pairs(new, request.num_computed_tokens)
        forward = Forward(new, work, noisy(START + PER_TOKEN * new + PER_PAIR * work, forwards))
        planner.reported(Report(reads=reads, writes=writes, forwards=[forward]))
        planner.finished(request)
        spent += sum(x.seconds for x in (*reads, *writes, forward))
        loaded, tokens = loaded + len(parts) * CHUNK, tokens + length
        saved += len(writes)
    return {"seconds": spent, "loaded_share": loaded / tokens, "saved": saved}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, required=True, help="a Mooncake trace, .jsonl.gz")
    parser.add_argument(
        "--windows", type=int, nargs="+", default=[60, 1000], help="so many first requests"
    )
    given = parser.parse_args()
    trace = read_trace(given.trace)
    rows = []
    for count in given.windows:
        name, part = f"first {count:,}", trace[:count]
        never = run(part, Always(1 << 62), 0.0, 0.0)["seconds"]
        for read in READS:
            for write in WRITES:
                ways = {
                    "always": run(part, Always(), read, write),
                    "measured": run(part, ByMeasure(nbytes=NBYTES, chunk=CHUNK), read, write),
                }
                row: dict[str, Any] = {"requests": name, "read_ms": read, "write_ms": write}
                for way, found in ways.items():
                    row[way] = found["seconds"] / never
                    row |= {f"{way}_{what}": found[what] for what in ("loaded_share", "saved")}
                rows.append(row)
    table = Table(title="time of all requests against no store", box=None)
    heads = ("requests", "ms per load", "ms per save", "always", "measured", "hits", "measured",
             "saves", "measured")  # fmt: skip
    for head in heads:
        table.add_column(head, justify="right")
    for row in rows:
        shares = [f"{row[f'{way}_loaded_share']:.0%}" for way in ("always", "measured")]
        saves = [f"{row[f'{way}_saved']:,}" for way in ("always", "measured")]
        table.add_row(
            row["requests"], f"{row['read_ms']:g}", f"{row['write_ms']:g}",
            f"{row['always']:.3f}", f"{row['measured']:.3f}", *shares, *saves,
        )  # fmt: skip
    Console(width=110).print(table)
    target = Path(__file__).resolve().parent / "results/vllm_admission.json"
    about = {"trace": given.trace.name, "chunk_ms": PER_TOKEN * CHUNK, "rows": rows}
    target.write_text(json.dumps(about, indent=1) + "\n")
    print(f"worst: {max(row['measured'] for row in rows):.3f}; {target.name}")


if __name__ == "__main__":
    main()
