"""What every tier promises: a test class inherits `TierContract` and provides a fixture `tier`."""

import gc
import threading

import pytest

from recollect.errors import StoreError

KEYS = [bytes([i]) * 32 for i in range(1, 6)]
BODY = bytes(range(256)) * 40


def read(tier, key):
    """The bytes of an entry, or None."""
    lease = tier.get(key)
    if lease is None:
        return None
    with lease:
        return bytes(lease.data)


class TierContract:
    def test_what_was_put_is_read_back(self, tier):
        assert tier.put(KEYS[0], BODY)
        assert read(tier, KEYS[0]) == BODY
        assert tier.contains(KEYS[0])
        assert read(tier, KEYS[1]) is None
        assert not tier.contains(KEYS[1])

    def test_an_entry_is_invisible_until_its_commit(self, tier):
        reservation = tier.reserve(KEYS[0], len(BODY))
        reservation.write(BODY[:100])
        reservation.write(BODY[100:])
        assert not tier.contains(KEYS[0])
        assert read(tier, KEYS[0]) is None
        assert list(tier.keys()) == []
        reservation.commit()
        assert read(tier, KEYS[0]) == BODY

    def test_leaving_the_block_without_a_commit_leaves_nothing(self, tier):
        with tier.reserve(KEYS[0], len(BODY)) as reservation:
            reservation.write(BODY)
        assert read(tier, KEYS[0]) is None
        reservation.abort()
        assert tier.put(KEYS[0], BODY)

    def test_a_lost_reservation_is_aborted(self, tier):
        reservation = tier.reserve(KEYS[0], len(BODY))
        reservation.write(BODY[:10])
        del reservation
        gc.collect()
        assert tier.put(KEYS[0], BODY)
        assert tier.stat().writing == 0

    def test_one_writer_at_a_time_and_entries_never_change(self, tier):
        first = tier.reserve(KEYS[0], len(BODY))
        assert tier.reserve(KEYS[0], len(BODY)) is None
        first.write(BODY)
        first.commit()
        assert tier.reserve(KEYS[0], len(BODY)) is None
        assert not tier.put(KEYS[0], b"else")
        assert read(tier, KEYS[0]) == BODY

    def test_the_number_of_bytes_is_kept_to(self, tier):
        reservation = tier.reserve(KEYS[0], 10)
        with pytest.raises(StoreError):
            reservation.write(bytes(11))
        reservation.abort()
        reservation = tier.reserve(KEYS[0], 10)
        reservation.write(bytes(9))
        with pytest.raises(StoreError):
            reservation.commit()
        assert read(tier, KEYS[0]) is None

    def test_deleted_entries_are_gone_and_leases_on_them_are_not(self, tier):
        tier.put(KEYS[0], BODY)
        lease = tier.get(KEYS[0])
        assert tier.delete(KEYS[0])
        assert not tier.delete(KEYS[0])
        assert read(tier, KEYS[0]) is None
        assert bytes(lease.data) == BODY
        lease.release()
        lease.release()
        assert tier.put(KEYS[0], b"new")
        assert read(tier, KEYS[0]) == b"new"

    def test_leased_bytes_are_read_only(self, tier):
        tier.put(KEYS[0], BODY)
        with tier.get(KEYS[0]) as lease, pytest.raises(TypeError):
            lease.data[0] = 1

    def test_keys_and_counts(self, tier):
        for i, key in enumerate(KEYS):
            tier.put(key, bytes(i + 1))
        tier.delete(KEYS[0])
        assert set(tier.keys()) == set(KEYS[1:])
        read(tier, KEYS[1])
        read(tier, KEYS[0])
        stat = tier.stat()
        assert (stat.entries, stat.bytes) == (4, 2 + 3 + 4 + 5)
        assert (stat.hits, stat.misses) == (1, 1)
        assert (stat.leases, stat.writing) == (0, 0)

    def test_the_longest_run_of_leading_keys(self, tier):
        for key in (KEYS[0], KEYS[1], KEYS[3]):
            tier.put(key, BODY)
        assert tier.leading(KEYS) == 2
        assert tier.leading([KEYS[2]]) == 0
        assert tier.leading([]) == 0
        assert tier.leading([KEYS[3]]) == 1

    def test_empty_entries(self, tier):
        assert tier.put(KEYS[0], b"")
        assert read(tier, KEYS[0]) == b""

    def test_many_writers_of_few_keys(self, tier):
        wins = []

        def write(i):
            for key in KEYS:
                if tier.put(key, key * (50 + key[0])):
                    wins.append(key)
                got = read(tier, key)
                assert got in (None, key * (50 + key[0]))

        failures = run_threads(write, 6)
        assert not failures
        assert sorted(wins) == sorted(KEYS)
        assert all(read(tier, key) == key * (50 + key[0]) for key in KEYS)
        assert (tier.stat().leases, tier.stat().writing) == (0, 0)

    def test_closing_twice(self, tier):
        tier.close()
        tier.close()


def run_threads(task, count):
    """Run task(0), task(1) … at once; the exceptions they raised."""
    failures = []

    def guarded(i):
        try:
            task(i)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures
