"""The linear layer of every model here.

Shapes: ... any leading axes, I inputs, O outputs.
"""

from flax import nnx
from jax import Array


class Linear(nnx.Linear):
    """``nnx.Linear`` applied to (..., I) as to a matrix of rows: (..., O).

    The gradient of the weights is then one product of two matrices as they lie. Of tensors with more axes XLA's CPU
    backend first makes a transposed copy, with whatever led to it computed again inside: a sixth of a training step
    (docs/speed.md).
    """

    def __call__(self, inputs: Array) -> Array:
        return super().__call__(inputs.reshape(-1, inputs.shape[-1])).reshape(*inputs.shape[:-1], self.out_features)
