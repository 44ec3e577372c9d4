"""Rules for reading and writing at places that are known only when the graph runs."""

import math
from collections.abc import Sequence

import numpy as np
from jax.lax import GatherScatterMode

from reverie.onnx.graph import Graph, Operand
from reverie.onnx.shapes import whole
from reverie.onnx.table import Equation, refuse, rule


@rule("dynamic_slice")
def dynamic_slice(g: Graph, e: Equation, x: Operand, *starts: Operand) -> Operand:
    for axis, size in enumerate(e.outs[0].shape[: len(starts)]):
        x = _slice(g, x, axis, size, starts[axis])
    return x


@rule("dynamic_update_slice")
def dynamic_update_slice(g: Graph, e: Equation, x: Operand, update: Operand, *starts: Operand) -> Operand:
    axes = [axis for axis, size in enumerate(x.shape) if update.shape[axis] != size]
    return _place(g, x, update, [(axis, starts[axis]) for axis in axes])


def _slice(g: Graph, x: Operand, axis: int, size: int, start: Operand) -> Operand:
    """Read ``size`` elements along one axis; a start out of bounds is moved inside, as JAX does."""
    if size == x.shape[axis]:
        return x
    shape = [size if at == axis else length for at, length in enumerate(x.shape)]
    place = _inside(g, start, x.shape[axis] - size)
    return g.op("Slice", [x, place, _plus(g, place, size), whole(axis)], shape, x.dtype)


def _place(g: Graph, x: Operand, update: Operand, places: list[tuple[int, Operand]]) -> Operand:
    """Write ``update`` into ``x`` at (axis, start) of each axis along which it is smaller."""
    if not places:
        return update
    (axis, start), *others = places
    size, length = update.shape[axis], x.shape[axis]
    if others:  # into the block along this axis, and that into the whole
        update = _place(g, _slice(g, x, axis, size, start), update, others)
    place = _inside(g, start, length - size)
    if size == 1:
        along = np.arange(length, dtype=np.int64).reshape([-1] + [1] * (len(x.shape) - 1 - axis))
        return g.where(g.elementwise("Equal", g.value(place), along, dtype=bool), update, x)
    ends = [(whole(0), place), (_plus(g, place, size), whole(length))]
    # Their length along the axis is known only when the graph runs, and nothing asks for it.
    before, after = (g.op("Slice", [x, begin, end, whole(axis)], x.shape, x.dtype) for begin, end in ends)
    return g.op("Concat", [before, update, after], x.shape, x.dtype, axis=axis)


def _inside(g: Graph, start: Operand, last: int) -> Operand:
    """Return a start as an int64 vector of one number in 0..last."""
    return _clip(g, g.reshape(g.cast(start, np.int64), [1]), [last + 1])


def _plus(g: Graph, place: Operand, size: int) -> Operand:
    return place + size if isinstance(place, np.ndarray) else g.elementwise("Add", place, whole(size))


@rule("gather")
def gather(g: Graph, e: Equation, x: Operand, index: Operand) -> Operand:
    """Rows at an index: GatherND with the indexed dimensions first, those of the batch by their own number."""
    dims, sizes = e.params["dimension_numbers"], e.params["slice_sizes"]
    batch, indexed = list(dims.operand_batching_dims), list(dims.start_index_map)
    rest = [axis for axis in range(len(x.shape)) if axis not in (*batch, *indexed)]
    one = [axis for axis in (*batch, *indexed) if sizes[axis] != 1] + [a for a in rest if sizes[a] != x.shape[a]]
    if one or sorted((*dims.collapsed_slice_dims, *batch)) != sorted((*batch, *indexed)):
        raise refuse(e, "windows that are neither one element nor whole")
    bounds = [x.shape[axis] for axis in indexed]
    index = g.cast(index, np.int64)
    mode, valid = e.params["mode"], None
    if mode != GatherScatterMode.PROMISE_IN_BOUNDS:
        inside = _clip(g, index, bounds)
        if mode == GatherScatterMode.FILL_OR_DROP:
            valid = _all_equal(g, index, inside)
        index = inside
    index = _with_batch(g, index, dims.start_indices_batching_dims)
    lead = index.shape[:-1]
    table = g.transpose(x, [*batch, *indexed, *rest])
    found = g.op("GatherND", [table, index], [*lead, *(x.shape[axis] for axis in rest)], x.dtype)
    if valid is not None:
        fill = _fill(e, x.dtype)
        found = g.where(g.reshape(valid, [*lead, *[1] * len(rest)]), found, fill)
    spread = iter(range(len(lead), len(found.shape)))  # the whole dimensions go where the program wants them
    along = iter(range(len(lead)))
    order = [next(spread if axis in dims.offset_dims else along) for axis in range(len(e.outs[0].shape))]
    return g.transpose(found, order)


