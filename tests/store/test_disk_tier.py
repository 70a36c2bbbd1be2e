"""The disk tier: the contract, restarts, processes that share a folder, and whatever breaks."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from contract import BODY, KEYS, TierContract, read

from recollect.core.replacement import POLICIES
from recollect.errors import StoreError
from recollect.store.tiers import disk as disk_module
from recollect.store.tiers.base import Facts
from recollect.store.tiers.disk import DiskTier
from recollect.store.tiers.journal import RECORD, VERSION, Journal

CAPACITY = 1 << 20


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def tier(folder):
    return DiskTier(folder, CAPACITY)


class TestContract(TierContract):
    @pytest.fixture
    def tier(self, folder):
        return DiskTier(folder, CAPACITY)


def files(folder, room):
    return [path for path in (folder / room).rglob("*") if path.is_file()]


def test_entries_survive_a_restart(folder, tier):
    for number in range(300):
        tier.put(key(number), bytes([number % 251]) * (number + 1), Facts("ns", 0.5, 256))
    for number in range(0, 300, 3):
        tier.delete(key(number))
    again = DiskTier(folder, CAPACITY)
    assert set(again.keys()) == {key(number) for number in range(300) if number % 3}
    assert all(read(again, key(n)) == bytes([n % 251]) * (n + 1) for n in range(300) if n % 3)
    assert (again.stat().entries, again.stat().bytes) == (tier.stat().entries, tier.stat().bytes)


def test_two_tiers_on_one_folder_see_what_the_other_commits(folder, tier):
    other = DiskTier(folder, CAPACITY)
    tier.put(KEYS[0], BODY)
    assert read(other, KEYS[0]) == BODY
    assert other.reserve(KEYS[0], 1) is None
    lease = tier.get(KEYS[0])
    other.delete(KEYS[0])
    assert not tier.contains(KEYS[0])
    assert bytes(lease.data) == BODY
    other.put(KEYS[0], b"new")
    assert read(tier, KEYS[0]) == b"new"


@pytest.mark.parametrize("bulk", [0, 64])
def test_an_entry_that_another_process_replaced_is_read_anew(folder, tier, bulk, monkeypatch):
    monkeypatch.setattr(disk_module, "BULK", bulk)
    other = DiskTier(folder, CAPACITY)
    for number in range(3):
        tier.put(key(number), BODY)
    assert read(other, key(1)) == BODY
    tier.delete(key(1))
    tier.put(key(1), b"another form")
    assert read(other, key(1)) == b"another form"
    assert other.stat() == replace(tier.stat(), hits=2)


def test_the_first_of_two_writers_of_one_key_wins(folder, tier):
    other = DiskTier(folder, CAPACITY)
    mine, theirs = tier.reserve(KEYS[0], 4), other.reserve(KEYS[0], 4)
    for reservation in (mine, theirs):
        reservation.write(b"same")
        reservation.commit()
    assert read(tier, KEYS[0]) == read(other, KEYS[0]) == b"same"
    assert tier.stat().entries == other.stat().entries == 1
    assert not files(folder, "writing")


@pytest.mark.parametrize("policy", POLICIES)
def test_the_folder_never_holds_more_than_the_capacity(folder, policy):
    tier = DiskTier(folder, 20_000, replacement=policy)
    for number in range(60):
        assert tier.put(key(number), bytes(1000 + number))
        assert sum(path.stat().st_size for path in files(folder, "entries")) <= 20_000
    assert tier.stat().bytes == sum(path.stat().st_size for path in files(folder, "entries"))


def test_a_smaller_capacity_evicts_at_the_start(folder, tier):
    for number in range(10):
        tier.put(key(number), bytes(1000))
    assert DiskTier(folder, 3000).stat().bytes <= 3000
    assert len(list(tier.keys())) == 3


def test_quotas_hold_over_a_restart(folder):
    quotas = {"small": 2000}
    tier = DiskTier(folder, CAPACITY, quotas=quotas)
    for number in range(3):
        tier.put(key(number), bytes(1000), Facts(namespace="small"))
    tier.put(key(9), bytes(5000), Facts(namespace="large"))
    again = DiskTier(folder, CAPACITY, quotas=quotas)
    again.put(key(4), bytes(1000), Facts(namespace="small"))
    assert again.stat().bytes == 7000


@pytest.mark.parametrize("damage", ["flip", "truncate", "lengthen"])
def test_damaged_entries_are_misses_and_set_aside(folder, tier, damage):
    tier.put(KEYS[0], BODY)
    path = tier.path_of(KEYS[0])
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        if damage == "flip":
            file.seek(len(BODY) // 2)
            file.write(bytes([BODY[len(BODY) // 2] ^ 1]))
        else:
            file.truncate(len(BODY) + (1 if damage == "lengthen" else -1))
    assert read(tier, KEYS[0]) is None
    assert not tier.contains(KEYS[0])
    assert not DiskTier(folder, CAPACITY).contains(KEYS[0])
    assert tier.stat().corrupt == 1
    assert [path.name[:64] for path in files(folder, "quarantine")] == [KEYS[0].hex()]
    assert tier.put(KEYS[0], BODY)
    assert read(tier, KEYS[0]) == BODY


def test_a_file_deleted_by_hand_is_a_miss(tier):
    tier.put(KEYS[0], BODY)
    os.unlink(tier.path_of(KEYS[0]))
    assert read(tier, KEYS[0]) is None
    assert tier.put(KEYS[0], BODY)
    assert read(tier, KEYS[0]) == BODY


@pytest.mark.parametrize("torn", [1, 40, RECORD.itemsize - 1])
def test_a_torn_end_of_the_journal_hides_nothing_but_itself(folder, tier, torn):
    for number in range(3):
        tier.put(key(number), BODY)
    journal = folder / "journal"
    os.truncate(journal, journal.stat().st_size - RECORD.itemsize + torn)
    again = DiskTier(folder, CAPACITY)
    assert set(again.keys()) == {key(0), key(1)}
    again.put(key(5), BODY)
    assert set(DiskTier(folder, CAPACITY).keys()) == {key(0), key(1), key(5)}


def test_a_damaged_record_hides_only_its_entry(folder, tier):
    for number in range(3):
        tier.put(key(number), BODY)
    raw = bytearray((folder / "journal").read_bytes())
    raw[-RECORD.itemsize - 20] ^= 1
    (folder / "journal").write_bytes(raw)
    assert set(DiskTier(folder, CAPACITY).keys()) == {key(0), key(2)}


def test_the_journal_stays_in_proportion(folder, monkeypatch):
    monkeypatch.setattr(disk_module, "COMPACT_FROM", 20)
    tier, other = DiskTier(folder, 2500), DiskTier(folder, 2500)
    for number in range(200):
        (tier, other)[number % 2].put(key(number), bytes(1000), Facts("ns"))
        assert (folder / "journal").stat().st_size <= 60 * RECORD.itemsize
        there = {bytes.fromhex(path.name) for path in files(folder, "entries")}
        assert set(tier.keys()) == set(other.keys()) == there
        assert tier.stat().bytes == other.stat().bytes <= 2500
    assert set(DiskTier(folder, 2500).keys()) == set(tier.keys()) != set()


def test_a_journal_that_was_replaced_twice_is_noticed(folder, tier):
    """Its inode number may come back; what another process saw in between must not stay."""
    other = DiskTier(folder, CAPACITY)
    for round_ in range(6):
        tier.put(key(round_), BODY)
        assert other.contains(key(round_))
        tier.delete(key(round_))
        tier.sweep()
        tier.sweep()
        assert not other.contains(key(round_))
        assert list(other.keys()) == []


def test_a_newer_store_is_refused(folder, tier):
    raw = bytearray((folder / "journal").read_bytes())
    raw[16:24] = (VERSION + 1).to_bytes(8, "little")
    (folder / "journal").write_bytes(raw)
    with pytest.raises(StoreError, match="newer recollect"):
        DiskTier(folder, CAPACITY)


def test_folders_with_other_things_are_refused(folder):
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match=r"thesis\.tex"):
        DiskTier(folder, CAPACITY)
    (folder / "thesis.tex").unlink()
    (folder / "journal").write_bytes(b"dear diary" * 20)
    with pytest.raises(StoreError, match="not a store's journal"):
        DiskTier(folder, CAPACITY)


def test_a_path_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot use"):
        DiskTier(tmp_path / "file", CAPACITY)


def test_a_full_disk_refuses_and_the_store_goes_on(tier, monkeypatch):
    tier.put(KEYS[0], BODY)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        assert tier.reserve(KEYS[1], 100) is None
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StoreError, match="No space left"):
            tier.put(KEYS[1], BODY)
        assert tier.delete(KEYS[0])  # the record does not fit, the file goes all the same
    assert tier.stat().writing == 0
    assert tier.stat().bytes == 0
    assert tier.put(KEYS[1], BODY)
    assert read(tier, KEYS[1]) == BODY


def test_a_file_system_that_is_really_full(folder):
    """RLIMIT_FSIZE stands for the end of the medium: the kernel itself refuses."""
    code = f"""
