"""The converter from JAX to ONNX: every primitive of its table, on arrays of random shapes, against JAX."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr
from primitives import CASES

from reverie.onnx.convert import convert
from reverie.onnx.graph import Constants
from reverie.onnx.table import CALLS, PRIMITIVES, Unsupported


def model(program, arrays):
    """Return (ONNX model, constants, names of inputs, names of outputs) of a program."""
    closed = jax.make_jaxpr(program)(*arrays)
    ins = [f"in{i}" for i in range(len(arrays))]
    outs = [f"out{i}" for i in range(len(closed.out_avals))]
    constants = Constants()
    return convert(closed, ins, outs, constants), constants, ins, outs


def run(made, constants, feed, outs) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if constants.data:
        data = bytes(constants.data)
        options.add_external_initializers_from_files_in_memory(["weights"], [data], [len(data)])
    session = onnxruntime.InferenceSession(made, options, providers=["CPUExecutionProvider"])
    return list(session.run(outs, {name: np.asarray(array) for name, array in feed.items()}))


def primitives(jaxpr, found):
    for eqn in jaxpr.eqns:
        found.add(eqn.primitive.name)
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr)):
            if isinstance(value, ClosedJaxpr | Jaxpr):
                primitives(getattr(value, "jaxpr", value), found)
    return found


@pytest.mark.parametrize("name", CASES)
def test_every_primitive_computes_what_jax_does(name):
    program, arrays = CASES[name](np.random.default_rng(zlib.crc32(name.encode())))
    expected = jax.tree.leaves(jax.jit(program)(*map(jnp.asarray, arrays)))
    made, constants, ins, outs = model(program, arrays)
    found = run(made, constants, dict(zip(ins, arrays, strict=True)), outs)
    for at, (got, want) in enumerate(zip(found, expected, strict=True)):
        assert got.dtype == want.dtype and got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6, err_msg=f"output {at}")


def test_no_primitive_is_left_out():
    found = set()
    for draw in CASES.values():
        program, arrays = draw(np.random.default_rng(0))
        primitives(jax.make_jaxpr(program)(*arrays).jaxpr, found)
    assert set(PRIMITIVES) - found == set()
    assert found - set(PRIMITIVES) - CALLS - {"iota"} == set(), "constants only"


def test_large_constants_are_stored_once_for_several_models():
    weights = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    constants = Constants()
    x = np.ones((2, 40), np.float32)
    programs = [lambda w, x: x @ w, lambda w, x: jnp.tanh(x) @ w, lambda w, x: x[:, :30] @ w.T]
    made = [convert(jax.make_jaxpr(program)(weights, x), [weights, "x"], ["y"], constants) for program in programs]
    assert len(constants.data) == 2 * weights.nbytes, "the third reads the transpose"
    assert max(map(len, made)) < 1000
    for program, each in zip(programs, made, strict=True):
        np.testing.assert_allclose(run(each, constants, {"x": x}, ["y"])[0], program(weights, x), rtol=1e-5)


@pytest.mark.parametrize(
    ("program", "arrays", "reason"),
    [
        (lax.lgamma, [np.ones(3, np.float32)], "uses JAX's 'lgamma', which is not among the"),
        (lambda x: lax.select_n(x, x, x, x), [np.ones(3, np.int32)], "'select_n' has 3 cases"),
        (lambda x: lax.shift_right_logical(x, x), [np.ones(3, np.uint32)], "a width that is not known to be below 32"),
        (lambda x, i: x.at[i].set(1.0), [np.ones(3, np.float32), np.int32(5)], "places that are not known to be"),
        (lambda x: jax.vmap(jax.random.bits)(jax.random.split(jax.random.key(x))), [np.uint32(1)], "several keys"),
        (lambda x: jax.random.bits(jax.random.key(x, impl="rbg")), [np.uint32(1)], "not those of partitionable"),
        (lambda x: lax.scan(lambda c, r: (c + r, r), 0.0, x, reverse=True), [np.ones(3, np.float32)], "reversed time"),
        (lambda x: x @ x.T, [np.ones((2, 2), np.int32)], "'dot_general' has int32 and int32"),
    ],
)
def test_what_the_converter_lacks_is_one_line(program, arrays, reason):
    with pytest.raises(Unsupported, match=reason) as error:
        model(program, arrays)
    assert "\n" not in str(error.value)
