"""The Store over its tiers: hits move up, puts move down, and whatever breaks is a miss."""

from __future__ import annotations

import json
import os
import threading

import pytest
from contract import BODY, run_threads

from recollect import RecipeError, Store, StoreError
from recollect.store.sizes import read_bytes, show_bytes
from recollect.store.tiers.base import Tier, TierStat
from recollect.store.tiers.disk import DiskTier
from recollect.store.tiers.host import HostTier


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def read(store, key):
    lease = store.get(key)
    if lease is None:
        return None
    with lease:
        return bytes(lease.data)


class Broken(Tier):
    """A tier that answers nothing but errors."""

    name = "broken"

    def _fail(self, *_):
        raise StoreError("the cable is out")

    reserve = get = contains = delete = keys = stat = _fail

    def close(self):
        """Nothing is open."""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def store(folder):
    with Store(folder, host="1MiB", disk="10MiB") as store:
        yield store


def counts(store):
    return {tier.name: tier.entries for tier in store.stats().tiers}


def test_puts_reach_every_tier_and_hits_come_from_the_nearest(store):
    assert store.put(key(0), BODY)
    store.flush()
    assert counts(store) == {"host": 1, "disk": 1}
    assert read(store, key(0)) == BODY
    assert [tier.hits for tier in store.stats().tiers] == [1, 0]


def test_parts_are_joined(store):
    assert store.put(key(0), [BODY[:10], memoryview(BODY)[10:500], bytearray(BODY[500:])])
    assert read(store, key(0)) == BODY


def test_entries_outlive_the_process_that_made_them(folder, store):
    store.put(key(0), BODY)
    store.close()
    with Store(folder) as again:
        assert again.locate([key(0)]) == ["disk"]
        assert read(again, key(0)) == BODY
        again.flush()
        assert again.locate([key(0)]) == ["host"]
        assert again.stats().promoted == 1


def test_what_leaves_the_host_tier_is_found_on_disk(store):
    for number in range(30):
        assert store.put(key(number), bytes([number]) * 100_000)
        store.flush()
    assert counts(store) == {"host": 10, "disk": 30}
    assert all(read(store, key(number)) == bytes([number]) * 100_000 for number in range(30))


def test_an_entry_that_is_there_stays_as_it_is(store):
    assert store.put(key(0), b"first")
    assert store.put(key(0), b"second")
    assert read(store, key(0)) == b"first"


def test_reservations_are_invisible_until_their_commit(store):
    reservation = store.reserve(key(0), 10)
    reservation.write(b"12345")
    assert not store.contains(key(0))
    assert store.reserve(key(0), 10) is None
    reservation.write(b"67890")
    reservation.commit()
    store.flush()
    assert read(store, key(0)) == b"1234567890"
    assert counts(store) == {"host": 1, "disk": 1}


def test_a_lost_reservation_frees_its_key(store):
    reservation = store.reserve(key(0), 10)
    del reservation
    first = store.reserve(key(0), 10)
    first.abort()
    second = store.reserve(key(0), 10)
    del first
    assert store.reserve(key(0), 10) is None
    second.write(bytes(10))
    second.commit()
    assert store.contains(key(0))


def test_keys_that_are_no_digests_are_refused(store):
    with pytest.raises(StoreError, match="32 bytes"):
        store.put(b"short", BODY)


def test_an_aborted_reservation_leaves_no_trace(store):
    with store.reserve(key(0), 10) as reservation:
        reservation.write(b"12345")
    assert counts(store) == {"host": 0, "disk": 0}
    assert all(tier.writing == tier.bytes == 0 for tier in store.stats().tiers)


def test_a_host_tier_full_of_leases_passes_puts_on(store):
    for number in range(10):
        store.put(key(number), bytes(100_000))
    store.flush()
    leases = [store.get(key(number)) for number in range(10)]
    assert store.put(key(99), bytes(100_000))
    assert store.locate([key(99)]) == ["disk"]
    del leases


