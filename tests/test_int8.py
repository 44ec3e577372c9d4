"""Products of 8-bit integers: near the full ones, the same numbers on every machine, and gradients of the full ones."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.tiny import SMALL
from flax import nnx

from reverie.nn.int8 import Int8Linear, int8_product
from reverie.nn.linear import Linear
from reverie.nn.target import Target, traced_for
from reverie.nn.transformer import SpaceTimeTransformer

RNG = np.random.default_rng(0)


def numbers(*shape: int) -> jax.Array:
    """Rows and columns of very different sizes, some of them 0."""
    a = RNG.normal(size=shape) * np.exp(RNG.normal(size=(*shape[:-1], 1))) * np.exp(RNG.normal(size=shape[-1]))
    a[0], a[..., 0] = 0, 0
    return jnp.asarray(a, jnp.float32)


def test_a_product_is_off_by_no_more_than_the_rounding_of_its_factors():
    """|x w - x' w'| <= |x'| |w - w'| + |x - x'| |w|, and each number is off by at most half a step of its row."""
    x, w = numbers(7, 48), numbers(48, 9)
    rows, columns = np.abs(x).max(1, keepdims=True), np.abs(w).max(0, keepdims=True)
    bound = 48 * rows * columns * (1 / 127) * 1.01
    error = np.abs(np.asarray(int8_product(x, w) - x @ w))
    assert (error <= bound).all() and error.max() > 0
    assert error.mean() / np.abs(x @ w).mean() < 0.05
    whole = jnp.asarray(RNG.integers(-127, 128, (5, 48)), jnp.float32).at[:, 0].set(127)
    np.testing.assert_allclose(int8_product(whole, whole.T), whole @ whole.T, rtol=1e-6)


@pytest.mark.parametrize("shape", [(7,), (2, 3)])
def test_machines_with_integer_products_compute_what_a_cpu_computes(shape):
    x, w = numbers(*shape, 48), numbers(48, 9)
    with traced_for(Target("tpu")):
        program = jax.jit(lambda x, w: int8_product(x, w)).lower(x, w)
    assert "xi8>" in program.as_text() and "xi32>" in program.as_text()
    np.testing.assert_array_equal(program.compile()(x, w), int8_product(x, w))


def test_gradients_are_those_of_the_product_without_rounding():
    x, w, grad = numbers(2, 3, 48), numbers(48, 9), numbers(2, 3, 9)
    given = jax.vjp(int8_product, x, w)[1](grad)
    for mine, full in zip(given, jax.vjp(jnp.matmul, x, w)[1](grad), strict=True):
        np.testing.assert_array_equal(mine, full)


def test_a_transformer_computes_its_layers_so_and_nothing_else():
    nets = (SpaceTimeTransformer(replace(SMALL, int8=flag), (2, 2), 0, rngs=nnx.Rngs(0)) for flag in (False, True))
    plain, int8 = nets
    kinds = {type(layer) for _, layer in nnx.iter_modules(int8) if isinstance(layer, Linear)}
    assert kinds == {Int8Linear}
    x = jnp.asarray(RNG.normal(size=(2, 3, 4, SMALL.width)), jnp.float32)
    a, b = plain(x), int8(x)
    assert 0 < float(jnp.abs(a - b).mean() / jnp.abs(a).mean()) < 0.03
