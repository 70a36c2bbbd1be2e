"""The workers' half: blocks become entries and blocks again; what fails is reported, not raised."""

import threading
import time

import pytest
import torch

from recollect.errors import StoreError
from recollect.store import Store
from recollect.store.tiers.base import Lease
from recollect.vllm.blocks import CpuVec
from recollect.vllm.messages import Load, Orders, Part
from recollect.vllm.mover import LayerCache, Mover

LAYERS, BLOCKS, HEADS, BLOCK, WIDTH, CHUNK = 3, 24, 2, 32, 32, 128
KEY, OTHER = b"k" * 32, b"o" * 32


class Held(Store):
    """A store whose puts wait for `gate`, and that may corrupt what it returns."""

    def __init__(self):
        super().__init__(host="8MiB")
        self.gate = threading.Event()
        self.gate.set()
        self.spoil = None

    def put(self, *arguments, **named):
        self.gate.wait(10)
        return super().put(*arguments, **named)

    def get(self, key):
        lease = super().get(key)
        return Lease(self.spoil(bytes(lease.data))) if lease and self.spoil else lease


@pytest.fixture
def caches():
    torch.manual_seed(0)
    codec = CpuVec(WIDTH, WIDTH)
    shape = (BLOCKS, HEADS, BLOCK, 2 * WIDTH)
    return {f"layer.{n}": LayerCache(torch.randn(shape), codec) for n in range(LAYERS)}


@pytest.fixture
def store():
    return Held()


@pytest.fixture
def mover(store, caches):
    made = Mover(store, caches, model="m", chunk=CHUNK, block=BLOCK)
    yield made
    store.gate.set()
    made.close()


def save(mover, key=KEY, blocks=(1, 2, 3, 4)):
    mover.save(Orders(saves=[Part(key, tuple(blocks))]))
    settle(mover)


def settle(mover):
    end = time.monotonic() + 10
    while mover._saving and time.monotonic() < end:
        time.sleep(0.001)


def blocks_of(caches, ids):
    return [layer.cache[list(ids)].clone() for layer in caches.values()]


def load(mover, parts, later=False):
    mover.start(Orders(loads=[Load("r", tuple(parts), later)]))


def test_blocks_return_bit_for_bit_in_other_places(mover, caches):
    before = blocks_of(caches, (1, 2, 3, 4))
    save(mover)
    assert mover.take_report().committed == [KEY]
    load(mover, [Part(KEY, (9, 12, 10, 7))])
    assert all(map(torch.equal, blocks_of(caches, (9, 12, 10, 7)), before))
    assert not mover.take_bad_blocks()
    told = mover.take_report()
    assert [read.tier for read in told.reads] == ["host"]
    assert mover.take_report() is None


def test_a_snapshot_is_taken_at_once(mover, store, caches):
    """Blocks may be given to another request while the entry is still being written."""
    before = blocks_of(caches, (1, 2, 3, 4))
    store.gate.clear()
    mover.save(Orders(saves=[Part(KEY, (1, 2, 3, 4))]))
    for layer in caches.values():
        layer.cache[1:5] = 0
    store.gate.set()
    load(mover, [Part(KEY, (9, 10, 11, 12))])  # waits for the entry being written
    assert all(map(torch.equal, blocks_of(caches, (9, 10, 11, 12)), before))


def test_part_of_an_entry_fills_part_of_the_blocks(mover, caches):
    save(mover)
    wanted, others = blocks_of(caches, (2, 3)), blocks_of(caches, (8, 11))
    load(mover, [Part(KEY, (9, 10), skip=1)])
    assert all(map(torch.equal, blocks_of(caches, (9, 10)), wanted))
    assert all(map(torch.equal, blocks_of(caches, (8, 11)), others))


