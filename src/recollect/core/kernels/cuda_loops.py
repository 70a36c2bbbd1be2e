# mypy: allow-untyped-defs, allow-incomplete-defs
"""The Triton programs behind `cuda`: attend to a run of tokens of one KV head, and merge runs.

Offsets are 64-bit, since a cache may hold more than 2**31 elements. Codes of up to 8 bits are exact
in 16-bit floats, so the products run on tensor cores in the query's dtype, with float32 sums.
"""

from __future__ import annotations

import triton
import triton.language as tl

NEVER = tl.constexpr(float("-inf"))


@triton.jit
def attend_rows(
    q, k, v, k_offsets, k_stride, v_offsets, v_stride, lengths, bias, bias_offsets, out, lse,
    scale, rows, size, new,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    D: tl.constexpr, DV: tl.constexpr, BIASED: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Tokens ``split * size : (split + 1) * size`` of one segment; see `cpu_loops.attend_rows`."""
    segment, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    length = tl.load(lengths + segment)
    begin = split * size
    end = tl.minimum(begin + size, length)
    r, d, dv, i = tl.arange(0, ROWS), tl.arange(0, D), tl.arange(0, DV), tl.arange(0, TILE)
    at = (segment * rows + r[:, None]) * WIDTH + d
    query = tl.load(q + at, mask=(r[:, None] < rows) & (d < WIDTH), other=0.0)
    visible = length - new + 1 + r % new if CAUSAL else length + 0 * r
    k += tl.load(k_offsets + segment)
    v += tl.load(v_offsets + segment)
    bias += tl.load(bias_offsets + segment)
    total = tl.zeros((ROWS, DV), tl.float32)
    top, mass = tl.full((ROWS,), NEVER, tl.float32), tl.zeros((ROWS,), tl.float32)
    for t in range(begin, end, TILE):
        token = (t + i).to(tl.int64)
        held = token < end
        key = tl.load(
            k + token[:, None] * k_stride + d, mask=held[:, None] & (d < WIDTH), other=0.0
        )
        logits = tl.dot(query, tl.trans(key).to(query.dtype), input_precision="ieee") * scale
        if BIASED:
            logits += tl.load(bias + token, mask=held, other=0.0)
        logits = tl.where(held & (token < visible[:, None]), logits, NEVER)
        value = tl.load(
            v + token[:, None] * v_stride + dv,
            mask=held[:, None] & (dv < VALUE_WIDTH),
            other=0.0,
        )
        top, mass, weights, kept = _softmax(logits, top, mass)
        total = total * kept[:, None] + tl.dot(
            weights.to(value.dtype), value, input_precision="ieee"
        )
    _write(out, lse, total, top, mass, segment, split, r, rows, dv, VALUE_WIDTH, VALUE_WIDTH)


@triton.jit
def attend_packed(
    q, k_codes, k_scale, k_min, v_codes, v_scale, v_min, starts, lengths, out, lse,
    scale, rows, size,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr,
    VALUE_GROUP: tl.constexpr, BITS_K: tl.constexpr, BITS_V: tl.constexpr, TILE: tl.constexpr,
    PLANE_K: tl.constexpr, PLANE_V: tl.constexpr,
):  # fmt: skip
    """As `attend_rows`, over affine codes; a tile lies within one group of keys.

    Each bit plane of a tile is a contiguous slice of channels, so it is one product of its own. The
    keys' scale and minimum are folded into the query; the values' are applied as they are unpacked.
    """
    segment, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    length = tl.load(lengths + segment)
    start = tl.load(starts + segment)
    begin = split * size
    end = tl.minimum(begin + size, length)
    r, i = tl.arange(0, ROWS), tl.arange(0, TILE)
    PLANES_K: tl.constexpr = 8 // BITS_K
    PLANES_V: tl.constexpr = 8 // BITS_V
    BYTES_K: tl.constexpr = WIDTH // PLANES_K
    BYTES_V: tl.constexpr = VALUE_WIDTH // PLANES_V
    jk, jv = tl.arange(0, PLANE_K), tl.arange(0, PLANE_V)
    planes = tl.arange(0, PLANES_V)
    total = tl.zeros((ROWS, PLANES_V, PLANE_V), tl.float32)
    top, mass = tl.full((ROWS,), NEVER, tl.float32), tl.zeros((ROWS,), tl.float32)
    for group in range(begin, end, GROUP):
        for inner in tl.static_range(0, GROUP, TILE):
            row = start + group + inner + i
            held = inner + i < GROUP
            codes = tl.load(
                k_codes + row[:, None] * BYTES_K + jk,
                mask=held[:, None] & (jk < BYTES_K),
                other=0,
            )
            logits = tl.zeros((ROWS, TILE), tl.float32)
            shift = tl.zeros((ROWS,), tl.float32)
            for p in tl.static_range(PLANES_K):
                channel = p * BYTES_K + jk
                inside = jk < BYTES_K
                at = (segment * rows + r[:, None]) * WIDTH + channel
                query = tl.load(q + at, mask=(r[:, None] < rows) & inside, other=0.0)
                parameter = (start + group) // GROUP * WIDTH + channel
                steps = tl.load(k_scale + parameter, mask=inside, other=0.0).to(tl.float32)
                least = tl.load(k_min + parameter, mask=inside, other=0.0).to(tl.float32)
                plane = ((codes >> (p * BITS_K)) & ((1 << BITS_K) - 1)).to(query.dtype)
                folded = (query.to(tl.float32) * steps).to(query.dtype)
                logits += _product(folded, tl.trans(plane))
                shift += tl.sum(query.to(tl.float32) * least, 1)
            logits = (logits + shift[:, None]) * scale
            logits = tl.where(held, logits, NEVER)
            top, mass, weights, kept = _softmax(logits, top, mass)
            total *= kept[:, None, None]
            codes = tl.load(
                v_codes + row[:, None] * BYTES_V + jv,
                mask=held[:, None] & (jv < BYTES_V),
                other=0,
            )
            for p in tl.static_range(PLANES_V):
                at = row[:, None] * (VALUE_WIDTH // VALUE_GROUP)
                at += (p * BYTES_V + jv) // VALUE_GROUP
                inside = held[:, None] & (jv < BYTES_V)
                steps = tl.load(v_scale + at, mask=inside, other=0.0).to(tl.float32)
                least = tl.load(v_min + at, mask=inside, other=0.0).to(tl.float32)
                plane = ((codes >> (p * BITS_V)) & ((1 << BITS_V) - 1)).to(tl.float32)
                value = (plane * steps + least).to(q.dtype.element_ty)
                part = _product(weights.to(value.dtype), value)
                total += tl.where(planes[None, :, None] == p, part[:, None, :], 0.0)
    for p in tl.static_range(PLANES_V):
        part = tl.sum(tl.where(planes[None, :, None] == p, total, 0.0), 1)
        mine = out + p * BYTES_V
        _write(mine, lse, part, top, mass, segment, split, r, rows, jv, BYTES_V, VALUE_WIDTH)


@triton.jit
def reduce_splits(
    parts, part_lse, out, lse, rows, splits,
    VALUE_WIDTH: tl.constexpr, DV: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Merge the splits of one query row of one segment."""
    segment, r = tl.program_id(0).to(tl.int64), tl.program_id(1)
    s, dv = tl.arange(0, SPLITS), tl.arange(0, DV)
    at = (segment * splits + s) * rows + r
    part = tl.load(part_lse + at, mask=s < splits, other=NEVER)
    top = tl.max(part, 0)
    anchor = tl.where(top == NEVER, 0.0, top)
    weights = tl.exp(part - anchor)
    mass = tl.sum(weights, 0)
    x = tl.load(
        parts + at[:, None] * VALUE_WIDTH + dv,
        mask=(s[:, None] < splits) & (dv < VALUE_WIDTH),
        other=0.0,
    )
    merged = tl.sum(x * weights[:, None], 0) / tl.where(mass == 0.0, 1.0, mass)
    target = segment * rows + r
    tl.store(out + target * VALUE_WIDTH + dv, merged, mask=dv < VALUE_WIDTH)
    tl.store(lse + target, anchor + tl.log(mass))


@triton.jit
def _softmax(logits, top, mass):
    """Weights of a tile, and the factor by which earlier sums shrink."""
    tallest = tl.maximum(top, tl.max(logits, 1))
    anchor = tl.where(tallest == NEVER, 0.0, tallest)
    kept = tl.exp(top - anchor)
    weights = tl.exp(logits - anchor[:, None])
    return tallest, mass * kept + tl.sum(weights, 1), weights, kept


@triton.jit
def _product(a, b):
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _write(
    out, lse, total, top, mass, segment, split, r, rows, dv,
    WIDTH: tl.constexpr, STRIDE: tl.constexpr,
):  # fmt: skip
    target = (segment * tl.num_programs(1) + split) * rows + r
    normal = total / tl.where(mass == 0.0, 1.0, mass)[:, None]
    inside = (r[:, None] < rows) & (dv < WIDTH)
    tl.store(out + target[:, None] * STRIDE + dv, normal, mask=inside)
    tl.store(lse + target, top + tl.log(mass), mask=r < rows)
