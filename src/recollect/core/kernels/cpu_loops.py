"""The inner loops of the CPU kernels, compiled by numba.

Work comes in units ``(segment, begin, end)``, a run of tokens of one KV head. All G * Q query rows
of the head share each tile of tokens: load (and widen or unpack) it to float32, take the logits,
update the running softmax, add the weighted values. Every function is compiled for one signature
only, whatever the dtype or number of bits, because compile time is paid by a user's first step.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2
TILE = 32  # tokens; a float32 tile of width 128 fills a third of a 48 KiB first-level cache

# No "nnan" or "ninf": hidden tokens are -inf.
COMPILE: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "arcp", "nsz"},
}
EXACT: dict[str, Any] = {**COMPILE, "fastmath": {"contract"}}


@numba.njit(**COMPILE)
def attend_rows(
    q, floats, halves, kind, k_offsets, k_stride, v_offsets, v_stride, widths, lengths,
    bias, bias_offsets, new, units, first_unit, last_unit, out, top, total,
):  # fmt: skip
    """Attend to rows of floats (or of 16-bit `halves`, by `kind`).

    q (S, R, D) is scaled already; row r is query ``r % new`` of its head. Token t of segment s lies at
    ``offsets[s] + t * stride`` of the flat keys or values, and `bias` at ``bias_offsets[s] + t``, if
    there is any. With ``new = 0`` every row sees every token. Partial results go to
    out (units, R, Dv), top and total (units, R).
    """
    rows, width, value_width = q.shape[1], widths[0], widths[1]
    keys = np.zeros((TILE, width), np.float32)
    values = np.zeros((TILE, value_width), np.float32)
    logits = np.zeros((rows, TILE), np.float32)
    for u in range(first_unit, last_unit):
        segment, begin, end = units[u, 0], units[u, 1], units[u, 2]
        _start(out[u], top[u], total[u])
        for t in range(begin, end, TILE):
            count = min(TILE, end - t)
            _load(
                keys, floats[0], halves[0], kind, k_offsets[segment] + t * k_stride, k_stride, count
            )
            _load(
                values,
                floats[1],
                halves[1],
                kind,
                v_offsets[segment] + t * v_stride,
                v_stride,
                count,
            )
            _logits(logits, q[segment], keys, count)
            if len(bias):
                _add_bias(logits, bias[bias_offsets[segment] + t :], count)
            if new and t + count > lengths[segment] - new + 1:
                _hide_future(logits, lengths[segment] - new + 1 - t, new, count)
            _softmax(logits, top[u], total[u], out[u], count)
            _accumulate(out[u], logits, values, count)


@numba.njit(**COMPILE)
def attend_packed(
    q, k_codes, k_scale, k_min, v_codes, v_scale, v_min, starts, group, value_group, bits_k, bits_v,
    units, first_unit, last_unit, out, top, total,
):  # fmt: skip
    """Attend to affine codes; see `codecs.affine.PackedKV` for the arrays (fp16 as uint16).

    Scale and minimum of a group of keys never touch a code: q · (c s + m) = (q s) · c + q · m, so they
    are folded into a copy of the queries, once per group.
    """
    rows, width = q.shape[1], q.shape[2]
    value_width = out.shape[2]
    keys = np.zeros((TILE, width), np.float32)
    values = np.zeros((TILE, value_width), np.float32)
    logits = np.zeros((rows, TILE), np.float32)
    scaled = np.zeros((rows, width), np.float32)
    shift = np.zeros(rows, np.float32)
    for u in range(first_unit, last_unit):
        segment, begin, end = units[u, 0], units[u, 1], units[u, 2]
        _start(out[u], top[u], total[u])
        for g in range(begin, end, group):
            row = starts[segment] + g
            _fold(scaled, shift, q[segment], k_scale[row // group], k_min[row // group])
            for t in range(row, row + group, TILE):
                count = min(TILE, row + group - t)
                _unpack_keys(keys, k_codes[t:], bits_k, count)
                _unpack_values(
                    values, v_codes[t:], v_scale[t:], v_min[t:], value_group, bits_v, count
                )
                _logits(logits, scaled, keys, count)
                for r in range(rows):
                    for i in range(count):
                        logits[r, i] += shift[r]
                _softmax(logits, top[u], total[u], out[u], count)
                _accumulate(out[u], logits, values, count)


@numba.njit(**COMPILE)
def reduce_units(units, out, top, total, merged, lse):
    """Merge the partial results of each segment's units, which follow each other, in place."""
    merged[:] = 0.0
    lse[:] = -np.inf
    u = 0
    while u < len(units):
        segment, last = units[u, 0], u
        while last < len(units) and units[last, 0] == segment:
            last += 1
        for r in range(merged.shape[1]):
            highest = np.float32(-np.inf)
            for w in range(u, last):
                highest = max(highest, top[w, r])
            if highest == -np.inf:
                continue
            mass = np.float32(0.0)
            for w in range(u, last):
                factor = np.exp(top[w, r] - highest)
                mass += factor * total[w, r]
                for d in range(merged.shape[2]):
                    merged[segment, r, d] += factor * out[w, r, d]
            lse[segment, r] = highest + np.log(mass)
            for d in range(merged.shape[2]):
                merged[segment, r, d] /= mass
        u = last