import resource, signal
from recollect.store.tiers.disk import DiskTier
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
tier = DiskTier({str(folder)!r}, 1 << 30)
assert tier.put(bytes(32), b"small" * 10)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
assert not tier.put(bytes([1] * 32), bytes(200_000))
assert tier.put(bytes([2] * 32), bytes(50_000))
assert bytes(tier.get(bytes(32)).data) == b"small" * 10
assert (tier.stat().entries, tier.stat().refused) == (2, 1)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not files(folder, "writing")


def test_entries_expire_by_the_wall_clock_over_a_restart(folder):
    now, wall = [0.0], [1e9]
    clocks = {"ttl": 100.0, "clock": lambda: now[0], "wall": lambda: wall[0]}
    tier = DiskTier(folder, CAPACITY, **clocks)
    tier.put(KEYS[0], BODY)
    wall[0] += 60
    again = DiskTier(folder, CAPACITY, **clocks)
    assert again.contains(KEYS[0])
    now[0] += 39
    assert again.contains(KEYS[0])
    now[0] += 2
    assert not again.contains(KEYS[0])
    assert not files(folder, "entries")


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_a_wall_clock_that_jumps_breaks_nothing(folder, jump):
    wall = [1e9]
    tier = DiskTier(folder, CAPACITY, ttl=100.0, wall=lambda: wall[0])
    tier.put(KEYS[0], BODY)
    wall[0] += jump
    assert read(tier, KEYS[0]) == BODY  # within a process only the monotonic clock counts
    assert DiskTier(folder, CAPACITY, ttl=100.0, wall=lambda: wall[0]).contains(KEYS[0]) is (
        jump < 0
    )


