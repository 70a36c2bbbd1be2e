"""A vector register as a numba type: what the CPU kernels are written in.

numba's automatic vectorization gives up on short loops whose arrays might overlap. These functions
say directly what is meant, over `LANES` float32 at a time, and LLVM maps them to whatever the
processor has (two AVX2 or four NEON registers serve as well as one of AVX-512).

numba's cache does not notice a change in this file: touch `cpu_loops` after editing it.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import llvmlite.binding  # type: ignore[import-untyped]
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 16 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 8

FLOAT, INT, BYTE, HALF_BITS = ir.FloatType(), ir.IntType(32), ir.IntType(8), ir.IntType(16)
FLOATS, INTS = ir.VectorType(FLOAT, LANES), ir.VectorType(INT, LANES)


class Lanes(types.Type):
    """Type of `LANES` float32."""

    def __init__(self) -> None:
        super().__init__(name=f"Lanes({LANES})")


lanes = Lanes()


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    """In LLVM: a vector."""

    def __init__(self, manager, kind) -> None:
        super().__init__(manager, kind, FLOATS)


# -- memory --------------------------------------------------------------------------------------


@intrinsic
def load(typing, row, at):
    """Floats ``row[at : at + LANES]``."""

    def build(context, builder, signature, arguments):
        return _read(context, builder, signature, arguments, FLOATS)

    return lanes(row, types.intp), build


@intrinsic
def store(typing, row, at, x):
    """``row[at : at + LANES] = x``."""

    def build(context, builder, signature, arguments):
        pointer = _pointer(context, builder, signature, arguments, FLOATS)
        builder.store(arguments[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(row, types.intp, lanes), build


@intrinsic
def load_bfloat16(typing, row, at):
    """The bfloat16 whose bits are ``row[at : at + LANES]``: upper halves of float32."""

    def build(context, builder, signature, arguments):
        bits = _read(context, builder, signature, arguments, ir.VectorType(HALF_BITS, LANES))
        words = builder.shl(builder.zext(bits, INTS), _splat_int(16))
        return builder.bitcast(words, FLOATS)

    return lanes(row, types.intp), build


@intrinsic
def load_float16(typing, row, at):
    """The halves whose bits are ``row[at : at + LANES]``."""

    def build(context, builder, signature, arguments):
        halves = ir.VectorType(ir.HalfType(), LANES)
        return builder.fpext(_read(context, builder, signature, arguments, halves), FLOATS)

    return lanes(row, types.intp), build


@intrinsic
def load_codes(typing, row, at, shift, mask):
    """Codes ``(row[at : at + LANES] >> shift) & mask`` of a row of bytes."""

    def build(context, builder, signature, arguments):
        packed = _read(context, builder, signature, arguments, ir.VectorType(BYTE, LANES))
        words = builder.lshr(builder.zext(packed, INTS), _broadcast(builder, arguments[2], INTS))
        codes = builder.and_(words, _broadcast(builder, arguments[3], INTS))
        return builder.sitofp(codes, FLOATS)

    return lanes(row, types.intp, types.int32, types.int32), build


@intrinsic
def bfloat16(typing, bits):
    """One bfloat16 from its bits."""

    def build(context, builder, signature, arguments):
        word = builder.shl(builder.zext(arguments[0], INT), ir.Constant(INT, 16))
        return builder.bitcast(word, FLOAT)

    return types.float32(types.uint16), build


@intrinsic
def float16(typing, bits):
    """One half from its bits."""

    def build(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), FLOAT)

    return types.float32(types.uint16), build


# -- arithmetic ----------------------------------------------------------------------------------


@intrinsic
def splat(typing, x):
    """x in every lane."""

    def build(context, builder, signature, arguments):
        return _broadcast(builder, arguments[0], FLOATS)

    return lanes(types.float32), build


@intrinsic
def multiply(typing, a, b):
    """a * b."""

    def build(context, builder, signature, arguments):
        return builder.fmul(*arguments)

    return lanes(lanes, lanes), build


@intrinsic
def add(typing, a, b):
    """a + b."""

    def build(context, builder, signature, arguments):
        return builder.fadd(*arguments)

    return lanes(lanes, lanes), build


@intrinsic
def multiply_add(typing, a, b, c):
    """a * b + c, fused where the processor can."""

    def build(context, builder, signature, arguments):
        return _multiply_add(builder, *arguments)

    return lanes(lanes, lanes, lanes), build


@intrinsic
def larger(typing, a, b):
    """The larger of a and b, lane by lane."""

    def build(context, builder, signature, arguments):
        return _larger(builder, *arguments)

    return lanes(lanes, lanes), build


@intrinsic
def exp(typing, x):
    """e ** x for x <= 0 within 2e-7 relative (Cephes' expf); below -87, almost 0."""

    def build(context, builder, signature, arguments):
        x = _larger(builder, arguments[0], _splat_float(-87.0))
        scaled = _multiply_add(builder, x, _splat_float(1.44269504), _splat_float(-0.5))
        exponent = builder.fptosi(scaled, INTS)
        whole = builder.sitofp(exponent, FLOATS)
        rest = _multiply_add(builder, whole, _splat_float(-0.693359375), x)
        rest = _multiply_add(builder, whole, _splat_float(2.12194440e-4), rest)
        series = _splat_float(1.9875691500e-4)
        for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1):
            series = _multiply_add(builder, series, rest, _splat_float(coefficient))
        for coefficient in (5.0000001201e-1, 1.0, 1.0):
            series = _multiply_add(builder, series, rest, _splat_float(coefficient))
        bits = builder.shl(builder.add(exponent, _splat_int(127)), _splat_int(23))
        return builder.fmul(series, builder.bitcast(bits, FLOATS))

    return lanes(lanes), build


