"""An ONNX graph under construction.

The shape of a ``Value`` may have 1 where the traced program has more: the value is the same along that dimension, and
is written out (``Graph.full``) only for nodes that do not broadcast. A NumPy array stands for a constant in the same
way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

INLINE = 2048  # bytes; a larger constant lies outside the model, where several models can share it
ALIGNED = 64  # bytes, the start of each
OUTSIDE = "weights"  # the name of that file


@dataclass(frozen=True)
class Value:
    """A tensor of the graph that is known only when the graph runs."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype


Operand = Value | np.ndarray


class Constants:
    """Large constants of several models, each stored once."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._places: dict[bytes, int] = {}

    def tensor(self, array: np.ndarray, name: str) -> TensorProto:
        """Return a constant as ONNX; its numbers are inside if they are few."""
        tensor = numpy_helper.from_array(array, name)
        raw = tensor.raw_data
        if len(raw) <= INLINE:
            return tensor
        if raw not in self._places:
            self.data += bytes(-len(self.data) % ALIGNED)
            self._places[raw] = len(self.data)
            self.data += raw
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", OUTSIDE), ("offset", self._places[raw]), ("length", len(raw))):
            tensor.external_data.add(key=key, value=str(value))
        return tensor


class Graph:
    """Nodes in order; the body of a loop is a graph with a parent, whose values it can read."""

    def __init__(self, parent: "Graph | None" = None):
        self.nodes: list[NodeProto] = []
        self.inputs: list[Value] = []
        self.root: Graph = parent.root if parent else self
        self.constants: dict[tuple, tuple[str, np.ndarray]] = {}
        self._names = 0

    def input(self, shape: Sequence[int], dtype: Any, name: str | None = None) -> Value:
        """Add an input."""
        value = Value(name or self.fresh(), tuple(shape), np.dtype(dtype))
        self.inputs.append(value)
        return value

    def op(self, kind: str, operands: Sequence[Operand], shape: Sequence[int], dtype: Any, **attributes: Any) -> Value:
        """Add a node with one output of this shape and dtype."""
        return self.ops(kind, operands, [(shape, dtype)], **attributes)[0]

    def ops(self, kind: str, operands: Sequence[Operand], outs: Sequence[tuple], **attributes: Any) -> list[Value]:
        """Add a node with an output for each (shape, dtype)."""
        found = [Value(self.fresh(), tuple(map(int, shape)), np.dtype(dtype)) for shape, dtype in outs]
        names = [self.name(each) for each in operands]
        self.nodes.append(helper.make_node(kind, names, [each.name for each in found], **attributes))
        return found

    def value(self, operand: Operand) -> Value:
        """Return an operand as a value, so that nodes are added for what is done with it."""
        if isinstance(operand, Value):
            return operand
        return Value(self.name(operand), operand.shape, operand.dtype)

    def name(self, operand: Operand) -> str:
        """Return what nodes call an operand; equal constants have one name."""
        if isinstance(operand, Value):
            return operand.name
        array = np.ascontiguousarray(operand).reshape(operand.shape)  # 0-d arrays stay so
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.root.constants:
            self.root.constants[key] = (self.fresh(), array)
        return self.root.constants[key][0]

    def fresh(self) -> str:
        """Return an unused name."""
        self.root._names += 1
        return f"v{self.root._names}"

    # -- nodes that most primitives need -----------------------------------------------------------------------------

    def elementwise(self, kind: str, *operands: Operand, dtype: Any = None, **attributes: Any) -> Value:
        """Add a node that broadcasts its operands; its dtype is theirs unless given."""
        shape = np.broadcast_shapes(*(each.shape for each in operands))
        return self.op(kind, operands, shape, dtype or operands[0].dtype, **attributes)

    def reshape(self, operand: Operand, shape: Sequence[int]) -> Operand:
        """Reshape what an operand really holds."""
        if isinstance(operand, np.ndarray):
            return operand.reshape(shape)
        if operand.shape == tuple(shape):
            return operand
        return self.op("Reshape", [operand, np.array(shape, np.int64)], shape, operand.dtype)

    def full(self, operand: Operand, shape: Sequence[int]) -> Operand:
        """Write out what is the same along a dimension."""
        if operand.shape == tuple(shape):
            return operand
        if isinstance(operand, np.ndarray):
            return np.broadcast_to(operand, shape)
        return self.op("Expand", [operand, np.array(shape, np.int64)], shape, operand.dtype)

    def cast(self, operand: Operand, dtype: Any) -> Operand:
        """Convert numbers."""
        dtype = np.dtype(dtype)
        if isinstance(operand, np.ndarray):
            return operand.astype(dtype)
        if operand.dtype == dtype:
            return operand
        return self.op("Cast", [operand], operand.shape, dtype, to=helper.np_dtype_to_tensor_dtype(dtype))

    def transpose(self, operand: Operand, order: Sequence[int]) -> Operand:
        """Reorder dimensions; a reshape where only dimensions of size 1 move."""
        if isinstance(operand, np.ndarray):
            return operand.transpose(order)
        shape = [operand.shape[axis] for axis in order]
        if sorted(moved := [axis for axis in order if operand.shape[axis] != 1]) == moved:
            return self.reshape(operand, shape)
        return self.op("Transpose", [operand], shape, operand.dtype, perm=list(order))

    def where(self, condition: Operand, yes: Operand, no: Operand) -> Value:
        """Choose between two operands of one dtype. onnxruntime-web chooses no uint32 and no bool."""
        dtype = yes.dtype
        through = {np.dtype(np.uint32): np.int64, np.dtype(bool): np.int32}.get(dtype, dtype)
        chosen = self.elementwise("Where", condition, self.cast(yes, through), self.cast(no, through), dtype=through)
        return self.value(self.cast(chosen, dtype))


def info(value: Value) -> ValueInfoProto:
    """Return the declaration of a graph's input or output."""
    return helper.make_tensor_value_info(value.name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
