"""Single instructions that numba has no words for: bits of floats, and vectors that are compared and compressed."""

from __future__ import annotations

from typing import Any

import llvmlite.binding
from llvmlite import ir

from sftknow.dependencies import needs

with needs("numba"):
    from numba.core import cgutils, types
    from numba.extending import intrinsic

VECTORS = bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))
"""Whether `append_differing` and `append_steps` are a few instructions here; elsewhere they work, but a loop over
`differing` is faster."""

HALVES = bool(llvmlite.binding.get_host_cpu_features().get("f16c"))
"""Whether the processor itself makes float32 of float16; elsewhere a function of the C library would be called, which
need not be there."""

NEAR = 248
"""Steps that `append_steps` knows: from −120 to 127 units in the last place, so that no two values of different sign
are that near by their bits."""
NEAREST = 120
FAR = NEAR << 15
"""Where the numbers of elements begin whose step is none of these."""


@intrinsic  # type: ignore[untyped-decorator]
def float_of(typing_context: Any, bits: Any) -> Any:
    """The float32 with these bits (uint32)."""
    if bits != types.uint32:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), generate


@intrinsic  # type: ignore[untyped-decorator]
def half_value(typing_context: Any, bits: Any) -> Any:
    """The float16 with these bits, in the lower half of a uint32, as a float32; only where `HALVES`."""
    if bits != types.uint32:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        half = builder.bitcast(builder.trunc(arguments[0], ir.IntType(16)), ir.HalfType())
        return builder.fpext(half, context.get_value_type(types.float32))

    return types.float32(types.uint32), generate


