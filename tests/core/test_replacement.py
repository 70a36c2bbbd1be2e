"""Replacement policies against published miss counts, and against their own definitions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recollect.core.replacement import POLICIES, TTL, Replacement, policy
from recollect.errors import RecipeError

EVERY = pytest.mark.parametrize("name", POLICIES)


class Cache:
    """The owner's side of a policy: room, slots, and who is where."""

    def __init__(self, policy: Replacement) -> None:
        self.policy = policy
        self.slot: dict[object, int] = {}
        self.size: dict[object, int] = {}
        self.free: list[int] = []
        self.made = 0

    def ask(self, key: object, size: int = 1, cost: float = 1.0, pinned: tuple = ()) -> bool:
        """Whether it was there; it is afterwards, if there is room."""
        if key in self.slot:
            self.policy.touch(self.slot[key])
            return True
        value = hash(("key", key)) & (2**64 - 1)
        place = self.policy.place(value, size)
        held = {self.slot[key] for key in pinned if key in self.slot}
        while sum(self.size.values()) + size > self.policy.capacity:
            victim = self.policy.evict(held.__contains__)
            if victim is None:
                return False
            self.drop(next(key for key, slot in self.slot.items() if slot == victim))
        self.slot[key] = self.free.pop() if self.free else self.made
        self.made = max(self.made, self.slot[key] + 1)
        self.size[key] = size
        self.policy.admit(self.slot[key], value, size, cost, place)
        return False

    def drop(self, key: object) -> None:
        self.free.append(self.slot.pop(key))
        del self.size[key]

    def delete(self, key: object) -> None:
        self.policy.forget(self.slot[key])
        self.drop(key)


def misses(name: str, capacity: int, keys: list[int]) -> int:
    """Misses with entries of size one; without `Cache`, whose books are slow."""
    policy, slot_of, key_of, made = POLICIES[name](capacity), {}, {}, 0
    missed = 0
    for key in keys:
        slot = slot_of.get(key)
        if slot is not None:
            policy.touch(slot)
            continue
        missed += 1
        value = key * 0x9E3779B97F4A7C15 % 2**64
        place = policy.place(value, 1)
        if len(slot_of) == capacity:
            slot = policy.evict()
            del slot_of[key_of[slot]]
        else:
            slot, made = made, made + 1
        slot_of[key], key_of[slot] = slot, key
        policy.admit(slot, value, 1, 1.0, place)
    return missed


def skewed_keys() -> list[int]:
    """50,000 keys of 2,000, the small ones more often: the second vector."""
    x, keys = 42, []
    for _ in range(50_000):
        x = (1103515245 * x + 12345) % 2**31
        keys.append(int((x / 2**31) ** 3 * 2000))
    return keys


# first in first out (a time to live that is not renewed), and the published ones
VECTOR_1 = {
    "ttl": "mmmHHmmmmHmmmm",
    "lru": "mmmHHmHmmHmmmm",
    "lfu": "mmmHHmHmmHmHmH",
    "sieve": "mmmHHmHmmHmHmm",
}
VECTOR_2 = {
    "ttl": (42720, 35295, 19749),
    "lru": (41684, 33755, 17826),
    "lfu": (37909, 30018, 16183),
    "sieve": (37158, 29329, 15984),
    "s3fifo": (36959, 29363, 16428),
}


@pytest.mark.parametrize("name", VECTOR_1)
def test_hits_of_a_small_example(name):
    cache = Cache(POLICIES[name](3))
    assert "".join("mH"[cache.ask(key)] for key in "ABCAADABEBCADB") == VECTOR_1[name]


@pytest.mark.parametrize("name", VECTOR_2)
def test_misses_of_a_skewed_stream(name):
    keys = skewed_keys()
    assert keys[:10] == [394, 280, 202, 938, 151, 0, 145, 1057, 459, 730]
    assert tuple(misses(name, size, keys) for size in (50, 200, 800)) == VECTOR_2[name]


