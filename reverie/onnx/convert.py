"""A traced JAX program as an ONNX model, unchanged: loops stay loops, and random numbers are drawn in the graph."""

from collections.abc import Sequence

import numpy as np
from jax.extend.core import ClosedJaxpr
from jax.interpreters.partial_eval import dce_jaxpr
from onnx import helper

from reverie.onnx import elementwise, indices, loops, randomness, shapes  # noqa: F401  (they fill the table)
from reverie.onnx.graph import Constants, Graph, Value, info
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
    tensors = [constants.tensor(array, name) for name, array in graph.constants.values()]
    made = helper.make_graph(graph.nodes, "program", [*map(info, graph.inputs)], [*map(info, results)], tensors)
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR, producer_name="reverie"
    )
    return model.SerializeToString()
