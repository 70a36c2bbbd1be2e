"""The inner loops of the CPU kernels, compiled by numba.

Work comes in units ``(segment, begin, end)``, a run of tokens of one KV head. All G * Q query rows
of the head share each tile of tokens: load (and widen or unpack) it to float32, take the logits,
update the running softmax, add the weighted values. Every function is compiled for one signature
only, whatever the dtype or number of bits, because compile time is paid by a user's first step.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

from typing import Any

import numba
import numpy as np

from recollect.core.kernels.lanes import (
    LANES,
    add,
    bfloat16,
    exp,
    float16,
    highest,
    larger,
    load,
    load_bfloat16,
    load_codes,
    load_float16,
    multiply,
    multiply_add,
    splat,
    store,
    store_totals,
    total,
)

FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2
TILE = 32  # tokens; a float32 tile of width 128 fills a third of a 48 KiB first-level cache


def _can_keep() -> bool:
    """Whether numba finds a folder to keep compiled code in; on a read-only system it raises."""

    def probe():
        return 0

    try:
        numba.njit(cache=True)(probe)
    except RuntimeError:
        return False
    return True


# No "nnan" or "ninf": hidden tokens are -inf.
COMPILE: dict[str, Any] = {
    "cache": _can_keep(),
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "arcp", "nsz"},
}


@numba.njit(**COMPILE)
def attend_rows(
    q, floats, halves, kind, k_offsets, k_stride, v_offsets, v_stride, value_width, width, lengths,
    bias, bias_offsets, new, units, first_unit, last_unit, out, top, mass,
):  # fmt: skip
    """Attend to rows of floats (or of 16-bit `halves`, by `kind`); both are (keys, values).

    q (S, R, D) is scaled; row r is query ``r % new`` of its head. Token t of segment s lies at
    ``offsets[s] + t * stride`` of the flat keys or values, and its bias, if there is any, at
    ``bias_offsets[s] + t``. With ``new = 0`` every row sees every token. Partial results go to
    out (units, R, Dv), top and mass (units, R). Widths of q and out are rounded up to LANES.
    """
    rows = q.shape[1]
    keys, values = _tile(width), _tile(value_width)
    logits, shift = np.zeros((rows, TILE), np.float32), np.zeros(rows, np.float32)
    for u in range(first_unit, last_unit):
        segment, begin, end = units[u, 0], units[u, 1], units[u, 2]
        k_start, v_start = k_offsets[segment], v_offsets[segment]
        visible = lengths[segment] - new + 1
        _start(out[u], top[u], mass[u])
        for t in range(begin, end, TILE):
            count = min(TILE, end - t)
            start = k_start + t * k_stride
            _load(keys, floats[0], halves[0], kind, start, k_stride, count, width)
            start = v_start + t * v_stride
            _load(values, floats[1], halves[1], kind, start, v_stride, count, value_width)
            _logits(logits, q[segment], keys, count)
            if len(bias):
                _add_bias(logits, bias[bias_offsets[segment] + t :], count)
            if new and t + count > visible:
                _hide_future(logits, visible - t, new, count)
            _softmax(logits, shift, top[u], mass[u], out[u], count)
            _accumulate(out[u], logits, values, count)


@numba.njit(**COMPILE)
def attend_packed(
    q, k_codes, k_scale, k_min, v_codes, v_scale, v_min, starts, group, value_group, bits_k, bits_v,
    units, first_unit, last_unit, out, top, mass,
):  # fmt: skip
    """Attend to affine codes; see `codecs.affine.PackedKV` for the arrays (fp16 as uint16).

    Scale and minimum of a group of keys never touch a code: q · (c s + m) = (q s) · c + q · m, so
    they are folded into a copy of the queries, once per group.
    """
    rows = q.shape[1]
    plane = v_codes.shape[1]
    keys, values = _tile(k_scale.shape[1]), _tile(plane * (8 // bits_v))
    logits, shift = np.zeros((rows, TILE), np.float32), np.zeros(rows, np.float32)
    scaled = np.zeros((rows, q.shape[2]), np.float32)
    run = _common_divisor(plane, value_group)
    for u in range(first_unit, last_unit):
        segment, begin, end = units[u, 0], units[u, 1], units[u, 2]
        _start(out[u], top[u], mass[u])
        for row in range(starts[segment] + begin, starts[segment] + end, group):
            _fold(scaled, shift, q[segment], k_scale[row // group], k_min[row // group])
            for t in range(row, row + group, TILE):
                count = min(TILE, row + group - t)
                _unpack_keys(keys, k_codes[t:], bits_k, count)
                _unpack_values(
                    values, v_codes[t:], v_scale[t:], v_min[t:], value_group, bits_v, count, run
                )
                _logits(logits, scaled, keys, count)
                _softmax(logits, shift, top[u], mass[u], out[u], count)
                _accumulate(out[u], logits, values, count)


@numba.njit(**COMPILE)
def reduce_units(units, out, top, mass, merged, lse):
    """Merge the partial results of each segment's units, which follow each other."""
    merged[:] = 0.0
    lse[:] = -np.inf
    u = 0
    while u < len(units):
        segment, last = units[u, 0], u
        while last < len(units) and units[last, 0] == segment:
            last += 1
        for r in range(merged.shape[1]):
            tallest = top[u:last, r].max()
            if tallest == -np.inf:
                continue
            whole, row = np.float32(0.0), merged[segment, r]
            for w in range(u, last):
                factor = np.float32(np.exp(top[w, r] - tallest))
                whole += factor * mass[w, r]
                part = out[w, r]
                for d in range(len(row)):
                    row[d] += factor * part[d]
            lse[segment, r] = tallest + np.log(whole)
            row /= whole
        u = last