def test_gdsf_follows_its_formula():
    cache = Cache(POLICIES["gdsf"](100))
    uses, age, priority = {}, 0.0, {}
    stream = [(key % 23, 1 + key % 7 * 3, 1 + key % 5) for key in skewed_keys()[:3000]]
    kept: dict[int, int] = {}
    for key, _, _ in stream:
        size, cost = 1 + key % 7 * 3, 1 + key % 5
        if key not in kept:
            while sum(kept.values()) + size > 100:
                victim = min(priority, key=lambda k: priority[k])
                age = priority[victim][0]
                del kept[victim], priority[victim], uses[victim]
            kept[key], uses[key] = size, 0
        uses[key] += 1
        priority[key] = (age + uses[key] * (1e6 * cost / size), len(priority) + time_of(priority))
        cache.ask(key, size, cost)
        assert set(cache.slot) == set(kept)


def time_of(priority: dict) -> int:
    """A turn later than every one so far."""
    return max((turn for _, turn in priority.values()), default=0) + 1


def test_costly_entries_outlive_cheap_ones_in_gdsf():
    cache = Cache(POLICIES["gdsf"](2))
    cache.ask("costly", cost=100.0)
    cache.ask("cheap")
    cache.ask("new")
    assert set(cache.slot) == {"costly", "new"}


def test_s3fifo_filters_a_scan():
    cache = Cache(POLICIES["s3fifo"](40))
    for _ in range(3):
        for key in range(10):
            cache.ask(key)
    for key in range(100, 500):
        cache.ask(key)
    assert set(range(10)) <= set(cache.slot)


@EVERY
def test_entries_as_large_as_the_cache_are_kept(name):
    cache = Cache(POLICIES[name](10))
    cache.ask("large", size=10)
    assert cache.ask("large", size=10)


steps = st.tuples(st.integers(0, 15), st.booleans(), st.sets(st.integers(0, 15), max_size=4))


@EVERY
@settings(max_examples=40)
@given(st.lists(steps, max_size=60))
def test_victims_are_entries_that_are_there_and_not_pinned(name, stream):
    cache = Cache(POLICIES[name](12))
    for key, delete, pinned in stream:
        if key in cache.slot and delete:
            cache.delete(key)
            continue
        before = pinned & set(cache.slot)
        cache.ask(key, size=1 + key % 5, pinned=tuple(pinned))
        assert before <= set(cache.slot)
        assert sum(cache.size.values()) <= 12


@EVERY
def test_a_full_cache_of_pinned_entries_has_no_victim(name):
    cache = Cache(POLICIES[name](3))
    for key in "abcab":
        cache.ask(key)
    everything = set(cache.slot.values())
    assert cache.policy.evict(everything.__contains__) is None
    assert {cache.policy.evict() for _ in range(3)} == everything
    assert cache.policy.evict() is None


@EVERY
def test_memory_per_entry_is_small(name):
    made = POLICIES[name](5000)
    for slot in range(5000):
        made.admit(slot, slot, 1)
    assert made.nbytes() <= 64 * 5000


def test_time_to_live():
    now = [0.0]
    ttl = TTL(10, seconds=5, renew=True, clock=lambda: now[0])
    for slot in range(3):
        now[0] = float(slot)
        ttl.admit(slot, slot, 1)
    assert not list(ttl.expired())
    now[0] = 4.5
    ttl.touch(0)
    now[0] = 6.5
    assert list(ttl.expired()) == [1]
    assert ttl.evict() == 1
    now[0] = -100.0  # a clock that jumps back ends nothing
    assert not list(ttl.expired())


def test_policies_are_found_by_name():
    assert type(policy("S3-FIFO", 10)).__name__ == "S3FIFO"
    assert policy("ttl(seconds=60, renew=True)", 10).seconds == 60
    with pytest.raises(RecipeError, match="did you mean 'lru'"):
        policy("lruu", 10)
    for wrong in ("ttl(60)", "lru(seconds=1)", "ttl(seconds=", "ttl(seconds='x'"):
        with pytest.raises(RecipeError, match="replacement policy"):
            policy(wrong, 10)
