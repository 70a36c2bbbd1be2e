"""A hash table from 64-bit hashes to slots, 8 to 16 bytes per entry.

A slot is a small integer under which its owner keeps columns (arrays) of facts; a Python dict
would spend ten times the memory on objects. Linear probing over an array of slots; deletion shifts
back, so there are no tombstones.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable

import numpy as np

EMPTY = -1
_WORD = (1 << 64) - 1
_UNPACK = struct.Struct("<4Q").unpack
# odd multipliers: fractional parts of the square roots of 2, 3, 5 and 7
_ODD = (0x6A09E667F3BCC909, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1)


class SlotTable:
    """Slots by hash. The owner keeps `hashes[slot]` and may extend that array.

    Hashes must be spread over their highest bits. At most half of the places are taken; doubling
    is vectorized (a million entries: about a tenth of a second, once).
    """

    def __init__(self, hashes: array[int]) -> None:
        self._hashes = hashes
        self._count = 0
        self._resize(10, np.empty(0, np.int32))

    def __len__(self) -> int:
        return self._count

    def find(self, value: int, same: Callable[[int], bool] | None = None) -> int:
        """The slot of that hash for which `same(slot)` holds, or EMPTY."""
        places, hashes = self._places, self._hashes
        i = value >> self._shift
        while (slot := places[i]) != EMPTY:
            if hashes[slot] == value and (same is None or same(slot)):
                return slot
            i += 1
        return EMPTY

    def insert(self, slot: int) -> None:
        """Enter a slot that is not in the table, under `hashes[slot]`."""
        places = self._places
        i = self._hashes[slot] >> self._shift
        while places[i] != EMPTY:
            i += 1
        places[i] = slot
        if i + 1 == len(places):
            places.append(EMPTY)  # the last place is always empty: probing needs no wrap
        self._count += 1
        if 2 * self._count > 1 << self._bits:
            self._resize(self._bits + 1, self._slots())

    def remove(self, slot: int) -> None:
        """Take out a slot that is in the table."""
        places, hashes, shift = self._places, self._hashes, self._shift
        hole = hashes[slot] >> shift
        while places[hole] != slot:
            hole += 1
        i = hole + 1
        while (other := places[i]) != EMPTY:
            if hashes[other] >> shift <= hole:
                places[hole], hole = other, i
            i += 1
        places[hole] = EMPTY
        self._count -= 1

    def extend(self, slots: np.ndarray) -> None:
        """Enter many slots (N,) int32 at once, none of which is in the table."""
        merged = np.concatenate([self._slots(), slots.astype(np.int32)])
        self._count = len(merged)
        self._resize(max(self._bits, (2 * len(merged)).bit_length()), merged)

    def nbytes(self) -> int:
        """Memory held."""
        return len(self._places) * self._places.itemsize

    def _slots(self) -> np.ndarray:
        places = np.frombuffer(self._places, np.int32)
        return places[places != EMPTY]

    def _resize(self, bits: int, slots: np.ndarray) -> None:
        """A table of 2**bits places: each slot at the first free place from its home on."""
        self._bits, self._shift = bits, 64 - bits
        # copied, so that the owner's array can grow again
        hashes = np.frombuffer(self._hashes, np.uint64)[slots] if len(slots) else np.empty(0)
        home = (hashes.astype(np.uint64) >> np.uint64(self._shift)).astype(np.int64)
        order = np.argsort(home, kind="stable")
        rank = np.arange(len(slots))
        place = np.maximum.accumulate(home[order] - rank) + rank
        size = max(1 << bits, int(place[-1]) + 1 if len(place) else 0) + 1
        places = np.full(size, EMPTY, np.int32)
        places[place] = slots[order]
        self._places = array("i", places.tobytes())


def hash_key(key: bytes) -> int:
    """A 64-bit hash of 32 bytes: multiply and add, modulo 2**64, as `hash_keys` does."""
    a, b, c, d = _UNPACK(key)
    return (a * _ODD[0] + b * _ODD[1] + c * _ODD[2] + d * _ODD[3]) & _WORD


def hash_keys(keys: np.ndarray) -> np.ndarray:
    """Hashes (N,) uint64 of keys (N, 32) uint8."""
    words = np.ascontiguousarray(keys).view("<u8")
    return (words * np.array(_ODD, np.uint64)).sum(1, dtype=np.uint64)