# -- tiles ---------------------------------------------------------------------------------------


@numba.njit(**COMPILE)
def _load(tile, floats, halves, kind, start, stride, count):
    width = tile.shape[1]
    for i in range(count):
        row, first = tile[i], start + i * stride
        if kind == FLOAT32:
            source = floats[first : first + width]
            for d in range(width):
                row[d] = source[d]
        elif kind == BFLOAT16:
            half = halves[first : first + width]
            for d in range(width):
                row[d] = _bfloat16(half[d])
        else:
            half = halves[first : first + width]
            for d in range(width):
                row[d] = _float16(half[d])
    _clear(tile, count)


@numba.njit(**COMPILE)
def _unpack_keys(tile, codes, bits, count):
    width = tile.shape[1]
    plane, mask = width * bits // 8, np.int32((1 << bits) - 1)
    for i in range(count):
        source = codes[i]
        for p in range(8 // bits):
            row, shift = tile[i, p * plane : (p + 1) * plane], np.int32(p * bits)
            for d in range(plane):
                row[d] = np.float32((np.int32(source[d]) >> shift) & mask)
    _clear(tile, count)


@numba.njit(**COMPILE)
def _unpack_values(tile, codes, scales, minima, group, bits, count):
    width = tile.shape[1]
    plane, mask = width * bits // 8, np.int32((1 << bits) - 1)
    # Runs of channels that share both a bit plane and a group.
    run = plane
    other = group
    while other:
        run, other = other, run % other
    for i in range(count):
        for first in range(0, width, run):
            p = first // plane
            source = codes[i, first - p * plane : first - p * plane + run]
            row, shift = tile[i, first : first + run], np.int32(p * bits)
            scale = _float16(scales[i, first // group])
            minimum = _float16(minima[i, first // group])
            for d in range(run):
                row[d] = np.float32((np.int32(source[d]) >> shift) & mask) * scale + minimum
    _clear(tile, count)


@numba.njit(**COMPILE)
def _clear(tile, count):
    """Zero the rows that `_accumulate`, which takes four at a time, may read after the last."""
    for i in range(count, min(len(tile), (count + 3) // 4 * 4)):
        tile[i] = 0.0


@numba.njit(**COMPILE)
def _fold(scaled, shift, q, scale, minimum):
    for r in range(q.shape[0]):
        source, target, dot = q[r], scaled[r], np.float32(0.0)
        for d in range(q.shape[1]):
            target[d] = source[d] * _float16(scale[d])
            dot += source[d] * _float16(minimum[d])
        shift[r] = dot


# -- attention -----------------------------------------------------------------------------------


@numba.njit(**COMPILE)
def _start(out, top, total):
    out[:] = 0.0
    top[:] = -np.inf
    total[:] = 0.0


@numba.njit(**COMPILE)
def _logits(logits, q, keys, count):
    """logits (R, n) = q (R, D) · keys (n, D), four rows at a time so that a key is read once."""
    rows, width = q.shape
    for r in range(0, rows - rows % 4, 4):
        q0, q1, q2, q3 = q[r], q[r + 1], q[r + 2], q[r + 3]
        for i in range(count):
            key = keys[i]
            s0 = s1 = s2 = s3 = np.float32(0.0)
            for d in range(width):
                x = key[d]
                s0 += q0[d] * x
                s1 += q1[d] * x
                s2 += q2[d] * x
                s3 += q3[d] * x
            logits[r, i], logits[r + 1, i], logits[r + 2, i], logits[r + 3, i] = s0, s1, s2, s3
    for r in range(rows - rows % 4, rows):
        query = q[r]
        for i in range(count):
            key, s = keys[i], np.float32(0.0)
            for d in range(width):
                s += query[d] * key[d]
            logits[r, i] = s


@numba.njit(**COMPILE)
def _add_bias(logits, bias, count):
    for r in range(logits.shape[0]):
        for i in range(count):
            logits[r, i] += bias[i]


@numba.njit(**COMPILE)
def _hide_future(logits, visible, new, count):
    """Query 0 sees the first `visible` tokens of the tile, each later query one more."""
    for r in range(logits.shape[0]):
        for i in range(max(0, visible + r % new), count):
            logits[r, i] = -np.inf


@numba.njit(**COMPILE)
def _softmax(logits, top, total, out, count):
    """Turn logits into weights relative to the highest so far, and rescale what was summed before."""
    padded = (count + 3) // 4 * 4
    for r in range(logits.shape[0]):
        row = logits[r]
        highest = _highest(row, count, top[r])
        if highest == -np.inf:
            row[:padded] = 0.0
            continue
        if highest > top[r]:
            factor = np.float32(0.0) if top[r] == -np.inf else np.exp(top[r] - highest)
            top[r] = highest
            total[r] *= factor
            before = out[r]
            for d in range(len(before)):
                before[d] *= factor
        for i in range(count):
            row[i] = _exp(row[i] - highest)
        row[count:padded] = 0.0
        mass = np.float32(0.0)
        for i in range(count):
            mass += row[i]
        total[r] += mass


@numba.njit(**{**COMPILE, "fastmath": {"nnan", "nsz"}})
def _highest(row, count, highest):
    for i in range(count):
        if row[i] > highest:
            highest = row[i]
    return highest


@numba.njit(**COMPILE)
def _accumulate(out, weights, values, count):
    """out (R, Dv) += weights (R, n) · values (n, Dv), two rows and four tokens at a time."""
    rows, width = out.shape
    for i in range(0, count, 4):
        v0, v1, v2, v3 = values[i], values[i + 1], values[i + 2], values[i + 3]
        for r in range(0, rows - rows % 2, 2):
            a, b = out[r], out[r + 1]
            a0, a1, a2, a3 = weights[r, i], weights[r, i + 1], weights[r, i + 2], weights[r, i + 3]
            r1 = r + 1
            b0, b1 = weights[r1, i], weights[r1, i + 1]
            b2, b3 = weights[r1, i + 2], weights[r1, i + 3]
            for d in range(width):
                x0, x1, x2, x3 = v0[d], v1[d], v2[d], v3[d]
                a[d] += a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3
                b[d] += b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3
        if rows % 2:
            r = rows - 1
            a = out[r]
            a0, a1, a2, a3 = weights[r, i], weights[r, i + 1], weights[r, i + 2], weights[r, i + 3]
            for d in range(width):
                a[d] += a0 * v0[d] + a1 * v1[d] + a2 * v2[d] + a3 * v3[d]


# -- numbers -------------------------------------------------------------------------------------


@intrinsic
def _float16(typing_context, bits):
    """Float32 value of the uint16 bits of a half."""

    def build(context, builder, signature, arguments):
        half = builder.bitcast(arguments[0], ir.HalfType())
        return builder.fpext(half, ir.FloatType())

    return types.float32(types.uint16), build


@intrinsic
def _bfloat16(typing_context, bits):
    """Float32 value of the uint16 bits of a bfloat16: the upper half of a float32."""

    def build(context, builder, signature, arguments):
        word = builder.zext(arguments[0], ir.IntType(32))
        return builder.bitcast(builder.shl(word, ir.Constant(ir.IntType(32), 16)), ir.FloatType())

    return types.float32(types.uint16), build


@intrinsic
def _power_of_two(typing_context, exponent):
    """2.0 ** exponent for an int32 in -126 … 127, by writing the exponent bits."""

    def build(context, builder, signature, arguments):
        biased = builder.add(arguments[0], ir.Constant(ir.IntType(32), 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(ir.IntType(32), 23)), ir.FloatType())

    return types.float32(types.int32), build


@numba.njit(**EXACT)
def _exp(x):
    """exp(x) for x <= 0 within 2e-7 relative, in arithmetic that vectorizes (numpy's does not)."""
    x = max(x, np.float32(-87.0))
    n = np.int32(x * np.float32(1.44269504) - np.float32(0.5))
    f = np.float32(n)
    r = x - f * np.float32(0.693359375) + f * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    return (p * r * r + r + np.float32(1.0)) * _power_of_two(n)
