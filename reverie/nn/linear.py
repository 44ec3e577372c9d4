"""The linear layer of every model here.

Shapes: ... any leading axes, R rows, I inputs, O outputs.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from reverie.nn.placement import size, split_over


class Linear(nnx.Linear):
    """``nnx.Linear`` whose gradients are products of matrices as they lie: (..., I) -> (..., O).

    For tensors with more than two axes, XLA's CPU backend computes the gradient of the weights from a transposed copy,
    and recomputes its inputs there. It also sums the gradient of a bias column by column. Both were a sixth of a
    training step (docs/speed.md). Reverse mode only: it has no ``jax.jvp``.

    ``scale``: (..., 1, O), a factor of each column where the kernel is int8 (``narrow_weights``); None: there is none.
    """

    scale: Any = None

    def __call__(self, inputs: Array) -> Array:
        bias = None if self.bias is None else self.bias[...]
        if self.scale is None:
            return self.product(inputs, self.kernel[...], bias)
        outputs = self.product(inputs, self.kernel[...].astype(inputs.dtype), None)
        each = (1,) * (outputs.ndim - 1) + (-1,)  # a number for each column
        scaled = outputs.astype(jnp.float32) * self.scale[...].reshape(each)
        return (scaled if bias is None else scaled + bias.reshape(each)).astype(outputs.dtype)

    @property
    def weights(self) -> tuple[Array, Array | None]:
        """The kernel, multiplied by its scale if it has one, and the bias."""
        kernel = self.kernel[...]
        kernel = kernel if self.scale is None else kernel.astype(jnp.float32) * self.scale[...]
        return kernel, None if self.bias is None else self.bias[...]

    def product(self, inputs: Array, kernel: Array, bias: Array | None) -> Array:
        """Apply other weights than its own, such as some of its columns (I, O) and their bias (O,)."""
        x, kernel, bias = self.promote_dtype((inputs, kernel, bias), dtype=self.dtype)
        if size("sequence") > 1 and not split_over("sequence"):  # rows of other devices lie between those of one
            outputs = self.matmul(x, kernel)
            return outputs if bias is None else outputs + bias.reshape((1,) * (x.ndim - 1) + bias.shape)
        outputs = self.matmul(x.reshape(-1, x.shape[-1]), kernel)
        if split_over("tensor") and len(kernel) < self.in_features:  # this device has some of the inputs
            outputs = jax.lax.psum(outputs, "tensor")
        outputs = outputs if bias is None else _shifted(outputs, bias)
        return outputs.reshape(*inputs.shape[:-1], kernel.shape[-1])

    def matmul(self, x: Array, kernel: Array) -> Array:
        """Multiply (..., I) by (I, O), both in the type of the layer's products."""
        return jnp.matmul(x, kernel, precision=self.precision)


@jax.custom_vjp
def _shifted(rows_RO: Array, bias_O: Array) -> Array:
    return rows_RO + bias_O[None]


def _shifted_back(_, grad_RO: Array) -> tuple[Array, Array]:
    ones = jnp.ones((1, len(grad_RO)), grad_RO.dtype)
    return grad_RO, jnp.matmul(ones, grad_RO, preferred_element_type=jnp.float32)[0].astype(grad_RO.dtype)


_shifted.defvjp(lambda rows_RO, bias_O: (_shifted(rows_RO, bias_O), None), _shifted_back)
