"""Vectors of a CPU as values of numba's loops: loads, stores, arithmetic, and the tile that convolutions are made of.

numba leaves it to LLVM to find vectors in a loop; it finds none with a hundred sums in flight, and takes half of a
register where it may take all of it. Here a vector is a type: as many numbers as a register holds. Comparisons are
such that a NaN stays a NaN, as said at each of them.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import PrimitiveModel
from numba.extending import intrinsic, register_model

WIDE = bool(binding.get_host_cpu_features().get("avx512f"))
BYTES = 64 if WIDE else 32
"""Bytes of a vector."""
SHAPES = ((8, 3), (6, 4)) if WIDE else ((4, 3), (6, 2))
"""Outputs and places of tiles: their sums, a vector each, fill 24 of 32 registers, or 12 of 16."""
INDEX = ir.IntType(64)


class Vector(types.Type):  # type: ignore[misc]
    """As many numbers of a dtype as a register holds."""

    def __init__(self, scalar: Any) -> None:
        self.scalar, self.lanes = scalar, BYTES * 8 // scalar.bitwidth
        super().__init__(name=f"Vector({scalar}, {self.lanes})")

    @property
    def llvm(self) -> Any:
        """Its LLVM type."""
        return ir.VectorType(ir.FloatType() if self.scalar.bitwidth == 32 else ir.DoubleType(), self.lanes)


@register_model(Vector)
class _VectorModel(PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, kind.llvm)


def _address(context, builder, kind, array, index):
    """The address of the vector that begins at a flat index of a contiguous array."""
    start = builder.gep(context.make_array(kind)(context, builder, array).data, [index])
    return builder.bitcast(start, Vector(kind.dtype).llvm.as_pointer())


def _spread(builder, kind, scalar):
    """A vector of one number."""
    empty = ir.Constant(kind.llvm, ir.Undefined)
    first = builder.insert_element(empty, scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(
        first, empty, ir.Constant(ir.VectorType(ir.IntType(32), kind.lanes), [0] * kind.lanes)
    )


def _fused(builder, kind, a, b, c):
    name = f"llvm.fma.v{kind.lanes}f{kind.scalar.bitwidth}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind.llvm, [kind.llvm] * 3), name)
    return builder.call(function, [a, b, c])


@intrinsic
def lanes(typing, array):
    """Numbers of a vector of an array's dtype, a constant."""
    count = Vector(array.dtype).lanes
    return types.intp(array), lambda context, builder, signature, arguments: INDEX(count)


