"""An entropy coder for small symbols: range asymmetric numeral systems (Duda, 1311.2540).

Symbols come in rows, each under one of a few static tables. Eight interleaved states share one
stream of 16-bit words, so that the processor works on several symbols at once, and a stream costs
about 16 bits more per state than its symbols are worth under their tables. The loops release the
interpreter lock: streams are coded in as many threads as the caller likes.

Decoding bytes that are not a stream of ours gives a StoreError: no read or write leaves its buffer,
whatever they are, and words left over or missing are noticed.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numba
import numpy as np

from recollect.core.kernels.cpu_loops import COMPILE
from recollect.errors import RecipeError, StoreError

BITS = 15  # precision of a table: frequencies sum to 2 ** BITS
TOTAL = 1 << BITS
LANES = 8
LOWEST = 1 << 16  # states live in [LOWEST, LOWEST << 16)
SYMBOLS = 256


@dataclass(frozen=True)
class Tables:
    """Static distributions over the symbols 0 … 255.

    Attributes:
        frequencies: (A, 256) uint16; each row sums to 2**15. A symbol of frequency 0 cannot be
            coded under that table.
    """

    frequencies: np.ndarray

    def __post_init__(self) -> None:
        shape = self.frequencies.shape
        if len(shape) != 2 or shape[1] != SYMBOLS or not shape[0]:
            raise RecipeError(f"tables are (A, {SYMBOLS}), got {shape}")
        if bool((self.frequencies.sum(1, dtype=np.int64) != TOTAL).any()):
            raise RecipeError(f"the frequencies of a table must sum to {TOTAL}")

    @classmethod
    def from_counts(cls, counts: np.ndarray) -> Self:
        """Tables for symbols counted (A, S <= 256), each of the S with a frequency of at least 1:
        what was never seen can still be coded."""
        rows = [_normalized(np.asarray(row, np.float64)) for row in counts]
        return cls(np.stack(rows))

    @cached_property
    def starts(self) -> np.ndarray:
        """(A, 256) uint16: where each symbol's slots begin."""
        ends = np.cumsum(self.frequencies, axis=1, dtype=np.int64)
        return (ends - self.frequencies).astype(np.uint16)

    @cached_property
    def lookup(self) -> np.ndarray:
        """(A, 2**15) uint8: the symbol of each slot."""
        symbols = np.arange(SYMBOLS, dtype=np.uint8)
        return np.stack([np.repeat(symbols, row) for row in self.frequencies])

    @cached_property
    def costs(self) -> np.ndarray:
        """(A, 256) float32: bits of each symbol, infinite where it cannot be coded."""
        with np.errstate(divide="ignore"):
            return (BITS - np.log2(self.frequencies)).astype(np.float32)


def encode(symbols: np.ndarray, tables: Tables, lengths: np.ndarray, which: np.ndarray) -> bytes:
    """Code rows of symbols.

    Args:
        symbols: (N,) uint8, row after row.
        lengths: (R,) symbols of each row; they sum to N.
        which: (R,) index of each row's table.

    Raises:
        RecipeError: lengths or tables that do not fit, or a symbol of frequency 0.
    """
    lengths, which = _checked_rows(len(symbols), tables, lengths, which)
    words = np.empty(len(symbols), np.uint16)
    states = np.full(LANES, LOWEST, np.uint64)
    first = _encode(
        np.ascontiguousarray(symbols, np.uint8), tables.frequencies, tables.starts, lengths, which,
        states, words,
    )  # fmt: skip
    if first < 0:
        raise RecipeError("a symbol has frequency 0 under its table")
    return states.astype("<u4").tobytes() + words[first:].astype("<u2").tobytes()


def decode(data: bytes, tables: Tables, lengths: np.ndarray, which: np.ndarray) -> np.ndarray:
    """The inverse of `encode`: symbols (N,) uint8.

    Raises:
        StoreError: these bytes are no stream coded with these rows and tables.
        RecipeError: tables that do not exist.
    """
    lengths, which = _checked_rows(int(np.sum(lengths)), tables, lengths, which)
    if len(data) < 4 * LANES or len(data) % 2:
        raise StoreError(f"an entropy-coded stream of {len(data)} bytes is truncated")
    states = np.frombuffer(data, "<u4", LANES).astype(np.uint64)
    words = np.frombuffer(data, "<u2", offset=4 * LANES).astype(np.uint16)
    symbols = np.empty(int(lengths.sum()), np.uint8)
    used = _decode(
        words, states, tables.lookup, tables.frequencies, tables.starts, lengths, which, symbols
    )
    if used != len(words) or bool((states != LOWEST).any()):
        raise StoreError("an entropy-coded stream is corrupt: it does not end where it should")
    return symbols


