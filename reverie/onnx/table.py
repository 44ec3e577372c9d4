"""The table of primitives: what each operation of a traced JAX program is in ONNX.

A rule adds nodes to a graph: ``rule(graph, equation, *operands)`` returns an operand, or a list of them. Operands are
written out in full before the rule sees them, unless it is ``lazy``. Tests compare every rule with JAX.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from reverie.errors import ReverieError
from reverie.onnx.graph import Graph, Operand, Value


class Tensor(NamedTuple):
    """Shape and dtype in the traced program; a random key is the two uint32 that it consists of."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Equation(NamedTuple):
    """One operation of the traced program."""

    name: str
    params: dict[str, Any]
    ins: list[Tensor]
    outs: list[Tensor]


class Rule(NamedTuple):
    """How one primitive is converted."""

    convert: Callable[..., Any]
    lazy: bool


PRIMITIVES: dict[str, Rule] = {}
CALLS = {"jit", "closed_call", "remat2", "custom_jvp_call", "custom_vjp_call"}  # they only wrap a program


class Unsupported(ReverieError):
    """A traced program does something that the converter does not know."""


def rule(*names: str, lazy: bool = False) -> Callable[[Callable], Callable]:
    """Register a function as the rule of these primitives."""

    def register(convert: Callable) -> Callable:
        PRIMITIVES.update(dict.fromkeys(names, Rule(convert, lazy)))
        return convert

    return register


def refuse(equation: Equation, why: str) -> Unsupported:
    """Return the error about an operation whose primitive is known, in a form that is not."""
    return Unsupported(f"this model cannot be exported: its '{equation.name}' has {why}, which the converter lacks.")


def run(graph: Graph, program: Any, operands: Sequence[Operand]) -> list[Operand]:
    """Add what a jaxpr does with these operands to a graph, and return its outputs."""
    closed = program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, [])
    known: dict[Any, Operand] = dict(zip(closed.jaxpr.constvars, map(_plain, closed.consts), strict=True))
    known |= dict(zip(closed.jaxpr.invars, operands, strict=True))

    def read(variable: Any) -> Operand:
        return (
            np.asarray(variable.val, _tensor(variable.aval).dtype) if isinstance(variable, Literal) else known[variable]
        )

    for equation in closed.jaxpr.eqns:
        given = [read(each) for each in equation.invars]
        known |= dict(zip(equation.outvars, _convert(graph, equation, given), strict=True))
    return [read(each) for each in closed.jaxpr.outvars]


def _convert(graph: Graph, eqn: Any, operands: list[Operand]) -> list[Operand]:
    name = eqn.primitive.name
    if name in CALLS:
        inner = next(eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in eqn.params)
        return run(graph, inner, operands)
    if name == "broadcast_in_dim" or any(isinstance(each, Value) for each in operands):
        if name not in PRIMITIVES:
            raise Unsupported(
                f"this model cannot be exported: it uses JAX's '{name}', which is not among the {len(PRIMITIVES)} "
                "operations that the converter knows."
            )
        found = PRIMITIVES[name]
        equation = Equation(name, eqn.params, *([_tensor(v.aval) for v in vs] for vs in (eqn.invars, eqn.outvars)))
        if not found.lazy:
            operands = [graph.full(each, tensor.shape) for each, tensor in zip(operands, equation.ins, strict=True)]
        result = found.convert(graph, equation, *operands)
        return result if isinstance(result, list) else [result]
    return _fold(eqn, operands)


def _fold(eqn: Any, operands: list[Operand]) -> list[Operand]:
    """Compute an operation on constants now, with JAX."""
    given = []
    for operand, variable in zip(operands, eqn.invars, strict=True):
        array = np.broadcast_to(np.asarray(operand), _tensor(variable.aval).shape)
        given.append(jax.random.wrap_key_data(jnp.asarray(array)) if _is_key(variable.aval) else array)
    found = eqn.primitive.bind(*given, **eqn.params)
    return [_compact(_plain(each)) for each in (found if eqn.primitive.multiple_results else [found])]


def _compact(array: np.ndarray) -> np.ndarray:
    """Return an array with size 1 along dimensions in which it is constant."""
    for axis, size in enumerate(array.shape):
        first = array.take([0], axis) if size > 1 else array
        if size > 1 and (array == first).all():
            array = first
    return array


def _plain(array: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(array) if _is_key(array) else array)


def _is_key(array: Any) -> bool:
    return hasattr(array, "dtype") and jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def _tensor(aval: Any) -> Tensor:
    if not _is_key(aval):
        return Tensor(tuple(aval.shape), np.dtype(aval.dtype))
    if str(aval.dtype) != "key<fry>" or not jax.config.values["jax_threefry_partitionable"]:
        raise Unsupported("this model cannot be exported: its random numbers are not those of partitionable threefry.")
    return Tensor((*aval.shape, 2), np.dtype(np.uint32))
