"""Redundancy: one lost shard is rebuilt byte for byte, two are a miss, a torn write is nothing."""

import multiprocessing
import os
import signal
import uuid

import pytest
from contract import BODY, KEYS, TierContract, read
from hypothesis import given, settings
from hypothesis import strategies as st

from recollect.errors import StoreError
from recollect.store.store import Store
from recollect.store.tiers.guarded import GuardedTier
from recollect.store.tiers.host import HostTier
from recollect.store.tiers.redis import RedisTier
from recollect.store.tiers.redundant import OVERHEAD, RedundantTier, in_shared_memory


def in_memory(members=4):
    return RedundantTier([HostTier(1 << 20) for _ in range(members)])


class Contract(TierContract):
    def test_keys_and_counts(self, tier):
        """As for any tier, but bytes are known up to the rounding of slices."""
        for i, key in enumerate(KEYS):
            tier.put(key, bytes(100 * (i + 1)))
        tier.delete(KEYS[0])
        assert set(tier.keys()) == set(KEYS[1:])
        read(tier, KEYS[1])
        read(tier, KEYS[0])
        stat = tier.stat()
        assert stat.entries == 4
        assert stat.bytes == pytest.approx(1400, abs=8)
        assert (stat.hits, stat.misses, stat.leases, stat.writing) == (1, 1, 0, 0)


class TestContractOfTwo(Contract):
    @pytest.fixture
    def tier(self):
        return in_memory(2)


class TestContractOfFour(Contract):
    @pytest.fixture
    def tier(self):
        return in_memory(4)


class TestContractInSharedMemory(Contract):
    @pytest.fixture
    def tier(self, tmp_path):
        return in_shared_memory("test", 1 << 20, 3, folder=tmp_path)


@pytest.mark.parametrize("members", [2, 3, 5])
@pytest.mark.parametrize("nbytes", [0, 1, 2, 5, 1000, 1001])
def test_every_single_lost_shard_is_rebuilt_and_put_back(members, nbytes):
    tier, body = in_memory(members), os.urandom(nbytes)
    tier.put(KEYS[0], body)
    for member in tier.members:
        before = read(member, KEYS[0])
        assert member.delete(KEYS[0])
        assert tier.contains(KEYS[0])
        assert read(tier, KEYS[0]) == body
        if member is not tier.members[tier.holder(KEYS[0], members - 1)]:  # not the parity's
            assert read(member, KEYS[0]) == before
        else:
            member.put(KEYS[0], before)
    assert tier.rebuilt == members - 1


def test_two_lost_shards_are_a_miss_and_can_be_written_again():
    for first in range(4):
        for second in range(first):
            tier = in_memory(4)
            tier.put(KEYS[0], BODY)
            tier.members[first].delete(KEYS[0])
            tier.members[second].delete(KEYS[0])
            assert not tier.contains(KEYS[0])
            assert read(tier, KEYS[0]) is None
            assert list(tier.keys()) == []
            assert tier.put(KEYS[0], BODY[::-1])
            assert read(tier, KEYS[0]) == BODY[::-1]


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_shard_is_rebuilt_and_two_are_never_guessed(data):
    tier, body = in_memory(4), BODY[:97]
    tier.put(KEYS[0], body)
    damaged = data.draw(st.sets(st.integers(0, 3), min_size=1, max_size=2))
    for index in damaged:
        member = tier.members[index]
        shard = bytearray(read(member, KEYS[0]))
        at = data.draw(st.integers(0, len(shard) - 1))
        shard[at] ^= data.draw(st.integers(1, 255))
        member.delete(KEYS[0])
        member.put(KEYS[0], bytes(shard[: data.draw(st.integers(at, len(shard)))]))
    parity = tier.holder(KEYS[0], 3)
    if len(damaged - {parity}) < 2 and len(damaged) < 2:
        assert read(tier, KEYS[0]) == body
    else:
        assert read(tier, KEYS[0]) is None


def test_shards_of_different_writes_never_mix():
    tier, other = in_memory(3), in_memory(3)
    tier.put(KEYS[0], BODY)
    other.put(KEYS[0], BODY[::-1])
    for mine, theirs in list(zip(tier.members, other.members, strict=True))[:2]:
        mine.delete(KEYS[0])
        mine.put(KEYS[0], read(theirs, KEYS[0]))
    assert read(tier, KEYS[0]) in (None, BODY[::-1])  # two of theirs are whole, one of each is not
    tier.members[1].delete(KEYS[0])
    assert read(tier, KEYS[0]) is None


def test_overhead_is_one_part_in_the_members_but_one():
    for members in (2, 3, 5, 9):
        tier = in_memory(members)
        tier.put(KEYS[0], bytes(72_000))
        held = sum(member.stat().bytes - OVERHEAD for member in tier.members)
        assert held == 72_000 + 72_000 // (members - 1)


def test_the_parity_moves_from_entry_to_entry():
    tier = in_memory(3)
    keys = [os.urandom(32) for _ in range(60)]
    assert {tier.holder(key, 2) for key in keys} == {0, 1, 2}
    assert all({tier.holder(key, i) for i in range(3)} == {0, 1, 2} for key in keys)


# -- versions ------------------------------------------------------------------------------------


