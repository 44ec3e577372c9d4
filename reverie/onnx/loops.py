"""Rules for loops. Both become ONNX's Loop: a body that reads what it needs from the graph around it."""

from collections.abc import Sequence

import numpy as np
from onnx import helper

from reverie.onnx.graph import Graph, Operand, Value, info
from reverie.onnx.table import Equation, Tensor, refuse, rule, run

FOREVER = np.array(np.iinfo(np.int64).max, np.int64)


@rule("scan", lazy=True)
def scan(g: Graph, e: Equation, *operands: Operand) -> list[Value]:
    consts, carried = e.params["num_consts"], e.params["num_carry"]
    if e.params["reverse"]:
        raise refuse(e, "reversed time")
    fixed = operands[:consts]
    given = [g.full(each, tensor.shape) for each, tensor in zip(operands, e.ins, strict=True)][consts:]
    body = Graph(g)
    step, going = body.input((), np.int64), body.input((), bool)
    carry = [body.input(*tensor) for tensor in e.ins[consts : consts + carried]]
    rows = [body.op("Gather", [x, step], x.shape[1:], x.dtype, axis=0) for x in given[carried:]]
    results = run(body, e.params["jaxpr"], [*fixed, *carry, *rows])
    outs = [*e.outs[:carried], *(Tensor(shape[1:], dtype) for shape, dtype in e.outs[carried:])]
    count = np.array(e.params["length"], np.int64)
    return _loop(g, body, count, np.array(True), given[:carried], [going, *_written(body, results, outs)], e.outs)


@rule("while", lazy=True)
def while_(g: Graph, e: Equation, *operands: Operand) -> list[Value]:
    split = e.params["cond_nconsts"]
    fixed = operands[split : split + e.params["body_nconsts"]]
    init = [g.full(each, out.shape) for each, out in zip(operands[split + len(fixed) :], e.outs, strict=True)]
    (begins,) = run(g, e.params["cond_jaxpr"], [*operands[:split], *init])
    body = Graph(g)
    for dtype in (np.int64, bool):  # the round, and whether the last one wanted another
        body.input((), dtype)
    carry = [body.input(*tensor) for tensor in e.outs]
    results = _written(body, run(body, e.params["body_jaxpr"], [*fixed, *carry]), e.outs)
    again = run(body, e.params["cond_jaxpr"], [*operands[:split], *results])
    going = _written(body, again, [Tensor((), np.dtype(bool))])
    return _loop(g, body, FOREVER, begins, init, [*going, *results], e.outs)


def _written(body: Graph, operands: Sequence[Operand], outs: Sequence[Tensor]) -> list[Value]:
    """Return outputs of a body, each with a node of its own, as ONNX demands."""
    return [body.op("Identity", [body.full(each, out.shape)], *out) for each, out in zip(operands, outs, strict=True)]


def _loop(
    g: Graph,
    body: Graph,
    count: np.ndarray,
    begins: Operand,
    init: Sequence[Operand],
    results: Sequence[Value],
    outs: Sequence[Tensor],
) -> list[Value]:
    """Add a Loop; ``results`` of its body: whether to go on, what is carried, what is collected."""
    if results[0] in body.inputs:
        results = [*_written(body, results[:1], [Tensor((), np.dtype(bool))]), *results[1:]]
    graph = helper.make_graph(body.nodes, "body", [*map(info, body.inputs)], [*map(info, results)])
    return g.ops("Loop", [count, begins, *init], outs, body=graph)