def test_a_store_full_of_leases_refuses_and_goes_on():
    with Store(host=1000) as store:
        store.put(key(0), bytes(1000))
        lease = store.get(key(0))
        assert not store.put(key(1), bytes(1000))
        assert store.stats().refused == 1
        lease.release()
        assert store.put(key(1), bytes(1000))


def test_entries_too_large_for_every_tier_are_refused(store):
    assert not store.put(key(0), bytes(11 << 20))
    assert store.put(key(1), bytes(2 << 20))
    assert store.locate([key(1)]) == ["disk"]


def test_the_longest_prefix_may_lie_on_several_tiers(store):
    keys = [key(number) for number in range(6)]
    for number in (0, 1, 3):
        store.tiers[0].put(keys[number], b"x")
    for number in (2, 4):
        store.tiers[1].put(keys[number], b"x")
    assert store.longest(keys) == 5
    assert store.longest(keys[5:]) == 0
    assert store.longest([]) == 0


def test_prefetched_entries_are_in_the_nearest_tier(store):
    for number in range(3):
        store.tiers[1].put(key(number), BODY)
    store.prefetch([key(number) for number in range(5)])
    store.flush()
    assert store.locate([key(number) for number in range(4)]) == ["host"] * 3


def test_deleted_entries_are_gone_everywhere(store):
    store.put(key(0), BODY)
    store.flush()
    assert store.delete(key(0))
    assert not store.delete(key(0))
    assert counts(store) == {"host": 0, "disk": 0}


def test_a_damaged_file_is_a_miss_and_the_entry_can_be_stored_again(folder, store):
    store.put(key(0), BODY)
    store.close()
    with Store(folder, host=None) as again:
        with open(again.tiers[0].path_of(key(0)), "r+b") as file:
            file.write(b"\xff")
        assert read(again, key(0)) is None
        assert again.stats().tiers[0].corrupt == 1
        assert again.put(key(0), BODY)
        assert read(again, key(0)) == BODY


@pytest.mark.parametrize("verdict", ["raises", "returns False"])
def test_entries_that_fail_verification_are_misses_and_set_aside(folder, store, verdict):
    def verify(data):
        if data[:3] == b"bad" and verdict == "raises":
            raise StoreError("bad frame")
        return data[:3] != b"bad"

    store.put(key(0), b"bad apple")
    store.put(key(1), b"good pear")
    store.close()
    with Store(folder, verify=verify) as again:
        assert read(again, key(0)) is None
        assert read(again, key(1)) == b"good pear"
        assert not again.contains(key(0))
        assert again.stats().corrupt == 1
        assert [event.key for event in again.events() if event.kind == "corrupt"] == [key(0).hex()]
    assert len(os.listdir(folder / "quarantine")) == 1


def test_what_a_reader_finds_corrupt_is_set_aside_everywhere(store):
    store.put(key(0), BODY)
    store.flush()
    store.set_aside(key(0))
    assert not store.contains(key(0))
    assert store.stats().corrupt == 1


@pytest.mark.parametrize("order", [0, 1])
def test_a_broken_tier_costs_nothing_but_its_entries(order):
    tiers = [HostTier(1 << 20), Broken()]
    with Store(tiers=tiers[::-1] if order else tiers) as store:
        assert store.put(key(0), BODY)
        store.flush()
        assert read(store, key(0)) == BODY
        assert read(store, key(1)) is None
        assert store.longest([key(0), key(1)]) == 1
        store.prefetch([key(0), key(1)])
        assert store.delete(key(0))
        store.flush()
        assert store.stats().errors > 0
        assert "the cable is out" in {event.detail for event in store.events()}


def test_a_store_of_broken_tiers_only_misses():
    with Store(tiers=[Broken()]) as store:
        assert not store.put(key(0), BODY)
        assert store.get(key(0)) is None
        assert not store.contains(key(0))
        assert store.stats().tiers == (TierStat("broken", errors=1),)


