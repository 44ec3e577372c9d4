"""A traced JAX program as an ONNX model, unchanged: loops stay loops, and random numbers are drawn in the graph."""

from collections.abc import Sequence

import numpy as np
from jax.extend.core import ClosedJaxpr
from jax.interpreters.partial_eval import dce_jaxpr
from onnx import NodeProto, TensorProto, helper

from reverie.onnx import elementwise, indices, loops, randomness, shapes  # noqa: F401  (they fill the table)
from reverie.onnx.graph import INLINE, Constants, Graph, Value, info
from reverie.onnx.narrow import narrow
from reverie.onnx.table import run

OPSET, IR = 21, 10  # of November 2024: every runtime that has bitwise operators has these


def convert(
    program: ClosedJaxpr, given: Sequence[np.ndarray | str], outputs: Sequence[str], constants: Constants
) -> bytes:
    """Return a traced program as the bytes of an ONNX model.

    ``given`` has an entry for each input of the program: its value, a constant of the model, or a name, an input of the
    model. ``outputs`` name the outputs. Large constants are added to ``constants``. Raises ``Unsupported`` for what the
    converter does not know.
    """
    jaxpr, _ = dce_jaxpr(program.jaxpr, [True] * len(outputs), instantiate=True)
    graph = Graph()
    operands = [
        graph.input(aval.shape, aval.dtype, each) if isinstance(each, str) else np.asarray(each)
        for each, aval in zip(given, program.in_avals, strict=True)
    ]
    found = run(graph, ClosedJaxpr(jaxpr, program.consts), operands)
    results = []
    for operand, aval, name in zip(found, program.out_avals, outputs, strict=True):
        value = Value(name, aval.shape, np.dtype(aval.dtype))
        graph.nodes.append(helper.make_node("Identity", [graph.name(graph.full(operand, aval.shape))], [name]))
        results.append(value)
    tensors, widened = _constants(graph, constants)
    made = helper.make_graph(
        [*widened, *graph.nodes], "program", [*map(info, graph.inputs)], [*map(info, results)], tensors
    )
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR, producer_name="reverie"
    )
    return model.SerializeToString()


def _constants(graph: Graph, constants: Constants) -> tuple[list[TensorProto], list[NodeProto]]:
    """Return a graph's constants, and the nodes that widen those that are stored in fewer bits."""
    tensors, nodes = [], []
    for name, array in graph.constants.values():
        found = narrow(array) if array.nbytes > INLINE else None
        if found is None:
            tensors.append(constants.tensor(array, name))
            continue
        few, scale, wide = graph.fresh(), graph.fresh(), graph.fresh()
        tensors += [constants.tensor(found[0], few), constants.tensor(found[1], scale)]
        nodes.append(helper.make_node("Cast", [few], [wide], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [wide, scale], [name]))
    return tensors, nodes
