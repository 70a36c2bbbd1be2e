"""The host tier: the contract, leases that protect bytes, quotas, and an arena without leaks."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from contract import BODY, KEYS, TierContract, read
from hypothesis import given
from hypothesis import strategies as st

from recollect.core.replacement import POLICIES
from recollect.errors import StoreError
from recollect.store.tiers.base import Facts
from recollect.store.tiers.free_space import ALIGN, FreeSpace
from recollect.store.tiers.host import HostTier


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


class TestContract(TierContract):
    @pytest.fixture
    def tier(self):
        return HostTier(1 << 20)


@pytest.mark.parametrize("policy", POLICIES)
def test_it_never_holds_more_than_its_capacity(policy):
    tier = HostTier(10_000, replacement=policy)
    rng = random.Random(0)
    for number in range(500):
        size = rng.randrange(1, 3000)
        assert tier.put(key(number), bytes([number % 251]) * size)
        stat = tier.stat()
        assert stat.bytes <= stat.capacity
        kept = rng.choice(list(tier.keys()))
        assert set(read(tier, kept)) == {int.from_bytes(kept, "big") % 251}
    assert tier.stat().evictions > 100


def test_leased_entries_are_not_evicted():
    tier = HostTier(4000)
    tier.put(key(0), b"a" * 1000)
    lease = tier.get(key(0))
    for number in range(1, 50):
        tier.put(key(number), b"b" * 1000)
    assert bytes(lease.data) == b"a" * 1000
    assert tier.contains(key(0))


def test_a_tier_full_of_leased_entries_refuses():
    tier = HostTier(3000)
    for number in range(3):
        tier.put(key(number), b"x" * 1000)
    leases = [tier.get(key(number)) for number in range(3)]
    assert tier.reserve(key(9), 1000) is None
    assert tier.stat().refused == 1
    leases.pop().release()
    assert tier.put(key(9), b"y" * 1000)
    assert tier.stat().leases == 2


def test_an_entry_larger_than_the_tier_is_refused_and_evicts_nothing():
    tier = HostTier(3000)
    tier.put(key(0), b"x" * 1000)
    assert tier.reserve(key(1), 3001) is None
    assert tier.contains(key(0))


VIEWS = {
    "slice": lambda data: data[10:20],
    "array": lambda data: np.frombuffer(data, np.uint8)[5:],
    "tensor": lambda data: torch.frombuffer(data, dtype=torch.uint8)[3:].view(-1, 1),
}


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
@pytest.mark.parametrize("view", VIEWS)
def test_views_that_outlive_their_lease_keep_the_bytes(view):
    tier = HostTier(3000)
    tier.put(key(0), b"a" * 1000)
    lease = tier.get(key(0))
    kept = VIEWS[view](lease.data)
    lease.release()
    tier.delete(key(0))
    for number in range(1, 20):
        tier.put(key(number), b"b" * 1000)
    assert set(np.asarray(kept).ravel().tolist()) == {ord("a")}
    assert tier.stat().leases == 1
    del kept
    assert tier.stat().leases == 0
    assert tier.put(key(50), b"c" * 3000)


def test_leases_that_ended_leave_nothing_to_be_done():
    tier = HostTier(1000)
    tier.put(key(0), b"a")
    for _ in range(100):
        tier.get(key(0)).release()
    assert len(tier._books.later) <= 1
    assert tier.stat().leases == 0


def test_a_released_lease_has_no_data():
    tier = HostTier(1000)
    tier.put(key(0), b"a")
    with tier.get(key(0)) as lease:
        pass
    with pytest.raises(StoreError, match="released"):
        _ = lease.data


def test_quotas_hold_and_do_not_hurt_the_others():
    tier = HostTier(10_000, quotas={"small": 2000}, replacement="lru")
    tier.put(key(0), b"x" * 1000, Facts(namespace="large"))
    for number in range(1, 20):
        assert tier.put(key(number), b"x" * 1000, Facts(namespace="small"))
    assert sorted(tier.keys()) == [key(0), key(18), key(19)]
    assert tier.reserve(key(99), 2001, Facts(namespace="small")) is None
    for number in range(20, 28):
        tier.put(key(number), b"x" * 1000, Facts(namespace="large"))
    assert tier.contains(key(18)) or tier.contains(key(19)) or len(list(tier.keys())) == 10
    assert tier.stat().bytes <= 10_000


def test_costly_entries_stay_under_gdsf():
    tier = HostTier(2000, replacement="gdsf")
    tier.put(key(0), b"x" * 1000, Facts(cost_seconds=10.0))
    for number in range(1, 9):
        tier.put(key(number), b"x" * 1000, Facts(cost_seconds=0.1))
    assert tier.contains(key(0))


@pytest.mark.parametrize("settings", [{"ttl": 10.0}, {"replacement": "ttl(seconds=10)"}])
def test_entries_live_for_their_time_and_clocks_may_jump(settings):
    now = [1000.0]
    tier = HostTier(10_000, clock=lambda: now[0], **settings)
    tier.put(key(0), BODY[:100])
    now[0] += 9.9
    assert tier.contains(key(0))
    now[0] -= 5000.0
    assert tier.contains(key(0))
    now[0] += 5000.2
    assert read(tier, key(0)) is None
    assert tier.stat().entries == tier.stat().bytes == 0
    assert tier.put(key(0), b"new")


@pytest.mark.parametrize("wrong", [b"short", b"x" * 33, "x" * 32])
def test_keys_are_digests(wrong):
    with pytest.raises(StoreError, match="32 bytes"):
        HostTier(1000).put(wrong, b"x")


def test_a_corrupt_entry_is_counted():
    tier = HostTier(1000)
    tier.put(KEYS[0], b"x")
    tier.set_aside(KEYS[0])
    tier.set_aside(KEYS[0])
    assert (tier.stat().corrupt, tier.stat().entries) == (1, 0)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3000)), max_size=80))
def test_ranges_of_the_arena_never_overlap_and_all_come_back(steps):
    size = 20_000 // ALIGN * ALIGN
    free, taken = FreeSpace(20_000), []
    for take, nbytes in steps:
        if take:
            start = free.take(nbytes)
            if start is None:
                continue
            assert start % ALIGN == 0
            assert start + nbytes <= size
            assert all(start + nbytes <= a or a + n <= start for a, n in taken)
            taken.append((start, nbytes))
        elif taken:
            free.give(*taken.pop(nbytes % len(taken)))
    for start, nbytes in taken:
        free.give(start, nbytes)
    assert free.take(size) == 0


def test_a_hole_of_just_the_right_size_is_found():
    free = FreeSpace(64 * 100)
    starts = [free.take(64 * 5) for _ in range(20)]
    for start in starts[::2]:
        free.give(start, 64 * 5)
    assert sorted(free.take(64 * 5) for _ in range(10)) == starts[::2]
    assert free.take(1) is None
