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
def measure(rows, group, statistics):
    """Of every row (n >= 1): mean, mean distance from the mean, mean distance of what is no anchor
    from its anchor, and the largest distance from the mean; statistics (4, C) float32."""
    channels, tokens = rows.shape
    others = max(1, tokens - (tokens + group - 1) // group)
    for c in range(channels):
        row = rows[c]
        total = 0.0
        for t in range(tokens):
            total += row[t]
        mean = np.float32(total / tokens)
        spread, reach = np.float32(0.0), np.float32(0.0)
        for t in range(tokens):
            distance = abs(row[t] - mean)
            spread += distance
            reach = max(reach, distance)
        delta = np.float32(0.0)
        for first in range(0, tokens, group):
            anchor = row[first]
            for t in range(first + 1, min(first + group, tokens)):
                delta += abs(row[t] - anchor)
        statistics[0, c], statistics[1, c] = mean, spread / np.float32(tokens)
        statistics[2, c], statistics[3, c] = delta / np.float32(others), reach


@numba.njit(**COMPILE)
def encode(
    rows, mean, delta, group, steps, fineness, mean_sizes, prices, codable, which, symbols, escapes
):  # fmt: skip
    """Symbols of rows (C, n) float32, channel after channel, anchors before deltas; the table of
    each run of symbols, and what has to be escaped. Returns how many escapes there are."""
    channels, tokens = rows.shape
    anchors = (tokens + group - 1) // group
    values = np.empty(tokens, np.int32)
    at, run, count = 0, 0, 0
    for c in range(channels):
        if delta[c]:
            _predict(rows[c], mean[c], group, steps[c], np.float32(fineness), values)
            ends = (anchors, tokens)
        else:
            scale = np.float32(1.0) / steps[c]
            for t in range(tokens):
                values[t] = np.int32(np.rint((rows[c, t] - mean[c]) * scale))
            ends = (0, tokens)
        begin = 0
        for end in ends:
            if end == 0 and not delta[c]:
                continue
            part = symbols[at + begin : at + end]
            table = _symbols(values[begin:end], mean_sizes, prices, part)
            which[run] = table
            run += 1
            for i in range(end - begin):
                if not codable[table, part[i]]:
                    part[i] = ESCAPE
                    escapes[count] = values[begin + i]
                    count += 1
            begin = end
        at += tokens
    return count


@numba.njit(**COMPILE)
def _predict(row, center, group, step, fineness, values):
    """Integers of a row's anchors, then of the others' distances from them as decoded."""
    tokens = row.size
    anchor_step = step / fineness
    scale, anchor_scale = np.float32(1.0) / step, np.float32(1.0) / anchor_step
    others = (tokens + group - 1) // group
    for first in range(0, tokens, group):
        anchor = np.rint((row[first] - center) * anchor_scale)
        values[first // group] = np.int32(anchor)
        base = center + anchor * anchor_step
        for t in range(first + 1, min(first + group, tokens)):
            values[others] = np.int32(np.rint((row[t] - base) * scale))
            others += 1


@numba.njit(**COMPILE)
def _symbols(values, mean_sizes, prices, symbols):
    """Fill in the symbols of a run, all that are within reach; returns its cheapest table."""
    total = 0
    counts = np.zeros(prices.shape[1], np.float32)
    for i in range(values.size):
        value = values[i]
        inside = -LARGEST <= value <= LARGEST
        symbols[i] = value + ZERO if inside else ESCAPE
        counts[symbols[i]] += np.float32(1.0)
        total += min(abs(value), LARGEST)
    return _cheapest(
        counts, np.float32(total) / np.float32(max(1, values.size)), mean_sizes, prices
    )


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
