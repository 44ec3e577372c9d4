"""Rules for operations on shapes, sums along dimensions, sorting and matrix products."""

import math
from collections.abc import Sequence

import numpy as np

from reverie.onnx.graph import Graph, Operand, Value
from reverie.onnx.table import Equation, refuse, rule


def whole(*numbers: int) -> np.ndarray:
    """Return int64 numbers, as ONNX wants axes, sizes and places."""
    return np.array(numbers, np.int64)


@rule("broadcast_in_dim", lazy=True)
def broadcast_in_dim(g: Graph, e: Equation, x: Operand) -> Operand:
    shape = [1] * len(e.outs[0].shape)
    places = [*e.params["broadcast_dimensions"], *range(len(e.params["shape"]), len(shape))]  # a key's own comes last
    for axis, place in enumerate(places):
        shape[place] = x.shape[axis]
    return g.reshape(x, shape)


@rule("reshape", lazy=True)
def reshape(g: Graph, e: Equation, x: Operand) -> Operand:
    before, after = e.ins[0].shape, e.outs[0].shape
    if [size for size in before if size != 1] != [size for size in after if size != 1]:
        return g.reshape(g.full(x, before), after)
    real = (size for size, traced in zip(x.shape, before, strict=True) if traced != 1)  # only ones come and go
    return g.reshape(x, [1 if traced == 1 else next(real) for traced in after])


@rule("squeeze", lazy=True)
def squeeze(g: Graph, e: Equation, x: Operand) -> Operand:
    return g.reshape(x, [size for axis, size in enumerate(x.shape) if axis not in e.params["dimensions"]])


@rule("transpose", lazy=True)
def transpose(g: Graph, e: Equation, x: Operand) -> Operand:
    order = e.params["permutation"]
    return g.transpose(x, [*order, *range(len(order), len(x.shape))])


@rule("concatenate")
def concatenate(g: Graph, e: Equation, *parts: Operand) -> Value:
    return g.op("Concat", parts, *e.outs[0], axis=e.params["dimension"])


@rule("stack")
def stack(g: Graph, e: Equation, *parts: Operand) -> Value:
    axis = e.params["axis"]
    shape = [1 if at == axis else size for at, size in enumerate(e.outs[0].shape)]
    return g.op("Concat", [g.reshape(part, shape) for part in parts], *e.outs[0], axis=axis)


@rule("tile")
def tile(g: Graph, e: Equation, x: Operand) -> Value:
    return g.op("Tile", [x, whole(*e.params["reps"])], *e.outs[0])


@rule("split")
def split(g: Graph, e: Equation, x: Operand) -> list[Value]:
    return g.ops("Split", [x, whole(*e.params["sizes"])], e.outs, axis=e.params["axis"])


@rule("slice", lazy=True)
def slice_(g: Graph, e: Equation, x: Operand) -> Operand:
    starts, limits = e.params["start_indices"], e.params["limit_indices"]
    strides = e.params["strides"] or (1,) * len(starts)
    axes = [a for a in range(len(starts)) if e.ins[0].shape[a] != e.outs[0].shape[a] and x.shape[a] != 1]
    if not axes:
        return x
    shape = [e.outs[0].shape[axis] if axis in axes else size for axis, size in enumerate(x.shape)]
    places = [whole(*(numbers[axis] for axis in axes)) for numbers in (starts, limits, range(len(starts)), strides)]
    return g.op("Slice", [x, *places], shape, x.dtype)


@rule("rev")
def rev(g: Graph, e: Equation, x: Operand) -> Value:
    axes = e.params["dimensions"]
    count = len(axes)
    ends = [whole(*[number] * count) for number in (-1, np.iinfo(np.int64).min)]
    return g.op("Slice", [x, *ends, whole(*axes), whole(*[-1] * count)], *e.outs[0])


