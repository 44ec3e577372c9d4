"""Which number type matmuls run in."""

import jax.numpy as jnp

from reverie.nn.target import target


def compute_dtype(name: str) -> jnp.dtype:
    """Return the type named; "auto" is bfloat16 on accelerators and float32 on CPU (there bfloat16 is 1-5x slower)."""
    if name == "auto":
        name = "float32" if target().platform == "cpu" else "bfloat16"
    return jnp.dtype(name)