def replace(tier, key, body):
    with tier.reserve(key, len(body), replace=True) as reservation:
        reservation.write(body)
        reservation.commit()


def test_a_new_version_replaces_the_previous_one_at_its_commit():
    tier = in_memory(3)
    for version in range(5):
        replace(tier, KEYS[0], BODY[version:])
        assert read(tier, KEYS[0]) == BODY[version:]
        assert list(tier.keys()) == [KEYS[0]]
        assert tier.stat().entries == 1
    with tier.reserve(KEYS[0], 10, replace=True) as reservation:
        reservation.write(bytes(10))
        assert read(tier, KEYS[0]) == BODY[4:]
    assert read(tier, KEYS[0]) == BODY[4:]


@pytest.mark.parametrize("committed", range(5))
def test_a_writer_that_dies_between_commits_leaves_the_previous_version_or_the_new(committed):
    tier = in_memory(4)
    replace(tier, KEYS[0], b"previous" * 10)
    reservation = tier.reserve(KEYS[0], len(BODY), replace=True)
    reservation.write(BODY)
    reservation._send(3, reservation._parity.data)
    for index in range(4):
        reservation._send(index, reservation._digests[index].digest())
    for index in range(committed):
        reservation._shards[index].commit()
    reservation.abort()  # what the members do when the writer is gone
    assert read(tier, KEYS[0]) == (BODY if committed >= 3 else b"previous" * 10)
    replace(tier, KEYS[0], b"next")
    assert read(tier, KEYS[0]) == b"next"
    replace(tier, KEYS[0], b"after that")
    assert read(tier, KEYS[0]) == b"after that"
    assert tier.stat().entries == 1


def write_and_hang(folder, begun):
    tier = in_shared_memory("snapshots", 8 << 20, 3, folder=folder)
    reservation = tier.reserve(KEYS[0], 1 << 20, replace=True)
    reservation.write(bytes(1 << 19))
    begun.set()
    signal.pause()


def test_killing_the_writer_in_the_middle_leaves_the_previous_version_readable(tmp_path):
    tier = in_shared_memory("snapshots", 8 << 20, 3, folder=tmp_path)
    replace(tier, KEYS[0], BODY)
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    writer = context.Process(target=write_and_hang, args=(tmp_path, begun))
    writer.start()
    assert begun.wait(60)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert read(tier, KEYS[0]) == BODY
    tier.close()
    again = in_shared_memory("snapshots", 8 << 20, 3, folder=tmp_path)  # memory outlives both
    assert read(again, KEYS[0]) == BODY
    replace(again, KEYS[0], b"next")
    assert read(again, KEYS[0]) == b"next"


# -- members that fail ---------------------------------------------------------------------------


def test_shards_held_by_processes_survive_the_loss_of_any_one(redis_servers):
    servers = [redis_servers() for _ in range(3)]
    space = uuid.uuid4().hex
    tier = RedundantTier([RedisTier(s.url, namespace=space, count_every=0) for s in servers])
    bodies = {os.urandom(32): os.urandom(1000 + i) for i in range(6)}
    for server in servers:
        for key, body in bodies.items():
            tier.delete(key)
            assert tier.put(key, body)
        server.kill()
        assert all(read(tier, key) == body for key, body in bodies.items())
        new = os.urandom(32)
        assert tier.put(new, BODY)  # written without one member
        assert read(tier, new) == BODY
        server.start()  # empty
        assert all(read(tier, key) == body for key, body in bodies.items())
    servers[0].kill()
    servers[1].kill()
    key = next(iter(bodies))
    with pytest.raises(StoreError, match="2 of 3 members"):
        tier.get(key)
    with pytest.raises(StoreError, match="two members"):
        tier.put(os.urandom(32), BODY)
    assert GuardedTier(tier).get(key) is None


def test_a_full_member_refuses_the_entry_and_nothing_stays():
    tier = RedundantTier([HostTier(1 << 20), HostTier(1 << 20), HostTier(100)])
    assert not tier.put(KEYS[0], BODY)
    assert read(tier, KEYS[0]) is None
    assert all(member.stat().bytes == 0 for member in tier.members)
    assert tier.stat().writing == 0


def test_too_few_members_are_refused(tmp_path):
    with pytest.raises(StoreError, match="2 to 255 members"):
        RedundantTier([HostTier(100)])
    with pytest.raises(StoreError, match="memory file system"):
        in_shared_memory("x", 100, 3, folder=tmp_path / "absent")


def test_the_recipe_reft_keeps_the_host_tier_of_a_store_so(tmp_path, monkeypatch):
    monkeypatch.setattr("recollect.store.tiers.redundant.MEMORY", tmp_path)
    with Store(host="4MiB", recipe="reft", holders=3, namespace="team") as store:
        assert store.put(KEYS[0], BODY)
        store.tiers[0].members[0].delete(KEYS[0])
        with store.get(KEYS[0]) as lease:
            assert bytes(lease.data) == BODY
    with Store(host="4MiB", recipe="reft", holders=3, namespace="team") as again:
        assert read(again, KEYS[0]) == BODY  # the memory outlived the store
    with Store(host="4MiB", recipe="reft", holders=3, namespace="other") as other:
        assert read(other, KEYS[0]) is None
