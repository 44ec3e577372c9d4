"""Linear layers that multiply 8-bit integers, in training and after it.

Rows of the inputs and columns of the kernel are each divided by a factor and rounded to -127..127 as they are
multiplied; weights stay in full. Gradients are those of the product without rounding (straight-through). Integer
products take half the time of bfloat16 ones on accelerators that have them, such as TPU v5e.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from reverie.nn.linear import Linear
from reverie.nn.target import target

LARGEST = 127


class Int8Linear(Linear):
    """``Linear`` whose products are of rounded inputs and weights."""

    def matmul(self, x: Array, kernel: Array) -> Array:
        return int8_product(x, kernel)


@jax.custom_vjp
def int8_product(x: Array, kernel: Array) -> Array:
    """(..., I), (I, O) -> (..., O), in the type of ``x``: the product of both, rounded to 8 bits by row and column."""
    rounded, rows = _rounded(x, -1)
    narrow, columns = _rounded(kernel, 0)
    if target().platform == "cpu":
        # There XLA has no fast product of integers: 65 rows, 256 by 1024, took 4.2 ms instead of 0.9. Sums of the same
        # numbers as float32 are exact for up to 1040 inputs.
        total = jnp.matmul(rounded, narrow)
    else:
        total = jnp.matmul(rounded.astype(jnp.int8), narrow.astype(jnp.int8), preferred_element_type=jnp.int32)
    each = (1,) * (total.ndim - 1) + (-1,)  # a factor for each column
    return (total.astype(jnp.float32) * rows * columns.reshape(each)).astype(x.dtype)


def _rounded(a: Array, axis: int) -> tuple[Array, Array]:
    """Return whole numbers as float32, and the factor along ``axis`` that makes them ``a`` again; 0 stays 0."""
    a = a.astype(jnp.float32)
    factor = jnp.max(jnp.abs(a), axis=axis, keepdims=True) / np.float32(LARGEST)
    return jnp.round(a / jnp.where(factor > 0, factor, np.float32(1))), factor


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return int8_product(x, kernel), (x, kernel)


def _backward(given: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    return jax.vjp(jnp.matmul, *given)[1](grad)


int8_product.defvjp(_forward, _backward)