def test_from_the_first_missing_entry_on_all_blocks_are_reported(mover):
    save(mover)
    load(
        mover, [Part(KEY, (5, 6, 7, 8)), Part(OTHER, (9, 10, 11, 12)), Part(KEY, (13, 14, 15, 16))]
    )
    assert mover.take_bad_blocks() == set(range(9, 17))
    report = mover.take_report()
    assert (report.lost, report.failed, report.taint) == ({OTHER}, {"r"}, 1)
    assert not mover.take_bad_blocks()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data + b"\0",
        lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
        lambda data: bytes(len(data)),
    ],
)
def test_spoiled_entries_touch_no_block(mover, store, caches, spoil):
    save(mover)
    before = blocks_of(caches, range(BLOCKS))
    store.spoil = spoil
    load(mover, [Part(KEY, (9, 10, 11, 12))])
    assert all(map(torch.equal, blocks_of(caches, range(BLOCKS)), before))
    assert mover.take_bad_blocks() == {9, 10, 11, 12}
    store.spoil = None
    assert not store.contains(KEY)  # so that a good one can take its place


@pytest.mark.parametrize(
    "change",
    [{"model": "n"}, {"chunk": 64}, {"rank": 1}],
)
def test_entries_of_another_model_size_or_rank_are_no_hit(mover, store, caches, change):
    save(mover)
    other = Mover(store, caches, **{"model": "m", "chunk": CHUNK, "block": BLOCK, **change})
    load(other, [Part(KEY, (9, 10, 11, 12)[: other._chunk // BLOCK])])
    assert other.take_bad_blocks()


def test_an_entry_under_anothers_key_is_no_hit(mover, store):
    save(mover)
    with store.get(KEY) as lease:
        store.put(OTHER, bytes(lease.data))
    load(mover, [Part(OTHER, (9, 10, 11, 12))])
    assert mover.take_bad_blocks() == {9, 10, 11, 12}


def test_background_loads_are_announced_well_or_not(mover, caches):
    save(mover)
    before = blocks_of(caches, (1, 2, 3, 4))
    for key, bad in ((KEY, set()), (OTHER, {9, 10, 11, 12})):
        load(mover, [Part(key, (9, 10, 11, 12))], later=True)
        end = time.monotonic() + 10
        while not (arrived := mover.take_arrived()) and time.monotonic() < end:
            time.sleep(0.001)
        assert arrived == {"r"}
        assert mover.take_bad_blocks() == bad
        assert mover.take_report().lost == ({key} if bad else set())
    assert all(map(torch.equal, blocks_of(caches, (9, 10, 11, 12)), before))


def test_after_a_failed_load_nothing_is_saved_until_the_scheduler_knows(mover, store):
    load(mover, [Part(OTHER, (9, 10, 11, 12))])
    save(mover)
    report = mover.take_report()
    assert (report.refused, report.taint) == ({KEY}, 1)
    save(mover)  # the next step was planned before the report arrived
    assert not store.contains(KEY)
    mover.save(Orders(saves=[Part(KEY, (1, 2, 3, 4))], taint=1))
    settle(mover)
    assert store.contains(KEY)


def test_saves_are_put_off_when_too_much_is_waiting(store, caches):
    mover = Mover(store, caches, model="m", chunk=CHUNK, block=BLOCK, staging=1)
    store.gate.clear()
    mover.save(Orders(saves=[Part(KEY, (1, 2, 3, 4)), Part(OTHER, (5, 6, 7, 8))]))
    assert mover.take_report().refused == {OTHER}
    store.gate.set()
    settle(mover)
    assert mover.take_report().committed == [KEY]
    mover.close()


@pytest.mark.parametrize("error", [StoreError("full"), ZeroDivisionError("bug"), MemoryError()])
def test_a_store_that_raises_costs_the_entry_only(mover, store, monkeypatch, error):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr(store, "put", broken)
    save(mover)
    assert mover.take_report().refused == {KEY}
    monkeypatch.setattr(store, "get", broken)
    load(mover, [Part(KEY, (9, 10, 11, 12))])
    assert mover.take_bad_blocks() == {9, 10, 11, 12}


def test_nothing_stays_leased(mover, store):
    save(mover)
    for spoil in (None, lambda data: data[:-1]):
        store.spoil = spoil
        load(mover, [Part(KEY, (9, 10, 11, 12))])
    assert sum(tier.leases + tier.writing for tier in store.stats().tiers) == 0


def test_closing_finishes_what_was_begun(store, caches):
    mover = Mover(store, caches, model="m", chunk=CHUNK, block=BLOCK)
    store.gate.clear()
    mover.save(Orders(saves=[Part(KEY, (1, 2, 3, 4))]))
    threading.Timer(0.05, store.gate.set).start()
    mover.close()
    assert mover.take_report().committed == [KEY]
