"""The inner loops of CacheGen's codec, compiled by numba; each row is one channel over time.

Index arithmetic follows from shapes the caller has checked; symbols and escapes from a frame only
ever select values, never places.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import numba
import numpy as np

from recollect.core.codecs.distributions import ESCAPE, LARGEST, SHAPES, WIDTHS, ZERO
from recollect.core.kernels.cpu_loops import COMPILE

NEAR = 2  # widths tried around the one that fits the mean size


@numba.njit(**COMPILE)
def quantize(rows, mean, delta, group, steps, fineness, values):
    """Integers of rows (C, n) float32, channel after channel; anchors before deltas."""
    channels, tokens = rows.shape
    at = 0
    for c in range(channels):
        row, center = rows[c], mean[c]
        anchor_step = steps[c] / np.float32(fineness)
        scale, anchor_scale = np.float32(1.0) / steps[c], np.float32(1.0) / anchor_step
        if not delta[c]:
            for t in range(tokens):
                values[at + t] = np.int32(np.rint((row[t] - center) * scale))
            at += tokens
            continue
        others = at + (tokens + group - 1) // group
        for first in range(0, tokens, group):
            anchor = np.rint((row[first] - center) * anchor_scale)
            values[at] = np.int32(anchor)
            at += 1
            base = center + anchor * anchor_step
            for t in range(first + 1, min(first + group, tokens)):
                values[others] = np.int32(np.rint((row[t] - base) * scale))
                others += 1
        at = others


@numba.njit(**COMPILE)
def choose_symbols(values, lengths, mean_sizes, prices, codable, which, symbols, escapes):
    """The cheapest table of each row, its symbols, and what has to be escaped. Returns how many."""
    at, count = 0, 0
    for r in range(lengths.size):
        end = at + lengths[r]
        total = 0
        counts = np.zeros(prices.shape[1], np.float32)
        for i in range(at, end):
            value = values[i]
            inside = -LARGEST <= value <= LARGEST
            symbols[i] = value + ZERO if inside else ESCAPE
            counts[symbols[i]] += np.float32(1.0)
            total += min(abs(value), LARGEST)
        size = np.float32(total) / np.float32(max(1, end - at))
        table = which[r] = _cheapest(counts, size, mean_sizes, prices)
        for i in range(at, end):
            if not codable[table, symbols[i]]:
                symbols[i] = ESCAPE
                escapes[count] = values[i]
                count += 1
        at = end
    return count


@numba.njit(**COMPILE)
def _cheapest(counts, size, mean_sizes, prices):
    """Index of the table, near the widths whose mean size is `size`, that takes fewest bits."""
    best, fewest = 0, np.float32(np.inf)
    for shape in range(SHAPES):
        fitting = np.searchsorted(mean_sizes[shape], size)
        for width in range(max(0, fitting - NEAR), min(WIDTHS, fitting + NEAR)):
            table = shape * WIDTHS + width
            bits = np.float32(0.0)
            for s in range(counts.size):
                bits += counts[s] * prices[table, s]
            if bits < fewest:
                best, fewest = table, bits
    return best


@numba.njit(**COMPILE)
def dequantize(symbols, escapes, mean, delta, group, steps, fineness, rows):
    """Fill rows (C, n) float32 from symbols; missing escapes read as 0. Returns escapes wanted."""
    channels, tokens = rows.shape
    at, used = 0, 0
    anchors = (tokens + group - 1) // group
    values = np.empty(tokens, np.float32)
    for c in range(channels):
        row, center, step = rows[c], mean[c], steps[c]
        anchor_step = step / np.float32(fineness)
        for t in range(tokens):
            value = np.int32(symbols[at + t]) - ZERO
            if symbols[at + t] == ESCAPE:
                value = escapes[used] if used < escapes.size else np.int32(0)
                used += 1
            values[t] = value
        at += tokens
        if not delta[c]:
            for t in range(tokens):
                row[t] = center + values[t] * step
            continue
        i = anchors
        for a in range(anchors):
            first = a * group
            base = center + values[a] * anchor_step
            row[first] = base
            for t in range(first + 1, min(first + group, tokens)):
                row[t] = base + values[i] * step
                i += 1
    return used
