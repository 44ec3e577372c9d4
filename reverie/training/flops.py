"""Counting the arithmetic of a program from its jaxpr.

XLA's own cost analysis counts the body of a loop once; here a scan counts as often as it runs. Only matmuls and
convolutions are counted: they are all that matters for speed, and what a device's peak is quoted for.
"""

import math
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def count(program: Any) -> float:
    """Return the floating-point operations (a multiply and an add are two) of one run of a (closed) jaxpr.

    The jaxpr of ``fn`` is ``jax.jit(fn).trace(*args).jaxpr``. Of a ``cond``, the costliest branch counts; of a
    ``while`` loop, whose length nobody knows beforehand, one turn.
    """
    jaxpr: Jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, axes = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec
        # An output element sums over the window and the input channels of its group: all of the kernel but one axis.
        window = math.prod(kernel) // kernel[axes[0]]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * window
    inner = [count(jaxpr) for jaxpr in _inside(params)]
    if name == "cond":
        return max(inner, default=0.0)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _inside(params: dict[str, Any]) -> list[Any]:
    """The programs an equation runs: the body of a scan, the branches of a cond, a function under jit or remat."""
    leaves = jax.tree.leaves(list(params.values()), is_leaf=lambda leaf: isinstance(leaf, ClosedJaxpr | Jaxpr))
    return [leaf for leaf in leaves if isinstance(leaf, ClosedJaxpr | Jaxpr)]