@numba.njit(**COMPILE)
def _common_divisor(a, b):
    while b:
        a, b = b, a % b
    return a


# -- tiles: (TILE, width rounded up to LANES), zeros in the rest ----------------------------------


@numba.njit(**COMPILE)
def _tile(width):
    return np.zeros((TILE, padded(width)), np.float32)


@numba.njit(**COMPILE)
def padded(width):
    """Width rounded up to whole vectors."""
    return (width + LANES - 1) // LANES * LANES


@numba.njit(**COMPILE)
def _load(tile, floats, halves, kind, start, stride, count, width):
    even = width // LANES * LANES
    for i in range(count):
        row, first = tile[i], start + i * stride
        if kind == FLOAT32:
            for d in range(0, even, LANES):
                store(row, d, load(floats, first + d))
            for d in range(even, width):
                row[d] = floats[first + d]
        elif kind == BFLOAT16:
            for d in range(0, even, LANES):
                store(row, d, load_bfloat16(halves, first + d))
            for d in range(even, width):
                row[d] = bfloat16(halves[first + d])
        else:
            for d in range(0, even, LANES):
                store(row, d, load_float16(halves, first + d))
            for d in range(even, width):
                row[d] = float16(halves[first + d])


@numba.njit(**COMPILE)
def _unpack_keys(tile, codes, bits, count):
    plane, width, mask = codes.shape[1], tile.shape[1], np.int32((1 << bits) - 1)
    even = plane // LANES * LANES
    for p in range(8 // bits):
        shift = np.int32(p * bits)
        for i in range(count):
            source, target = i * plane, i * width + p * plane
            for d in range(0, even, LANES):
                store(tile, target + d, load_codes(codes, source + d, shift, mask))
            for d in range(even, plane):
                tile[i, p * plane + d] = (np.int32(codes[i, d]) >> shift) & mask


@numba.njit(**COMPILE)
def _unpack_values(tile, codes, scales, minima, group, bits, count, run):
    """Runs of `run` channels share both a bit plane and a group."""
    plane, width, mask = codes.shape[1], tile.shape[1], np.int32((1 << bits) - 1)
    even = run // LANES * LANES
    for first in range(0, plane * (8 // bits), run):
        p, g = first // plane, first // group
        shift, skip = np.int32(p * bits), first - p * plane
        for i in range(count):
            scale, minimum = float16(scales[i, g]), float16(minima[i, g])
            step, least = splat(scale), splat(minimum)
            source, target = i * plane + skip, i * width + first
            for d in range(0, even, LANES):
                code = load_codes(codes, source + d, shift, mask)
                store(tile, target + d, multiply_add(code, step, least))
            for d in range(even, run):
                code_ = np.float32((np.int32(codes[i, skip + d]) >> shift) & mask)
                tile[i, first + d] = code_ * scale + minimum


@numba.njit(**COMPILE)
def _fold(scaled, shift, q, scale, minimum):
    width = len(scale)
    even = width // LANES * LANES
    for r in range(q.shape[0]):
        source, target, sums = q[r], scaled[r], splat(np.float32(0.0))
        for d in range(0, even, LANES):
            x = load(source, d)
            store(target, d, multiply(x, load_float16(scale, d)))
            sums = multiply_add(x, load_float16(minimum, d), sums)
        dot = total(sums)
        for d in range(even, width):
            target[d] = source[d] * float16(scale[d])
            dot += source[d] * float16(minimum[d])
        shift[r] = dot


# -- attention: rows r two at a time, channels d LANES at a time -----------------------------------


@numba.njit(**COMPILE)
def _start(out, top, mass):
    out[:] = 0.0
    top[:] = -np.inf
    mass[:] = 0.0


@numba.njit(**COMPILE)
def _logits(logits, q, keys, count):
    """logits (R, n) = q (R, D) · keys (n, D)."""
    rows, width = q.shape
    zero = splat(np.float32(0.0))
    for r in range(0, rows - 1, 2):
        p, q_ = q[r], q[r + 1]
        for i in range(0, count, 4):
            k0, k1, k2, k3 = keys[i], keys[i + 1], keys[i + 2], keys[i + 3]
            a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = zero
            for d in range(0, width, LANES):
                a, b = load(p, d), load(q_, d)
                x0, x1, x2, x3 = load(k0, d), load(k1, d), load(k2, d), load(k3, d)
                a0, b0 = multiply_add(a, x0, a0), multiply_add(b, x0, b0)
                a1, b1 = multiply_add(a, x1, a1), multiply_add(b, x1, b1)
                a2, b2 = multiply_add(a, x2, a2), multiply_add(b, x2, b2)
                a3, b3 = multiply_add(a, x3, a3), multiply_add(b, x3, b3)
            store_totals(logits[r], i, a0, a1, a2, a3)
            store_totals(logits[r + 1], i, b0, b1, b2, b3)
    if rows % 2:
        p = q[rows - 1]
        for i in range(0, count, 4):
            k0, k1, k2, k3 = keys[i], keys[i + 1], keys[i + 2], keys[i + 3]
            a0 = a1 = a2 = a3 = zero
            for d in range(0, width, LANES):
                a = load(p, d)
                a0, a1 = multiply_add(a, load(k0, d), a0), multiply_add(a, load(k1, d), a1)
                a2, a3 = multiply_add(a, load(k2, d), a2), multiply_add(a, load(k3, d), a3)
            store_totals(logits[rows - 1], i, a0, a1, a2, a3)


@numba.njit(**COMPILE)
def _add_bias(logits, bias, count):
    for r in range(logits.shape[0]):
        for i in range(count):
            logits[r, i] += bias[i]


@numba.njit(**COMPILE)
def _hide_future(logits, visible, new, count):
    """Query 0 sees the first `visible` tokens of the tile, each later query one more."""
    for r in range(logits.shape[0]):
        logits[r, max(0, visible + r % new) : count] = -np.inf


@numba.njit(**COMPILE)
def _softmax(logits, shift, top, mass, out, count):
    """Turn logits + shift into weights relative to the highest so far; rescale earlier sums."""
    for r in range(logits.shape[0]):
        row = logits[r]
        row[count:] = -np.inf
        peak = load(row, 0)
        for i in range(LANES, TILE, LANES):
            peak = larger(peak, load(row, i))
        tallest = highest(peak) + shift[r]
        if tallest == -np.inf:
            row[:] = 0.0
            continue
        if tallest > top[r]:
            factor = np.float32(np.exp(top[r] - tallest))
            top[r] = tallest
            mass[r] *= factor
            before, factors = out[r], splat(factor)
            for d in range(0, len(before), LANES):
                store(before, d, multiply(load(before, d), factors))
        offset, sums = splat(shift[r] - top[r]), splat(np.float32(0.0))
        for i in range(0, TILE, LANES):
            weights = exp(add(load(row, i), offset))
            store(row, i, weights)
            sums = add(sums, weights)
        mass[r] += total(sums)
        row[count:] = 0.0


@numba.njit(**COMPILE)
def _accumulate(out, weights, values, count):
    """out (R, Dv) += weights (R, n) · values (n, Dv).

    Eight sums at once (two rows, two vectors, even and odd tokens) hide the latency of adding.
    """
    rows, width = out.shape
    even = width // (2 * LANES) * (2 * LANES)
    zero = splat(np.float32(0.0))
    if count % 2:
        values[count] = 0.0
    for r in range(0, rows - 1, 2):
        for d in range(0, even, 2 * LANES):
            p, q = r * width + d, (r + 1) * width + d
            a0, a1, b0, b1 = load(out, p), load(out, p + LANES), load(out, q), load(out, q + LANES)
            c0 = c1 = d0 = d1 = zero
            for i in range(0, count, 2):
                x = i * width + d
                x0, x1 = load(values, x), load(values, x + LANES)
                w, z = splat(weights[r, i]), splat(weights[r + 1, i])
                a0, a1 = multiply_add(w, x0, a0), multiply_add(w, x1, a1)
                b0, b1 = multiply_add(z, x0, b0), multiply_add(z, x1, b1)
                x += width
                x0, x1 = load(values, x), load(values, x + LANES)
                w, z = splat(weights[r, i + 1]), splat(weights[r + 1, i + 1])
                c0, c1 = multiply_add(w, x0, c0), multiply_add(w, x1, c1)
                d0, d1 = multiply_add(z, x0, d0), multiply_add(z, x1, d1)
            store(out, p, add(a0, c0))
            store(out, p + LANES, add(a1, c1))
            store(out, q, add(b0, d0))
            store(out, q + LANES, add(b1, d1))
    for r in range(rows):
        last_alone = r == rows - 1 and rows % 2 == 1
        for d in range(0 if last_alone else even, width, LANES):
            a0, a1 = load(out, r * width + d), zero
            for i in range(0, count, 2):
                x = i * width + d
                a0 = multiply_add(splat(weights[r, i]), load(values, x), a0)
                a1 = multiply_add(splat(weights[r, i + 1]), load(values, x + width), a1)
            store(out, r * width + d, add(a0, a1))