def test_what_a_dead_writer_left_goes_and_a_living_one_keeps_its_file(folder, tier):
    living = tier.reserve(KEYS[0], 4)
    (folder / "writing" / "dead").write_bytes(b"half")
    DiskTier(folder, CAPACITY)
    assert len(files(folder, "writing")) == 1
    living.write(b"done")
    living.commit()
    assert read(tier, KEYS[0]) == b"done"


def write_many(folder, worker, count, body):
    tier = DiskTier(folder, 1 << 30)
    for number in range(count):
        tier.put(key(number), body, Facts(f"worker-{worker}"))
        assert read(tier, key(number)) == body


def test_processes_share_a_folder(folder):
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=write_many, args=(folder, worker, 60, BODY)) for worker in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    tier = DiskTier(folder, 1 << 30)
    assert set(tier.keys()) == {key(number) for number in range(60)}
    assert tier.stat().bytes == 60 * len(BODY)
    assert len(files(folder, "entries")) == 60
    assert not files(folder, "writing")


def test_a_restart_reads_one_file(folder):
    """A journal of 200,000 entries, none of which has a file: what is not there is a miss."""
    DiskTier(folder, CAPACITY)
    records = np.zeros(200_000, RECORD)
    records["kind"], records["nbytes"], records["time"] = 1, 1, time.time()
    records["key"][:, :8] = np.arange(200_000, dtype="<u8").view("u1").reshape(-1, 8)
    Journal(folder).replace(records)
    tier = DiskTier(folder, CAPACITY)
    assert tier.stat().entries == 200_000
    some = records["key"][1234].tobytes()
    assert tier.contains(some)
    assert tier.get(some) is None
    assert not tier.contains(some)
    assert tier._books.memory() <= 200 * 200_000


def test_durable_commits(folder):
    tier = DiskTier(folder, CAPACITY, sync=True)
    assert tier.put(KEYS[0], BODY)
    assert read(tier, KEYS[0]) == BODY