@intrinsic  # type: ignore[untyped-decorator]
def bits_of(typing_context: Any, value: Any) -> Any:
    """The bits (uint32) of a float32."""
    if value != types.float32:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.uint32))

    return types.uint32(types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def differing(typing_context: Any, left: Any, right: Any, start: Any) -> Any:
    """Which of 32 elements from ``start`` on differ, the first in the lowest bit (uint32).

    Both arrays are contiguous and have at least ``start + 32`` elements. Arrays of two dtypes compile, to no
    difference, so that a kernel may hold a branch for equal dtypes which it does not take.
    """
    if left.layout != "C" or right.layout != "C":
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if left.dtype != right.dtype:
            return ir.Constant(ir.IntType(32), 0)
        element = context.get_data_type(left.dtype)
        vectors = []
        for kind, value in ((left, arguments[0]), (right, arguments[1])):
            data = context.make_array(kind)(context, builder, value).data
            place = builder.bitcast(builder.gep(data, [arguments[2]]), ir.VectorType(element, 32).as_pointer())
            vectors.append(builder.load(place, align=element.width // 8))
        return builder.bitcast(builder.icmp_unsigned("!=", *vectors), ir.IntType(32))

    return types.uint32(left, right, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def lowest_bit(typing_context: Any, mask: Any) -> Any:
    """The place of the lowest bit of a uint32 that is not 0 (int64)."""
    if mask != types.uint32:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        found = builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))
        return builder.zext(found, ir.IntType(64))

    return types.int64(types.uint32), generate


def _at(context: Any, builder: Any, kind: Any, array: Any, index: Any, vector: Any) -> Any:
    """Pointer to a vector in an array."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _lanes(builder: Any, first: Any) -> Any:
    """first, first + 1, … as sixteen int32, from an int64."""
    lanes, word = ir.VectorType(ir.IntType(32), 16), ir.IntType(32)
    undefined = ir.Constant(lanes, ir.Undefined)
    start = builder.insert_element(undefined, builder.trunc(first, word), ir.Constant(word, 0))
    spread = builder.shuffle_vector(start, undefined, ir.Constant(lanes, [0] * 16))
    return builder.add(spread, ir.Constant(lanes, list(range(16))))


def _compress(builder: Any, values: Any, mask: Any) -> Any:
    """Sixteen int32 where the mask holds, moved to the front."""
    lanes = ir.VectorType(ir.IntType(32), 16)
    compress = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(lanes, [lanes, ir.VectorType(ir.IntType(1), 16), lanes]),
        "llvm.experimental.vector.compress.v16i32",
    )
    return builder.call(compress, [values, mask, ir.Constant(lanes, ir.Undefined)])


def _set_bits(builder: Any, mask: Any) -> Any:
    return builder.zext(builder.ctpop(builder.bitcast(mask, ir.IntType(16))), ir.IntType(64))


@intrinsic  # type: ignore[untyped-decorator]
def append_differing(
    typing_context: Any, left: Any, right: Any, start: Any, places: Any, left_bits: Any, right_bits: Any, count: Any
) -> Any:
    """Of 16 elements from ``start`` on, append those that differ: places and both sides' bits; returns the new count.

    ``left`` and ``right`` are as in `differing`; ``places`` (int32), ``left_bits`` and ``right_bits`` (uint32) need
    room for 16 elements from ``count`` on, whatever is appended.
    """
    if left.layout != "C" or right.layout != "C":
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if left.dtype != right.dtype:
            return arguments[6]
        lanes, element = ir.VectorType(ir.IntType(32), 16), context.get_data_type(left.dtype)
        stored = ir.VectorType(element, 16)
        vectors = [
            builder.load(_at(context, builder, kind, array, arguments[2], stored), align=element.width // 8)
            for kind, array in ((left, arguments[0]), (right, arguments[1]))
        ]
        mask = builder.icmp_unsigned("!=", *vectors)
        wide = [builder.zext(vector, lanes) if element.width < 32 else vector for vector in vectors]
        outputs = ((places, arguments[3]), (left_bits, arguments[4]), (right_bits, arguments[5]))
        for values, (kind, array) in zip((_lanes(builder, arguments[2]), *wide), outputs, strict=True):
            target = _at(context, builder, kind, array, arguments[6], lanes)
            builder.store(_compress(builder, values, mask), target, align=4)
        return builder.add(arguments[6], _set_bits(builder, mask))

    return types.int64(left, right, types.int64, places, left_bits, right_bits, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def append_steps(typing_context: Any, left: Any, right: Any, start: Any, numbers: Any, count: Any) -> Any:
    """Of 16 elements from ``start`` on, append a number for each that differs; returns the new count.

    The number of a value and its neighbour some steps away, of the same sign: (right − left + `NEAREST`) · 2^15 +
    left's magnitude. Of others: `FAR` + the place. ``left`` and ``right`` are contiguous uint16 arrays of at least
    ``start`` + 16 elements; ``numbers`` (uint32) needs room for 16 from ``count`` on.
    """
    if left.layout != "C" or right.layout != "C":
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        half = ir.IntType(16)
        halves, lanes = ir.VectorType(half, 16), ir.VectorType(ir.IntType(32), 16)

        def spread(value: int, vector: Any = halves) -> Any:
            return ir.Constant(vector, [value] * 16)

        p, s = (
            builder.load(_at(context, builder, kind, array, arguments[2], halves), align=2)
            for kind, array in ((left, arguments[0]), (right, arguments[1]))
        )
        mask = builder.icmp_unsigned("!=", p, s)
        step = builder.add(builder.sub(s, p), spread(NEAREST))
        near = builder.icmp_unsigned("<", step, spread(NEAR))
        magnitude = builder.zext(builder.and_(p, spread(0x7FFF)), lanes)
        number = builder.or_(builder.shl(builder.zext(step, lanes), spread(15, lanes)), magnitude)
        far = builder.add(_lanes(builder, arguments[2]), spread(FAR, lanes))
        found = _compress(builder, builder.select(near, number, far), mask)
        builder.store(found, _at(context, builder, numbers, arguments[3], arguments[4], lanes), align=4)
        return builder.add(arguments[4], _set_bits(builder, mask))

    return types.int64(left, right, types.int64, numbers, types.int64), generate