@intrinsic
def load(typing, array, index):
    """The vector that begins at a flat index of a contiguous array."""

    def code(context, builder, signature, arguments):
        place = _address(context, builder, array, arguments[0], arguments[1])
        return builder.load(place, align=array.dtype.bitwidth // 8)

    return Vector(array.dtype)(array, types.intp), code


@intrinsic
def store(typing, array, index, vector):
    """Write a vector to a flat index of a contiguous array."""

    def code(context, builder, signature, arguments):
        place = _address(context, builder, array, arguments[0], arguments[1])
        builder.store(arguments[2], place, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), code


@intrinsic
def spread(typing, scalar):
    """A vector of one number."""
    kind = Vector(scalar)
    return kind(scalar), lambda context, builder, signature, arguments: _spread(builder, kind, arguments[0])


@intrinsic
def zeros(typing, array):
    """A vector of zeros, of an array's dtype."""
    kind = Vector(array.dtype)
    return kind(array), lambda context, builder, signature, arguments: ir.Constant(kind.llvm, [0.0] * kind.lanes)


@intrinsic
def lowest(typing, array):
    """A vector of negative infinities, of an array's dtype."""
    kind = Vector(array.dtype)
    return kind(array), lambda context, builder, signature, arguments: ir.Constant(kind.llvm, [-math.inf] * kind.lanes)


@intrinsic
def fused(typing, a, b, c):
    """``a b + c``, rounded once."""
    return a(a, a, a), lambda context, builder, signature, arguments: _fused(builder, a, *arguments)


@intrinsic
def plus(typing, a, b):
    """``a + b``."""
    return a(a, a), lambda context, builder, signature, arguments: builder.fadd(*arguments)


@intrinsic
def minus(typing, a, b):
    """``a - b``."""
    return a(a, a), lambda context, builder, signature, arguments: builder.fsub(*arguments)


@intrinsic
def times(typing, a, b):
    """``a b``."""
    return a(a, a), lambda context, builder, signature, arguments: builder.fmul(*arguments)


@intrinsic
def smaller(typing, a, b):
    """``a`` where ``a < b``, else b: b where one of them is a NaN."""

    def code(context, builder, signature, arguments):
        return builder.select(builder.fcmp_ordered("<", *arguments), *arguments)

    return a(a, a), code


@intrinsic
def larger(typing, a, b):
    """``a`` where ``a > b``, else b: b where one of them is a NaN."""

    def code(context, builder, signature, arguments):
        return builder.select(builder.fcmp_ordered(">", *arguments), *arguments)

    return a(a, a), code


@intrinsic
def maximum(typing, a, b):
    """The larger one; NaN where one of them is."""

    def code(context, builder, signature, arguments):
        first, second = arguments
        best = builder.select(builder.fcmp_ordered(">", first, second), first, second)
        return builder.select(builder.fcmp_unordered("uno", first, first), first, best)

    return a(a, a), code


@intrinsic
def kept(typing, vector, first):
    """A vector with zeros in the lanes before ``first``."""

    def code(context, builder, signature, arguments):
        kind = ir.VectorType(ir.IntType(32), vector.lanes)
        start = builder.insert_element(
            ir.Constant(kind, ir.Undefined), builder.trunc(arguments[1], ir.IntType(32)), ir.IntType(32)(0)
        )
        starts = builder.shuffle_vector(start, ir.Constant(kind, ir.Undefined), ir.Constant(kind, [0] * vector.lanes))
        inside = builder.icmp_signed(">=", ir.Constant(kind, list(range(vector.lanes))), starts)
        return builder.select(inside, arguments[0], ir.Constant(vector.llvm, [0.0] * vector.lanes))

    return vector(vector, types.intp), code


@intrinsic
def total(typing, vector):
    """The sum of a vector's numbers in float64, of halves again and again."""

    def code(context, builder, signature, arguments):
        wide, some = ir.VectorType(ir.DoubleType(), vector.lanes), ir.IntType(32)
        result = arguments[0] if vector.scalar.bitwidth == 64 else builder.fpext(arguments[0], wide)
        half = vector.lanes // 2
        while half:
            parts = [
                builder.shuffle_vector(result, result, ir.Constant(ir.VectorType(some, half), list(range(s, s + half))))
                for s in (0, half)
            ]
            result, half = builder.fadd(*parts), half // 2
        return builder.extract_element(result, some(0))

    return types.float64(vector), code


def _tile(outputs, places):
    @intrinsic
    def tile(
        typing, source, origin, starts, ends, first, taps, filters, begin, stop, weights, corner, target, place, row
    ):
        """The sums of a tile of outputs o and places i: ``sum_k weights[k, o] x[starts[first + i] + taps[k]]``.

        Each is a vector. They stay in registers over the sum: a step reads a vector for each place and a number for
        each output, and makes a fused product for each pair.

        Args:
            typing: numba's.
            source: flat.
            origin: where x begins in it.
            starts: where the vectors of the places begin in x.
            ends: where their sums go in target.
            first: of the tile's places.
            taps: how far from the start of a place the vector of each k begins.
            filters: how far from the corner the weights of each k begin, which lie side by side.
            begin: the first k.
            stop: behind the last k.
            weights: flat.
            corner: see filters.
            target: flat; the sums of an output go to ``place + ends``, those of the next one ``row`` further.
            place: see target.
            row: see target.
        """
        kind = Vector(source.dtype)
        size = source.dtype.bitwidth // 8

        def code(context, builder, signature, arguments):
            data = [
                context.make_array(k)(context, builder, a).data if isinstance(k, types.Array) else a
                for k, a in zip(signature.args, arguments, strict=True)
            ]
            (
                source_,
                origin_,
                starts_,
                ends_,
                first_,
                taps_,
                filters_,
                begin_,
                stop_,
                weights_,
                corner_,
                target_,
                place_,
                row_,
            ) = data
            nothing = ir.Constant(kind.llvm, [0.0] * kind.lanes)
            sums = [[cgutils.alloca_once_value(builder, nothing) for _ in range(places)] for _ in range(outputs)]

            def of_place(array, i):
                return builder.load(builder.gep(array, [builder.add(first_, INDEX(i))]))

            x = builder.gep(source_, [origin_])
            sources = [builder.gep(x, [of_place(starts_, i)]) for i in range(places)]
            corner_of_tile = builder.gep(weights_, [corner_])
            with cgutils.for_range_slice(builder, begin_, stop_, INDEX(1)) as (k, _):
                tap = builder.load(builder.gep(taps_, [k]))
                values = [
                    builder.load(builder.bitcast(builder.gep(p, [tap]), kind.llvm.as_pointer()), align=size)
                    for p in sources
                ]
                weight = builder.gep(corner_of_tile, [builder.load(builder.gep(filters_, [k]))])
                for o in range(outputs):
                    factor = _spread(builder, kind, builder.load(builder.gep(weight, [INDEX(o)])))
                    for i in range(places):
                        builder.store(_fused(builder, kind, factor, values[i], builder.load(sums[o][i])), sums[o][i])
            for i in range(places):
                end = builder.add(place_, of_place(ends_, i))
                for o in range(outputs):
                    there = builder.gep(target_, [builder.add(end, builder.mul(row_, INDEX(o)))])
                    builder.store(builder.load(sums[o][i]), builder.bitcast(there, kind.llvm.as_pointer()), align=size)
            return context.get_dummy_value()

        intp = types.intp
        return (
            types.void(source, intp, starts, ends, intp, taps, filters, intp, intp, weights, intp, target, intp, intp),
            code,
        )

    return tile


tile, other_tile = (_tile(*shape) for shape in SHAPES)


def transformation(*matrices, limited):
    """An intrinsic that transforms squares: ``X -> M X M^T`` for the product M of matrices, the first one first.

    Args:
        matrices: rows of numbers; zeros and ones cost nothing.
        limited: rows and columns of the result beyond a height and a width are not written.
    """
    size = len(matrices[0][0])

    def mixed(builder, kind, values):
        for matrix in matrices:
            values = [_combination(builder, kind, row, values) for row in matrix]
        return values

    @intrinsic
    def transform(typing, source, start, down, along, target, place, below, beside, height, width):
        """Transform a square of vectors.

        Args:
            typing: numba's.
            source: flat.
            start: where its first vector begins.
            down: numbers from a row to the next.
            along: numbers from a column to the next.
            target: flat.
            place: where the first vector of the result goes.
            below: numbers from a row of the result to the next.
            beside: numbers from a column of the result to the next.
            height: rows that are written, if limited.
            width: columns likewise.
        """
        kind = Vector(source.dtype)
        align = source.dtype.bitwidth // 8

        def code(context, builder, signature, arguments):
            from_, start_, down_, along_, to, place_, below_, beside_, height_, width_ = [
                context.make_array(k)(context, builder, a).data if isinstance(k, types.Array) else a
                for k, a in zip(signature.args, arguments, strict=True)
            ]

            def vector(array, corner, row, step, column, apart):
                index = builder.add(
                    corner, builder.add(builder.mul(step, INDEX(row)), builder.mul(apart, INDEX(column)))
                )
                return builder.bitcast(builder.gep(array, [index]), kind.llvm.as_pointer())

            def column(j):
                places = (vector(from_, start_, i, down_, j, along_) for i in range(size))
                return mixed(builder, kind, [builder.load(place, align=align) for place in places])

            for i, row in enumerate(zip(*(column(j) for j in range(size)), strict=True)):
                for j, value in enumerate(mixed(builder, kind, list(row))):
                    here = vector(to, place_, i, below_, j, beside_)
                    if limited:
                        inside = (builder.icmp_signed(">", most, INDEX(n)) for most, n in ((height_, i), (width_, j)))
                        with builder.if_then(builder.and_(*inside), likely=True):
                            builder.store(value, here, align=align)
                    else:
                        builder.store(value, here, align=align)
            return context.get_dummy_value()

        return types.void(source, *[types.intp] * 3, target, *[types.intp] * 5), code

    return transform


def _combination(builder, kind, factors, values):
    """``sum_i factors[i] values[i]``, those of factor 1 first."""
    result = None
    for factor, value in sorted(zip(factors, values, strict=True), key=lambda pair: pair[0] != 1):
        constant = ir.Constant(kind.llvm, [float(factor)] * kind.lanes)
        if factor == 0:
            continue
        if result is None:
            result = value if factor == 1 else builder.fmul(constant, value)
        elif abs(factor) == 1:
            result = (builder.fadd if factor == 1 else builder.fsub)(result, value)
        else:
            result = _fused(builder, kind, constant, value, result)
    return result