@rule("pad")
def pad(g: Graph, e: Equation, x: Operand, value: Operand) -> Value:
    before, after, between = zip(*e.params["padding_config"], strict=True)
    if any(between):
        raise refuse(e, "padding between elements")
    return g.op("Pad", [x, whole(*before, *after), value], *e.outs[0])


# -- along dimensions ------------------------------------------------------------------------------------------------


@rule("reduce_sum", "reduce_max", "reduce_min", "reduce_prod")
def reduce(g: Graph, e: Equation, x: Operand) -> Value:
    kind = f"Reduce{e.name.removeprefix('reduce_').capitalize()}"
    return g.op(kind, [x, whole(*e.params["axes"])], *e.outs[0], keepdims=0)


@rule("reduce_and", "reduce_or")
def reduce_logic(g: Graph, e: Equation, x: Operand) -> Operand:
    if x.dtype != bool:
        raise refuse(e, f"{x.dtype}")
    kind = "ReduceMin" if e.name == "reduce_and" else "ReduceMax"
    found = g.op(kind, [g.cast(x, np.int32), whole(*e.params["axes"])], e.outs[0].shape, np.int32, keepdims=0)
    return g.cast(found, bool)


@rule("argmax", "argmin")
def argmax(g: Graph, e: Equation, x: Operand) -> Operand:
    kind = "ArgMax" if e.name == "argmax" else "ArgMin"
    (axis,) = e.params["axes"]
    return g.cast(g.op(kind, [x], e.outs[0].shape, np.int64, axis=axis, keepdims=0), e.outs[0].dtype)


@rule("cumsum")
def cumsum(g: Graph, e: Equation, x: Operand) -> Value:
    return g.op("CumSum", [x, np.array(e.params["axis"], np.int64)], *e.outs[0], reverse=int(e.params["reverse"]))


@rule("sort")
def sort(g: Graph, e: Equation, key: Operand, *others: Operand) -> list[Operand]:
    """Of equal keys the first comes first: TopK does so, with the index as its second criterion."""
    if e.params["num_keys"] != 1 or key.dtype not in (np.float32, np.int32):
        raise refuse(e, f"{e.params['num_keys']} keys of {key.dtype}")
    axis = e.params["dimension"]
    shape = e.outs[0].shape
    kinds = [(shape, key.dtype), (shape, np.int64)]
    found, order = g.ops("TopK", [key, whole(shape[axis])], kinds, axis=axis, largest=0, sorted=1)
    return [found, *(g.op("GatherElements", [x, order], shape, x.dtype, axis=axis) for x in others)]


# -- products --------------------------------------------------------------------------------------------------------


@rule("dot_general")
def dot_general(g: Graph, e: Equation, a: Operand, b: Operand) -> Operand:
    """A MatMul of (batch, rows, inner) and (batch, inner, columns)."""
    (inner_a, inner_b), (batch_a, batch_b) = e.params["dimension_numbers"]
    if {a.dtype, b.dtype, e.outs[0].dtype} != {np.dtype(np.float32)}:
        raise refuse(e, f"{a.dtype} and {b.dtype}")
    rows = [axis for axis in range(len(a.shape)) if axis not in (*inner_a, *batch_a)]
    columns = [axis for axis in range(len(b.shape)) if axis not in (*inner_b, *batch_b)]

    def sizes(x: Operand, axes: Sequence[int]) -> list[int]:
        return [x.shape[axis] for axis in axes]

    batch, inner, wide = sizes(a, batch_a), math.prod(sizes(a, inner_a)), math.prod(sizes(b, columns))
    many = sizes(a, rows) if rows and not batch else [math.prod(sizes(a, rows))]  # MatMul takes rows in any shape
    left = g.reshape(g.transpose(a, [*batch_a, *rows, *inner_a]), [*batch, *many, inner])
    right = g.reshape(g.transpose(b, [*batch_b, *inner_b, *columns]), [*batch, inner, wide])
    product = g.op("MatMul", [left, right], [*batch, *many, wide], np.float32)
    return g.reshape(product, e.outs[0].shape)