def _checked_rows(
    total: int, tables: Tables, lengths: np.ndarray, which: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.ascontiguousarray(lengths, np.int64)
    which = np.ascontiguousarray(which, np.int64)
    if lengths.shape != which.shape or lengths.ndim != 1:
        raise RecipeError(f"{len(lengths)} rows but {len(which)} choices of a table")
    if bool((lengths < 0).any()) or int(lengths.sum()) != total:
        raise RecipeError(f"rows of {int(lengths.sum())} symbols do not make {total}")
    if bool(((which < 0) | (which >= len(tables.frequencies))).any()):
        raise RecipeError(f"there are tables 0 to {len(tables.frequencies) - 1} only")
    return lengths, which


def _normalized(counts: np.ndarray) -> np.ndarray:
    """Frequencies (256,) that sum to TOTAL, at least 1 for each given symbol, cheapest in bits."""
    if not 0 < len(counts) <= SYMBOLS or not np.isfinite(counts).all() or (counts < 0).any():
        raise RecipeError("counts are 1 to 256 numbers that are not negative")
    share = counts / counts.sum() if counts.sum() > 0 else np.full(len(counts), 1 / len(counts))
    found = np.maximum(1, np.rint(share * TOTAL)).astype(np.int64)
    while (excess := int(found.sum()) - TOTAL) != 0:
        step = -1 if excess > 0 else 1
        # Bits lost by giving a symbol one slot less, or won by giving it one more.
        allowed = found > -step
        change = np.full(len(found), math.inf)
        change[allowed] = share[allowed] * np.abs(np.log1p(step / found[allowed]))
        best = int(change.argmin() if step < 0 else change.argmax())
        found[best] += step
    return np.pad(found, (0, SYMBOLS - len(counts))).astype(np.uint16)


@numba.njit(**COMPILE)
def _encode(symbols, frequencies, starts, lengths, which, states, words):
    """Fill `words` from its end, last symbol first. Returns the first word used, or -1."""
    at = symbols.size - 1
    first = words.size
    for r in range(lengths.size - 1, -1, -1):
        frequency, start = frequencies[which[r]], starts[which[r]]
        for _ in range(lengths[r]):
            symbol = symbols[at]
            slots = np.uint64(frequency[symbol])
            if slots == 0:
                return -1
            lane = at & (LANES - 1)
            x = states[lane]
            if x >= slots << np.uint64(32 - BITS):
                first -= 1
                words[first] = np.uint16(x & np.uint64(0xFFFF))
                x >>= np.uint64(16)
            whole = np.uint64(np.uint32(x) // np.uint32(slots))
            rest = x - whole * slots
            states[lane] = (whole << np.uint64(BITS)) + rest + np.uint64(start[symbol])
            at -= 1
    return first


@numba.njit(**COMPILE)
def _decode(words, states, lookup, frequencies, starts, lengths, which, symbols):
    """Fill `symbols`; words that are missing read as 0. Returns how many words were wanted."""
    at, used, there = 0, 0, words.size
    for r in range(lengths.size):
        slots, frequency, start = lookup[which[r]], frequencies[which[r]], starts[which[r]]
        for _ in range(lengths[r]):
            lane = at & (LANES - 1)
            x = states[lane]
            slot = x & np.uint64(TOTAL - 1)
            symbol = slots[slot]
            x = np.uint64(frequency[symbol]) * (x >> np.uint64(BITS)) + slot
            x -= np.uint64(start[symbol])
            if x < np.uint64(LOWEST):
                word = np.uint64(0)
                if used < there:
                    word = np.uint64(words[used])
                used += 1
                x = (x << np.uint64(16)) | word
            states[lane] = x
            symbols[at] = symbol
            at += 1
    return used
