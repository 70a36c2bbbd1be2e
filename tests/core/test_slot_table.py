"""The hash table of slots against a dictionary, with hashes that collide on purpose."""

from __future__ import annotations

from array import array

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recollect.core.slot_table import EMPTY, SlotTable, hash_key, hash_keys

# few homes, many slots: long runs, equal hashes, and runs over the end of the table
hashes = st.sampled_from([0, 1, 1 << 54, (1 << 64) - 1, (1 << 64) - 2, 5 << 55])


@given(st.lists(st.tuples(st.booleans(), hashes), max_size=200))
def test_it_finds_what_a_dictionary_finds(steps):
    column = array("Q")
    table = SlotTable(column)
    there: dict[int, int] = {}
    for enter, value in steps:
        if enter:
            column.append(value)
            table.insert(len(column) - 1)
            there[len(column) - 1] = value
        elif slots := [slot for slot, at in there.items() if at == value]:
            table.remove(slots[0])
            del there[slots[0]]
        assert len(table) == len(there)
    for value in {value for _, value in steps}:
        found = set()
        while (slot := table.find(value, lambda slot: slot not in found)) != EMPTY:  # noqa: B023
            found.add(slot)
        assert found == {slot for slot, at in there.items() if at == value}


def test_many_at_once_and_one_by_one_are_the_same():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**64, 5000, dtype=np.uint64)
    column = array("Q", values.tobytes())
    one, many = SlotTable(column), SlotTable(column)
    for slot in range(len(column)):
        one.insert(slot)
    many.extend(np.arange(3000))
    many.extend(np.arange(3000, 5000))
    for slot, value in enumerate(column):
        assert one.find(value) == many.find(value) == slot
    assert 8 <= many.nbytes() / len(many) <= 17


def test_both_forms_of_the_hash_agree_and_spread_counting_keys():
    keys = np.zeros((4096, 32), np.uint8)
    keys[:, 31] = np.arange(4096) & 255
    keys[:, 30] = np.arange(4096) >> 8
    values = hash_keys(keys)
    assert values.tolist() == [hash_key(key.tobytes()) for key in keys]
    homes = np.bincount((values >> np.uint64(51)).astype(int), minlength=1 << 13)
    assert homes.max() <= 8
