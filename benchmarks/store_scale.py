"""Question: what does a store of a million entries cost in time, memory and at a restart?

    python benchmarks/store_scale.py                       # 10^3 to 10^6 entries, some minutes
    python benchmarks/store_scale.py --entries 1000 10000

For each number of entries, in a process of its own: the time to open a folder whose journal holds
that many entries; the memory of the tier's books (index, policy, checksums) and how much the
process grew; the time of a lookup (`contains` on a disk tier, which also looks whether another
process wrote), hits and misses at random, each timed alone, by wall time and (which other programs
disturb less) by processor time; and an eviction-free put and get of a small file on top. A restart
reads the journal only, so its entries need no bytes behind them here.
With --ghosts the policy's ghost queue is filled too: as much again leaves. Results:
benchmarks/results/store_scale.json and .svg.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from recollect.store.holdings import Holdings
from recollect.store.tiers.base import Facts
from recollect.store.tiers.disk import DiskTier
from recollect.store.tiers.journal import PUT, RECORD, Journal

RESULTS = Path(__file__).resolve().parent / "results"
ENTRY = 1 << 20  # bytes that the journal says each entry has
GOALS = {"lookup_p99_us": 50.0, "bytes_per_entry": 200.0}


def fill(folder: Path, entries: int) -> np.ndarray:
    """A folder with a journal of so many entries: their keys (N, 32)."""
    DiskTier(folder, 1 << 30).close()
    records = np.zeros(entries, RECORD)
    records["kind"], records["nbytes"], records["time"] = PUT, ENTRY, time.time()
    keys = np.random.default_rng(entries).integers(0, 256, (entries, 32), dtype=np.uint8)
    records["key"] = keys
    Journal(folder).replace(records)
    return keys


def resident() -> int:
    """Bytes of memory this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def microseconds(
    call: Any, arguments: list[bytes], clock: Any = time.perf_counter_ns
) -> np.ndarray:
    """Microseconds of each call, in ascending order."""
    times = []
    for argument in arguments:
        start = clock()
        call(argument)
        times.append(clock() - start)
    return np.sort(np.array(times)) / 1e3


def measure(folder: Path, entries: int, lookups: int) -> dict[str, Any]:
    """One row: everything about one size."""
    keys = fill(folder, entries)
    before = resident()
    wall, processor = time.perf_counter(), time.process_time()
    tier = DiskTier(folder, 2 * entries * ENTRY)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    assert tier.stat().entries == entries
    rng = random.Random(0)
    hits = [keys[rng.randrange(entries)].tobytes() for _ in range(lookups)]
    misses = [rng.randbytes(32) for _ in range(lookups)]
    found = microseconds(tier.contains, hits)
    absent = microseconds(tier.contains, misses)
    processor_us = [
        microseconds(tier.contains, some, time.thread_time_ns) for some in (hits, misses)
    ]
    small = [rng.randbytes(32) for _ in range(300)]
    put = microseconds(lambda key: tier.put(key, key), small)
    get = microseconds(lambda key: tier.get(key), small)

    def at(times: np.ndarray, share: float) -> float:
        return float(times[int(share * (len(times) - 1))])

    return {
        "entries": entries,
        "restart_s": wall,
        "restart_processor_s": processor,
        "bytes_per_entry": tier._books.memory() / entries,
        "grown_bytes_per_entry": (resident() - before) / entries,
        "lookup_p50_us": at(found, 0.5),
        "lookup_p99_us": max(at(found, 0.99), at(absent, 0.99)),
        "lookup_p99_processor_us": max(at(times, 0.99) for times in processor_us),
        "lookup_p999_us": max(at(found, 0.999), at(absent, 0.999)),
        "miss_p50_us": at(absent, 0.5),
        "put_p50_us": at(put, 0.5),
        "get_p50_us": at(get, 0.5),
    }


def with_ghosts(entries: int, policy: str) -> float:
    """Bytes per entry of full books after as many entries again have come and gone."""
    books = Holdings("bench", entries, replacement=policy)
    for number in range(2 * entries):
        claim = books.claim(number.to_bytes(32, "little"), 1, Facts())
        assert claim is not None
        books.admit(claim)
    return books.memory() / entries