@intrinsic
def total(typing, x):
    """Sum over the lanes."""

    def build(context, builder, signature, arguments):
        return _fold(builder, arguments[0], builder.fadd)

    return types.float32(lanes), build


@intrinsic
def highest(typing, x):
    """Maximum over the lanes."""

    def build(context, builder, signature, arguments):
        return _fold(builder, arguments[0], lambda a, b: _larger(builder, a, b))

    return types.float32(lanes), build


@intrinsic
def store_totals(typing, row, at, a, b, c, d):
    """``row[at : at + 4]`` = the sums over the lanes of four vectors, taken together."""

    def build(context, builder, signature, arguments):
        a, b, c, d = arguments[2:]
        sums = _pair(builder, _pair(builder, a, c), _pair(builder, b, d))
        width = LANES
        while width > 4:
            width //= 2
            sums = builder.fadd(*_halves(builder, sums, width))
        pointer = _pointer(context, builder, signature, arguments, sums.type)
        builder.store(sums, pointer, align=4)
        return context.get_dummy_value()

    return types.void(row, types.intp, lanes, lanes, lanes, lanes), build


# -- building blocks -----------------------------------------------------------------------------


def _pointer(context, builder, signature, arguments, kind: ir.Type):
    """Address of ``array[at]`` for the first two arguments, as a pointer to `kind`."""
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.bitcast(builder.gep(array.data, [arguments[1]]), kind.as_pointer())


def _read(context, builder, signature, arguments, kind: ir.Type):
    pointer = _pointer(context, builder, signature, arguments, kind)
    return builder.load(pointer, align=signature.args[0].dtype.bitwidth // 8, typ=kind)


def _broadcast(builder, x, kind: ir.VectorType):
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), x, ir.Constant(INT, 0))
    return builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), _splat_int(0))


def _splat_int(x: int) -> ir.Constant:
    return ir.Constant(INTS, [x] * LANES)


def _splat_float(x: float) -> ir.Constant:
    return ir.Constant(FLOATS, [x] * LANES)


def _multiply_add(builder, a, b, c):
    kind = ir.FunctionType(FLOATS, [FLOATS] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32")
    return builder.call(function, [a, b, c])


def _larger(builder, a, b):
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _fold(builder, x, combine):
    """Combine upper and lower half until one lane is left."""
    width = LANES
    while width > 1:
        width //= 2
        x = combine(*_halves(builder, x, width))
    return builder.extract_element(x, ir.Constant(INT, 0))


def _halves(builder, x, width: int):
    nothing = ir.Constant(x.type, ir.Undefined)
    orders = (range(width), range(width, 2 * width))
    return [builder.shuffle_vector(x, nothing, _order(order)) for order in orders]


def _pair(builder, x, y):
    """x and y half summed, of every four lanes: x0 + x2, y0 + y2, x1 + x3, y1 + y3."""
    fours = range(0, LANES, 4)
    low = [i + j * LANES for four in fours for i in (four, four + 1) for j in (0, 1)]
    high = [i + 2 for i in low]
    return builder.fadd(*(builder.shuffle_vector(x, y, _order(order)) for order in (low, high)))


def _order(lanes_in_order) -> ir.Constant:
    order = list(lanes_in_order)
    return ir.Constant(ir.VectorType(INT, len(order)), order)
