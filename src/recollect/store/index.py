"""The index of a tier: 32-byte keys to slots, and what is known of each slot, in arrays.

A million entries take about 100 bytes each with everything; Python objects would take ten times
that. Lookups cost a few microseconds, whatever the number of entries.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np

from recollect.core.replacement.base import held, widen
from recollect.core.slot_table import EMPTY, SlotTable, hash_key, hash_keys
from recollect.store.tiers.base import KEY_BYTES

MISSING = EMPTY


class Index:
    """Keys to slots. A slot is a small integer, reused after `release`."""

    def __init__(self) -> None:
        self._keys = bytearray()
        self._hashes = array("Q")
        self._table = SlotTable(self._hashes)
        self._live = array("B")
        self._free = array("i")
        self._used = 0  # slots ever handed out
        self._columns = [self._hashes, self._live]

    def column(self, typecode: str) -> array:
        """A new array with a value for every slot (zero for those added later)."""
        column = array(typecode)
        self._columns.append(column)
        if self._live:
            widen(column, len(self._live) - 1)
        return column

    def __len__(self) -> int:
        return len(self._table)

    def find(self, key: bytes) -> int:
        """The slot of a key, or MISSING."""
        keys = self._keys
        return self._table.find(
            hash_key(key), lambda slot: keys[KEY_BYTES * slot : KEY_BYTES * (slot + 1)] == key
        )

    def add(self, key: bytes) -> int:
        """A slot for a key that is not there."""
        if self._free:
            slot = self._free.pop()
        else:
            slot = self._used
            self._used += 1
            self._hold(slot)
        self._keys[KEY_BYTES * slot : KEY_BYTES * (slot + 1)] = key
        self._hashes[slot] = hash_key(key)
        self._live[slot] = 1
        self._table.insert(slot)
        return slot

    def extend(self, keys: np.ndarray) -> np.ndarray:
        """Slots (N,) for many different keys (N, 32) uint8, none of which is there."""
        first = self._used
        slots = np.arange(first, first + len(keys), dtype=np.int32)
        if not len(keys):
            return slots
        self._used += len(keys)
        self._hold(self._used - 1)
        self._keys[KEY_BYTES * first : KEY_BYTES * (first + len(keys))] = keys.tobytes()
        np.frombuffer(self._hashes, np.uint64)[slots] = hash_keys(keys)
        np.frombuffer(self._live, np.uint8)[slots] = 1
        self._table.extend(slots)
        return slots

    def remove(self, slot: int) -> None:
        """Forget a slot's key, and keep the slot: its columns are still in use."""
        self._table.remove(slot)
        self._live[slot] = 0

    def release(self, slot: int) -> None:
        """Let a removed slot be handed out again."""
        self._free.append(slot)

    def key(self, slot: int) -> bytes:
        """The key of a slot in use."""
        return bytes(self._keys[KEY_BYTES * slot : KEY_BYTES * (slot + 1)])

    def hash(self, slot: int) -> int:
        """The 64-bit hash of a slot's key."""
        return self._hashes[slot]

    def hashes(self, slots: np.ndarray) -> np.ndarray:
        """Hashes (N,) uint64 of the keys of slots (N,)."""
        return np.frombuffer(self._hashes, np.uint64)[slots]

    def live(self, slot: int) -> bool:
        """Whether a slot still has its key."""
        return bool(self._live[slot])

    def slots(self) -> Iterator[int]:
        """Slots in use."""
        return (slot for slot, live in enumerate(self._live) if live)

    def nbytes(self) -> int:
        """Memory held."""
        columns = held(*self._columns, self._free)
        return len(self._keys) + columns + self._table.nbytes()

    def _hold(self, slot: int) -> None:
        if slot >= len(self._live):
            for column in self._columns:
                widen(column, slot)
            self._keys.extend(bytes(KEY_BYTES * len(self._live) - len(self._keys)))
