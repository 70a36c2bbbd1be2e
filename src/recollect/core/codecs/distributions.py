"""A fixed family of distributions over small integers, one of which suits any quantized channel.

Symbol 0 is the escape; symbol s stands for the integer s - 128. Each table is a Laplace or Gauss
distribution, or halfway between, of one of 36 widths; what is too rare for a slot is left to the
escape. With such a family a stream needs no tables of its own, only a byte per channel.

Streams outlive processes and machines, so every table must be the same everywhere: only operations
whose result IEEE 754 prescribes are used, and a test holds the digest.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from recollect.core.codecs.entropy import SYMBOLS, TOTAL, Tables

FAMILY = 1  # number of this family; streams say which they were coded with
ESCAPE = 0
ZERO = 128  # the symbol of the integer 0
LARGEST = 127  # integers from -127 to 127 have symbols of their own
SHAPES = 3  # Laplace, halfway, Gauss
WIDTHS = 36
NARROWEST = 0.08  # standard deviation of the first width; each next one is 2 ** (1/4) wider
FEWEST_ESCAPES = 8  # slots: no table makes any symbol free
ESCAPED_BITS = np.float32(32.0)  # an escaped integer is stored whole
POINTS = 8  # samples of the density per integer


@functools.cache
def family() -> Tables:
    """The tables, (108, 256): shape after shape, each from narrow to wide."""
    ratio = math.sqrt(math.sqrt(2.0))
    rows, width = [], NARROWEST
    for _ in range(WIDTHS):
        rows.append(_shapes(width))
        width *= ratio
    return Tables(np.stack([row[shape] for shape in range(SHAPES) for row in rows]))


@functools.cache
def mean_sizes() -> np.ndarray:
    """(SHAPES, 36) float32: expected absolute value under each table, rising along each shape."""
    sizes = np.abs(np.arange(SYMBOLS) - ZERO)
    frequencies = family().frequencies.astype(np.float64)
    frequencies[:, ESCAPE] = 0
    means = (frequencies * sizes).sum(1) / frequencies.sum(1)
    return means.reshape(SHAPES, WIDTHS).astype(np.float32)


@functools.cache
def codable() -> np.ndarray:
    """(108, 256) bool: which symbols have slots of their own; the escape is not among them."""
    there = family().frequencies > 0
    there[:, ESCAPE] = False
    return there


@functools.cache
def prices() -> np.ndarray:
    """(108, 256) float32: bits of each symbol, through the escape where it has no slots."""
    costs = family().costs
    return np.where(codable(), costs, costs[:, ESCAPE : ESCAPE + 1] + ESCAPED_BITS)


def _shapes(width: float) -> list[np.ndarray]:
    """Frequencies (256,) of each shape with that standard deviation."""
    integers = np.arange(1, SYMBOLS)[:, None] - ZERO
    samples = np.abs(integers + ((np.arange(POINTS) + 0.5) / POINTS - 0.5)) / width
    laplace = _mass(_exp_of_minus(samples * math.sqrt(2.0)))
    gauss = _mass(_exp_of_minus(samples * samples / 2))
    halfway = [(a + b) / 2 for a, b in zip(laplace, gauss, strict=True)]
    return [_frequencies(mass) for mass in (laplace, halfway, gauss)]


def _mass(density: np.ndarray) -> list[float]:
    """Probabilities of the integers (255,) from samples of the density (255, POINTS)."""
    rows = [math.fsum(row) for row in density.tolist()]
    total = math.fsum(rows)
    return [row / total for row in rows]


def _exp_of_minus(y: np.ndarray) -> np.ndarray:
    """exp(-y) for y >= 0 from sums and products alone, whose rounding is prescribed."""
    small = np.minimum(y, 80.0) / 1024
    power, term = np.ones_like(small), np.ones_like(small)
    for i in range(1, 8):
        term = term * small / i
        power = power + term
    for _ in range(10):
        power = power * power
    return 1.0 / power


def _frequencies(mass: list[float]) -> np.ndarray:
    """Slots (256,): the integers' by largest remainder, the escape's from what is rare."""
    there = TOTAL - FEWEST_ESCAPES
    found = [math.floor(share * there) for share in mass]
    rare = math.fsum(share for share, slots in zip(mass, found, strict=True) if not slots)
    escapes = FEWEST_ESCAPES + math.floor(rare * there)
    left = TOTAL - escapes - sum(found)
    parts = [
        share * there - slots if slots else -1.0 for share, slots in zip(mass, found, strict=True)
    ]
    order = sorted(range(len(mass)), key=lambda i: (-parts[i], i))
    for i in order[:left]:
        found[i] += 1
    return np.array([escapes, *found], np.uint16)
