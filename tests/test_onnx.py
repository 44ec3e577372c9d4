"""The converter from JAX to ONNX: every primitive of its table, on arrays of random shapes, against JAX.

The models run natively, and all of them once more in a browser, whose runtime is stricter.
"""

import base64
import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import primitives_at_run_time  # noqa: F401  (adds its cases)
import pytest
from browsing import browser, needed  # noqa: F401  (a fixture)
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr
from primitives import CASES

from reverie.errors import ReverieError
from reverie.onnx.convert import convert
from reverie.onnx.graph import Constants
from reverie.onnx.narrow import eighths, halves, narrow
from reverie.onnx.table import CALLS, PRIMITIVES, Unsupported
from reverie.web.runtime import runtime


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


@functools.cache
def drawn(name):
    """Return (ONNX model, inputs by name, what JAX computes) of a case."""
    program, arrays = CASES[name](np.random.default_rng(zlib.crc32(name.encode())))
    expected = [*map(np.asarray, jax.tree.leaves(jax.jit(program)(*map(jnp.asarray, arrays))))]
    made, constants, ins, outs = model(program, arrays)
    assert not constants.data
    return made, dict(zip(ins, map(np.asarray, arrays), strict=True)), dict(zip(outs, expected, strict=True))


def same(name, got, want):
    assert got.dtype == want.dtype and got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("name", CASES)
def test_every_primitive_computes_what_jax_does(name):
    made, feed, expected = drawn(name)
    for (out, want), got in zip(expected.items(), run(made, Constants(), feed, list(expected)), strict=True):
        same(out, got, want)


IN_A_BROWSER = """async ([runtime, wasm, models]) => {
    const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const kinds = {float32: Float32Array, int32: Int32Array, uint32: Uint32Array, uint8: Uint8Array, bool: Uint8Array};
    const ort = await import(URL.createObjectURL(new Blob([runtime], {type: "text/javascript"})));
    Object.assign(ort.env.wasm, {wasmBinary: bytes(wasm), numThreads: 1});
    const found = {};
    for (const [name, [model, inputs]] of Object.entries(models)) {
        try {
            const session = await ort.InferenceSession.create(bytes(model), {executionProviders: ["wasm"]});
            const feed = {};
            for (const [id, [type, data, shape]] of Object.entries(inputs))
                feed[id] = new ort.Tensor(type, new kinds[type](bytes(data).buffer), shape);
            const out = await session.run(feed);
            found[name] = Object.fromEntries(Object.entries(out).map(([id, {type, data, dims}]) =>
                [id, [type, Array.from(data, (value) => Object.is(value, -0) ? "-0" : String(value)), dims]]));
        } catch (problem) { found[name] = String(problem); }
    }
    return found;
}"""


@needed
def test_every_primitive_computes_the_same_in_a_browser(browser, tmp_path):  # noqa: F811
    try:
        files = runtime()
    except ReverieError as error:
        pytest.skip(str(error))

    def text(array):
        return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()

    models = {
        name: [base64.b64encode(made).decode(), {k: [v.dtype.name, text(v), v.shape] for k, v in feed.items()}]
        for name, (made, feed, _) in ((name, drawn(name)) for name in CASES)
    }
    page = browser.new_page()
    (tmp_path / "page.html").write_text("<!doctype html>")
    page.goto((tmp_path / "page.html").as_uri())
    found = page.evaluate(IN_A_BROWSER, [files.script.decode(), base64.b64encode(files.wasm).decode(), models])
    page.close()
    assert {name: why for name, why in found.items() if isinstance(why, str)} == {}
    for name, outs in found.items():
        for out, want in drawn(name)[2].items():
            kind, values, dims = outs[out]
            numbers = [value == "1" for value in values] if kind == "bool" else [float(value) for value in values]
            same(f"{name} {out}", np.array(numbers).astype(kind).reshape(dims), want)


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


@pytest.mark.parametrize(("rounding", "bytes_each"), [(halves, 2), (eighths, 1)])
def test_rounded_weights_are_stored_in_their_few_bits(rounding, bytes_each):
    weights = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)
    weights[:, 3] = 0
    few, scale = rounding(weights)
    close = few.astype(np.float32) * scale
    assert 0 < np.abs(close - weights).max() <= np.abs(weights).max() / (2000 if bytes_each == 2 else 250)
    constants = Constants()
    x = np.ones((2, 64), np.float32)
    made = convert(jax.make_jaxpr(lambda w, x: x @ w)(close, x), [close, "x"], ["y"], constants)
    assert len(constants.data) == bytes_each * weights.size
    np.testing.assert_allclose(run(made, constants, {"x": x}, ["y"])[0], x @ close, rtol=1e-5, atol=1e-5)
    assert narrow(weights) is None, "what is not rounded stays whole"


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