def test_namespaces_and_salts_share_nothing():
    tokens = list(range(600))
    with Store() as one, Store(namespace="b") as two, Store(salt="s") as three:
        keys = [one.chunk_keys("model", tokens)]
        keys += [one.chunk_keys("model", tokens, scope="tenant")]
        keys += [two.chunk_keys("model", tokens), three.chunk_keys("model", tokens)]
        keys += [one.chunk_keys("other", tokens)]
        assert [len(row) for row in keys] == [2] * 5
        assert len({key for row in keys for key in row}) == 10
        assert one.chunk_keys("model", tokens) == keys[0]
        assert len(one.chunk_keys("model", tokens, 100)) == 6


def test_a_namespace_keeps_to_its_quota(folder):
    with Store(folder, host="1MiB", disk="1MiB", namespace="tenant", quota=1000) as store:
        for number in range(9):
            assert store.put(key(number), bytes(300))
            store.flush()
        assert all(tier.bytes <= 1000 for tier in store.stats().tiers)
    with Store(folder, namespace="other", disk="1MiB") as other:
        assert other.put(key(50), bytes(5000))
        other.flush()
        assert counts(other)["disk"] == 4


def test_threads_may_put_get_and_delete_at_once(store):
    stop = threading.Event()

    def work(seed):
        for round_ in range(60):
            number = (seed * 7 + round_ * 3) % 40
            store.put(key(number), bytes([number]) * 50_000)
            found = read(store, key((number + seed) % 40))
            assert found in (None, bytes([(number + seed) % 40]) * 50_000)
            if round_ % 10 == 0:
                store.delete(key(number))

    assert not run_threads(work, 4)
    stop.set()
    store.flush()
    assert all(tier.leases == tier.writing == 0 for tier in store.stats().tiers)


def test_events_tell_the_story_in_order(store, tmp_path):
    path = tmp_path / "events.jsonl"
    with Store(host="1MiB", log=path) as logged:
        logged.get(key(0))
        logged.put(key(0), BODY)
        logged.get(key(0))
        logged.delete(key(0))
        kinds = [event.kind for event in logged.events()]
    assert kinds == ["miss", "put", "hit", "deleted"]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["kind"] for line in lines] == kinds
    assert lines[1]["nbytes"] == len(BODY)


def test_the_event_file_is_bounded(tmp_path):
    from recollect.store.events import EventLog

    log = EventLog(keep=5, path=tmp_path / "log", limit=2000)
    for number in range(100):
        log.add("hit", key(number))
    assert len(list(log)) == 5
    assert (tmp_path / "log").stat().st_size <= 2000
    assert (tmp_path / "log.1").stat().st_size <= 2000
    log.close()
    log.add("hit", key(0))


BAD = [
    ({"host": None}, "without tiers"),
    ({"host": "8 gigs"}, "cannot read the size"),
    ({"disk": "1GiB"}, "needs a folder"),
    ({"remote": "localhost"}, "no URL"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_configurations_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(StoreError, match=message):
        Store(**arguments)


def test_unknown_policies_and_arguments_are_refused():
    with pytest.raises(RecipeError, match="sieve"):
        Store(replacement="sive")
    with pytest.raises(RecipeError, match="colour"):
        Store(colour="blue")


def test_sizes():
    assert read_bytes("8GiB") == 8 << 30
    assert read_bytes("1.5 MB") == 1_500_000
    assert read_bytes("2k") == 2048
    assert read_bytes(77) == read_bytes("77") == 77
    assert [show_bytes(n) for n in (5, 2048, 3 << 29, 5 << 50)] == [
        "5 B",
        "2.0 KiB",
        "1.5 GiB",
        "5120.0 TiB",
    ]


def test_a_disk_tier_of_ones_own(tmp_path):
    with Store(tiers=[DiskTier(tmp_path / "store", 1 << 20)]) as store:
        assert store.put(key(0), BODY)
        assert read(store, key(0)) == BODY