@rule("scatter")
def scatter(g: Graph, e: Equation, x: Operand, index: Operand, update: Operand) -> Operand:
    """Write rows at an index; the places must be known now, and inside, if others were to be dropped."""
    dims = e.params["dimension_numbers"]
    indexed = list(dims.scatter_dims_to_operand_dims)
    if dims.operand_batching_dims or sorted(dims.inserted_window_dims) != sorted(indexed):
        raise refuse(e, "windows that are neither one element nor whole")
    bounds = [x.shape[axis] for axis in indexed]
    clipped = _clip(g, g.cast(index, np.int64), bounds)
    known = isinstance(index, np.ndarray) and isinstance(clipped, np.ndarray) and np.array_equal(clipped, index)
    if e.params["mode"] == GatherScatterMode.FILL_OR_DROP and not known:
        raise refuse(e, "places that are not known to be inside")
    rest = [axis for axis in range(len(x.shape)) if axis not in indexed]
    order = [*indexed, *rest]
    window = list(dims.update_window_dims)
    lead = [axis for axis in range(len(update.shape)) if axis not in window]
    table, rows = g.transpose(x, order), g.transpose(update, [*lead, *window])
    done = g.op("ScatterND", [table, clipped, rows], table.shape, x.dtype)
    return g.transpose(done, [order.index(axis) for axis in range(len(order))])


def _clip(g: Graph, index: Operand, bounds: Sequence[int]) -> Operand:
    """Move indices (..., K) inside 0..bound-1 of each of the K dimensions."""
    last = whole(*bounds) - 1
    if isinstance(index, np.ndarray):
        return np.clip(index, 0, last)
    return g.elementwise("Min", g.elementwise("Max", index, whole(0)), last)


def _all_equal(g: Graph, a: Operand, b: Operand) -> Operand:
    """Whether indices (..., K) are the same in every dimension, bool (...)."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return (a == b).all(-1)
    same = g.cast(g.elementwise("Equal", a, b, dtype=bool), np.int32)
    return g.cast(g.op("ReduceMin", [same, whole(-1)], a.shape[:-1], np.int32, keepdims=0), bool)


def _with_batch(g: Graph, index: Operand, batch: Sequence[int]) -> Operand:
    """Put the numbers of the batch's dimensions before an index (..., K)."""
    if not batch:
        return index
    shape = index.shape[:-1]
    numbers = [np.arange(shape[axis]).reshape([-1 if at == axis else 1 for at in range(len(shape))]) for axis in batch]
    own = np.stack([np.broadcast_to(each, shape) for each in numbers], axis=-1).astype(np.int64)
    return g.op("Concat", [own, index], [*shape, len(batch) + index.shape[-1]], np.int64, axis=len(shape))


def _fill(e: Equation, dtype: np.dtype) -> np.ndarray:
    """What JAX reads outside an array, unless the program says otherwise."""
    fill = e.params["fill_value"]
    if fill is None:
        others = {"i": np.iinfo(dtype).min, "u": np.iinfo(dtype).max} if dtype.kind in "iu" else {"b": True}
        fill = others.get(dtype.kind, math.nan)
    return np.array(fill, dtype)
