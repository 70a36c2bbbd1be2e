"""The index of a tier: finds what a dictionary finds, in little memory."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recollect.store.index import MISSING, Index
from recollect.store.tiers.base import Facts
from recollect.store.tiers.host import HostTier


def key(number: int) -> bytes:
    return number.to_bytes(32, "little")


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), max_size=120))
def test_it_finds_what_a_dictionary_finds(steps):
    index = Index()
    size = index.column("Q")
    there: dict[int, int] = {}
    for what, number in steps:
        slot = index.find(key(number))
        assert slot == there.get(number, MISSING)
        if what == 3:
            many = [n for n in range(number, number + 5) if n not in there]
            keys = np.frombuffer(b"".join(map(key, many)), np.uint8).reshape(-1, 32)
            for n, made in zip(many, index.extend(keys).tolist(), strict=True):
                there[n] = made
                size[made] = n
        elif slot == MISSING:
            there[number] = index.add(key(number))
            size[there[number]] = number
        elif what == 1:
            index.remove(slot)
            index.release(slot)
            del there[number]
    assert len(index) == len(there)
    assert sorted(index.slots()) == sorted(there.values())
    for number, slot in there.items():
        assert index.key(slot) == key(number)
        assert size[slot] == number


def test_slots_are_reused():
    index = Index()
    for number in range(1000):
        slot = index.add(key(number))
        index.remove(slot)
        index.release(slot)
    assert slot == 0


def test_books_take_less_than_two_hundred_bytes_per_entry():
    tier = HostTier(4 << 20)
    for number in range(20_000):
        tier.put(key(number), b"x", Facts())
    assert tier.stat().entries == 20_000
    assert tier._books.memory() <= 200 * 20_000