def in_a_process(function: Any, *arguments: Any) -> Any:
    """Memory and caches of one measurement do not show in the next."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def plot(rows: list[dict[str, Any]]) -> str:
    """Three panels over the number of entries: lookup, memory, restart."""
    # imported late: the processes that measure do without it
    from recollect.evaluate.report.svg import Frame, Scale, picture, tag, text, x_axis, y_axis

    panels = [
        ("lookup, microseconds at the 99th percentile", "lookup_p99_us", 50.0, 50.0),
        ("memory of the books, bytes per entry", "bytes_per_entry", 200.0, 200.0),
        ("restart, seconds", "restart_s", max(row["restart_s"] for row in rows) * 1.1, None),
    ]
    low, high = rows[0]["entries"], rows[-1]["entries"]
    drawn = []
    for number, (title, name, top, goal) in enumerate(panels):
        left = 60 + 300 * number
        frame = Frame(left, 40, left + 220, 220)
        top = max([top, *(row[name] for row in rows)])
        x = Scale(low, high, frame.left, frame.right, log=True)
        y = Scale(0, top, frame.bottom, frame.top)
        points = " ".join(f"{x(row['entries']):.1f},{y(row[name]):.1f}" for row in rows)
        drawn += [
            text(frame.left, 24, title, class_="title"),
            y_axis(frame, y, [top * share for share in (0, 0.25, 0.5, 0.75, 1)], ".3g"),
            x_axis(frame, x, [row["entries"] for row in rows], ".0e"),
            tag("polyline", points=points, fill="none", stroke="#2563eb", stroke_width=2),
        ]
        drawn += [
            tag("circle", cx=x(row["entries"]), cy=y(row[name]), r=3, fill="#2563eb")
            for row in rows
        ]
        if goal is not None:
            drawn.append(
                tag(
                    "line",
                    x1=frame.left,
                    x2=frame.right,
                    y1=y(goal),
                    y2=y(goal),
                    stroke="#dc2626",
                    stroke_dasharray="4 3",
                )
            )
    style = tag(
        "style",
        "text{font:11px sans-serif;fill:#333}.title{font-weight:bold}"
        ".grid{stroke:#e5e5e5}.axis{stroke:#888}",
    )
    return picture(940, 260, "growth with the number of entries", style, *drawn)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(title="a disk tier by number of entries (goals: p99 <= 50 µs, <= 200 B)")
    headings = {
        "entries": "entries",
        "restart_s": "restart s",
        "bytes_per_entry": "books B/entry",
        "grown_bytes_per_entry": "process B/entry",
        "lookup_p50_us": "hit p50 µs",
        "miss_p50_us": "miss p50 µs",
        "lookup_p99_us": "p99 µs",
        "lookup_p99_processor_us": "p99 processor µs",
        "put_p50_us": "put µs",
        "get_p50_us": "get µs",
    }
    for heading in headings.values():
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [f"{row['entries']:,}", f"{row['restart_s']:.2f}"]
        table.add_row(*cells, *(f"{row[name]:.1f}" for name in list(headings)[2:]))
    Console(width=130).print(table)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6])
    parser.add_argument("--lookups", type=int, default=20_000)
    parser.add_argument("--ghosts", type=int, default=200_000, help="0 leaves that part out")
    given = parser.parse_args()
    rows = []
    for entries in sorted(given.entries):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(in_a_process(measure, Path(folder), entries, given.lookups))
    show(rows)
    policies = ("lru", "lfu", "s3fifo", "sieve", "gdsf", "ttl")
    ghosts = {name: with_ghosts(given.ghosts, name) for name in policies if given.ghosts}
    for policy, nbytes in ghosts.items():
        print(f"{policy}: {nbytes:.0f} bytes per entry after as many again have left")
    about = {
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "python": platform.python_version(),
        "goals": GOALS,
        "command": " ".join(["python benchmarks/store_scale.py", *sys.argv[1:]]),
    }
    RESULTS.mkdir(exist_ok=True)
    report = {"about": about, "rows": rows, "bytes_per_entry_full_of_ghosts": ghosts}
    (RESULTS / "store_scale.json").write_text(json.dumps(report, indent=1) + "\n")
    (RESULTS / "store_scale.svg").write_text(plot(rows) + "\n")
    print(RESULTS / "store_scale.json")


if __name__ == "__main__":
    main()
