"""Question: how much of the copy and read bandwidth does the store leave, and does a kill tear it?

    python benchmarks/store_tiers.py
    python benchmarks/store_tiers.py --megabytes 1 --kill-writes 1000
    python benchmarks/store_tiers.py --trace cloudphysics_io.csv.gz --expected expected_misses.json

One entry is the keys and values of 256 tokens: 4 layers of width 512 in float32, 4 MiB. Each figure
is the median of many puts and gets, beside a plain copy into as much warm memory and a plain read()
of the same files into a warm array, all in turns on one thread:

- host: put, and get followed by copying the bytes out, against the copy;
- disk, from the page cache and (where the kernel lets go of its pages) from the medium: get with
  its checksum and copying out, against the read; the same without the checksum; and put against
  a plain write of a new file;
- with --kill-writes: writers are killed at random moments until so many entries were reported as
  stored; then every entry must be whole, and every reported one there;
- with --trace: misses of each policy on a public trace of block requests, against golden counts.

Results: benchmarks/results/store_tiers.json.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from recollect.core.replacement import POLICIES
from recollect.store.tiers.disk import DiskTier
from recollect.store.tiers.host import HostTier

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "store"))
NAMES = {"lru": "LRU", "lfu": "LFU", "s3fifo": "S3-FIFO", "sieve": "SIEVE", "gdsf": "GDSF",
         "ttl": "FIFO"}  # fmt: skip


def milliseconds(call: Callable[[], Any]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def forget_pages(path: str) -> None:
    """Let the kernel drop what it caches of a file."""
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def host(nbytes: int, repeat: int) -> dict[str, float]:
    """Milliseconds of the host tier and of a copy."""
    data = np.random.default_rng(0).integers(0, 256, nbytes, dtype=np.uint8)
    out = np.zeros_like(data)
    ring = np.ones((16, nbytes), np.uint8)  # the copy goes round as many places as the tier has
    tier = HostTier(16 * nbytes)
    keys = [random.randbytes(32) for _ in range(repeat + 32)]
    for key in keys[:32]:  # every page of the arena is warm afterwards
        tier.put(key, data)
    times: dict[str, list[float]] = {"copy": [], "put": [], "get": [], "get and copy out": []}

    def copy_out(key: bytes) -> None:
        with tier.get(key) as lease:
            np.copyto(out, np.frombuffer(lease.data, np.uint8))

    for number, key in enumerate(keys[32:]):
        place = ring[number % 16]
        times["copy"].append(milliseconds(lambda place=place: np.copyto(place, data)))
        times["put"].append(milliseconds(lambda key=key: tier.put(key, data)))
        times["get"].append(milliseconds(lambda key=key: tier.get(key)))
        times["get and copy out"].append(milliseconds(lambda key=key: copy_out(key)))
    return {name: float(np.median(taken)) for name, taken in times.items()}


def disk(folder: Path, nbytes: int, repeat: int, cold: bool) -> dict[str, float]:
    """Milliseconds of the disk tier and of plain files."""
    data = np.random.default_rng(0).integers(0, 256, nbytes, dtype=np.uint8)
    out = np.zeros_like(data)
    checked = DiskTier(folder / "store", 4 * repeat * nbytes)
    unchecked = DiskTier(folder / "store", 4 * repeat * nbytes, check=False)
    times: dict[str, list[float]] = {
        name: [] for name in ("write", "put", "read", "get and copy out", "unchecked")
    }

    def copy_out(tier: DiskTier, key: bytes) -> None:
        with tier.get(key) as lease:
            np.copyto(out, np.frombuffer(lease.data, np.uint8))

    def read(path: str) -> None:
        with open(path, "rb", buffering=0) as file:
            assert file.readinto(memoryview(out)) == nbytes

    def write(path: str) -> None:
        with open(path, "wb", buffering=0) as file:
            file.write(data)

    keys = [random.randbytes(32) for _ in range(repeat)]
    for number, key in enumerate(keys):
        plain = str(folder / f"plain-{number}")
        times["write"].append(milliseconds(lambda plain=plain: write(plain)))
        times["put"].append(milliseconds(lambda key=key: checked.put(key, data)))
    for key in keys:
        path = checked.path_of(key)
        for name, call in (
            ("read", lambda path=path: read(path)),
            ("get and copy out", lambda key=key: copy_out(checked, key)),
            ("unchecked", lambda key=key: copy_out(unchecked, key)),
        ):
            if cold:
                forget_pages(path)
            times[name].append(milliseconds(call))
    return {name: float(np.median(taken)) for name, taken in times.items()}


def kills(folder: Path, writes: int) -> dict[str, int]:
    """Kill writers until so many writes were reported. Raises AssertionError for a torn entry."""
    from test_crash import check, kill_writers

    rng, reported, killed = random.Random(0), set(), 0
    while len(reported) < writes:
        reported |= kill_writers(folder, kills=5, rng=rng)
        killed += 5
    return {"killed": killed, "reported": len(reported), "whole": check(folder, reported)}


def misses(name: str, capacity: int, requests: list[tuple[int, int]]) -> int:
    """Misses of a policy on a trace of (object, bytes)."""
    policy, used, missed = POLICIES[name](capacity), 0, 0
    slot_of: dict[int, int] = {}
    owner: dict[int, tuple[int, int]] = {}
    free: list[int] = []
    for key, size in requests:
        if key in slot_of:
            policy.touch(slot_of[key])
            continue
        missed += 1
        if size > capacity:
            continue
        value = key * 0x9E3779B97F4A7C15 % 2**64
        place = policy.place(value, size)
        while used + size > capacity:
            victim = policy.evict()
            assert victim is not None
            gone, freed = owner.pop(victim)
            del slot_of[gone]
            free.append(victim)
            used -= freed
        slot = free.pop() if free else len(owner)
        slot_of[key], owner[slot] = slot, (key, size)
        used += size
        policy.admit(slot, value, size, 1.0, place)
    return missed


def replay(trace: Path, expected: Path) -> dict[str, Any]:
    """Miss counts of every policy and size, and whether they are the golden ones."""
    with gzip.open(trace, "rt") as file:
        requests = [(int(key), int(size)) for key, size in list(csv.reader(file))[1:]]
    golden = json.loads(expected.read_text())
    found = {}
    for name, title in NAMES.items():
        counts = [misses(name, size << 20, requests) for size in golden["cache_sizes_MiB"]]
        found[name] = {"misses": counts, "golden": counts == golden["miss_counts"][title]}
        print(f"{name} (golden: {title}): {'equal' if found[name]['golden'] else counts}")
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=4.0, help="of one entry")
    parser.add_argument("--repeat", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    parser.add_argument("--kill-writes", type=int, default=0)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--expected", type=Path)
    given = parser.parse_args()
    nbytes = int(given.megabytes * (1 << 20))
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        report["host_ms"] = host(nbytes, given.repeat)
        report["disk_cached_ms"] = disk(folder / "warm", nbytes, given.repeat, cold=False)
        report["disk_cold_ms"] = disk(folder / "cold", nbytes, given.repeat, cold=True)
        if given.kill_writes:
            report["kill"] = kills(folder / "killed", given.kill_writes)
    shares = {
        "host put": report["host_ms"]["copy"] / report["host_ms"]["put"],
        "host get and copy out": report["host_ms"]["copy"] / report["host_ms"]["get and copy out"],
    }
    for place in ("cached", "cold"):
        times = report[f"disk_{place}_ms"]
        shares[f"disk get, {place}"] = times["read"] / times["get and copy out"]
        shares[f"disk get, {place}, no checksum"] = times["read"] / times["unchecked"]
        shares[f"disk put, {place}"] = times["write"] / times["put"]
    report["share_of_bandwidth"] = shares
    table = Table(title=f"entries of {given.megabytes:g} MiB, median of {given.repeat}")
    for heading in ("", "ms", "share of plain copy, read or write"):
        table.add_column(heading, justify="left" if not heading else "right")
    for part in ("host_ms", "disk_cached_ms", "disk_cold_ms"):
        for name, taken in report[part].items():
            table.add_row(f"{part.removesuffix('_ms')}: {name}", f"{taken:.2f}", "")
    for name, share in shares.items():
        table.add_row(name, "", f"{share:.0%}")
    Console(width=100).print(table)
    if "kill" in report:
        print(report["kill"])
    if given.trace:
        report["trace"] = replay(given.trace, given.expected)
    report["about"] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "bytes": nbytes,
        "goals": "host >= 70%, disk >= 70%, put <= 4 ms, get <= 2 ms in process",
        "command": " ".join(  # files by name: where they lie is this machine's own
            ["python benchmarks/store_tiers.py", *(Path(a).name for a in sys.argv[1:])]
        ),
    }
    target = HERE / "results" / "store_tiers.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(report, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
