"""Writers killed at random moments: what a store shows afterwards is whole, and all that was said
to be stored is there."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from recollect.store.tiers.disk import DiskTier

WRITER = """
import hashlib, os, sys
from recollect.store.tiers.disk import DiskTier
tier = DiskTier(sys.argv[1], 1 << 30)
print("ready", flush=True)
while True:
    key = os.urandom(32)
    nbytes = 1 + int.from_bytes(key[:3], "little") % 300_000
    body = (hashlib.sha256(key).digest() * (nbytes // 32 + 1))[:nbytes]
    half = nbytes // 2
    with tier.reserve(key, nbytes) as reservation:
        reservation.write(body[:half])
        reservation.write(body[half:])
        reservation.commit()
    os.write(1, key.hex().encode() + b"\\n")
"""


def kill_writers(folder, kills: int, rng: random.Random) -> set[bytes]:
    """Start writers and kill each after a random while; the keys that they reported as stored."""
    reported: set[bytes] = set()
    for _ in range(kills):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0.0, 0.1))
        os.kill(writer.pid, signal.SIGKILL)
        lines = writer.stdout.read().split(b"\n")[:-1]
        writer.wait()
        reported |= {bytes.fromhex(line.decode()) for line in lines}
    return reported


def check(folder, reported: set[bytes]) -> int:
    """Entries of the store, each compared with what its writer meant to write."""
    tier = DiskTier(folder, 1 << 30, check=False)
    found = set(tier.keys())
    assert reported <= found
    for key in found:
        lease = tier.get(key)
        assert lease is not None
        nbytes = 1 + int.from_bytes(key[:3], "little") % 300_000
        assert bytes(lease.data) == (hashlib.sha256(key).digest() * (nbytes // 32 + 1))[:nbytes]
    assert not any((folder / "writing").iterdir())
    assert tier.put(bytes(32), b"the store goes on")
    tier.delete(bytes(32))
    return len(found)


def test_killed_writers_leave_no_torn_entry(tmp_path):
    reported = kill_writers(tmp_path / "store", kills=6, rng=random.Random(0))
    assert check(tmp_path / "store", reported) >= len(reported)


@pytest.mark.slow
def test_killed_writers_leave_no_torn_entry_over_many_writes(tmp_path):
    rng, reported = random.Random(1), set()
    while len(reported) < 300:
        reported |= kill_writers(tmp_path / "store", kills=3, rng=rng)
        check(tmp_path / "store", reported)
