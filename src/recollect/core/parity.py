"""One lost shard out of n, rebuilt: XOR parity over equal slices, as disks do it (RAID 5).

Data are cut into n - 1 slices of equal length (the last is shorter: it counts as padded with
zeros) and their XOR is the n-th. Which of the n holders gets the parity rotates from entry to
entry, so that none of them is written twice as often. REFT keeps training snapshots this way in
host memory (Wang et al. 2023, arXiv 2310.12670).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from typing_extensions import Buffer


def slice_length(nbytes: int, slices: int) -> int:
    """Length of every slice but the last; also the length of the parity. In bytes."""
    if nbytes < 0 or slices < 1:
        raise ValueError(f"cannot cut {nbytes} bytes into {slices} slices")
    return -(-nbytes // slices)


def bounds(nbytes: int, slices: int) -> list[tuple[int, int]]:
    """(first, end) of each slice. Ends lie within the data, so late slices may be empty."""
    length = slice_length(nbytes, slices)
    return [(min(i * length, nbytes), min((i + 1) * length, nbytes)) for i in range(slices)]


def xor_into(target: np.ndarray, data: Buffer, at: int = 0) -> None:
    """XOR `data` into the uint8 array `target` from byte `at` on, in place."""
    source = np.frombuffer(memoryview(data), np.uint8)
    window = target[at : at + len(source)]
    np.bitwise_xor(window, source, out=window)


def parity(slices: Sequence[Buffer], length: int) -> np.ndarray:
    """XOR of `slices`, each zero-padded to `length` bytes; (length,) uint8."""
    total = np.zeros(length, np.uint8)
    for data in slices:
        xor_into(total, data)
    return total


def rebuild(others: Sequence[Buffer], length: int, missing: int) -> np.ndarray:
    """The lost slice, of `missing` bytes, from all the others and the parity; (missing,) uint8.

    `length` is `slice_length`. Also makes a lost parity from all slices.
    """
    return parity(others, length)[:missing]


def parity_holder(key: bytes, holders: int) -> int:
    """Which of `holders` keeps the parity of `key`: uniform over keys."""
    return zlib.crc32(key) % holders
