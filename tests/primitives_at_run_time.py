"""Programs for the converter to ONNX whose places, rounds or random numbers are known only when they run."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from primitives import bits, case, flags, normal, positive, shape, whole


@case
def dynamic_slices(rng):
    """Starts out of bounds are moved inside."""

    def program(x, i, j):
        return (
            lax.dynamic_slice(x, (i, j, 0), (2, 1, 3)),
            lax.dynamic_index_in_dim(x, j, 1, keepdims=False),
            lax.dynamic_slice(x, (1, i, j), (2, 2, 2)),
        )

    return program, (normal(rng, 4, 5, 3), np.int32(rng.integers(-1, 6)), np.int32(rng.integers(-1, 6)))


@case
def dynamic_updates(rng):
    def program(x, n, b, u, i, j):
        return (
            lax.dynamic_update_slice(x, u, (i, j, 0)),
            lax.dynamic_update_slice(x, u[:1], (1, j, i)),
            lax.dynamic_update_slice(x, u[:, :1], (0, i, j)),
            lax.dynamic_update_index_in_dim(x, x[0] * 2, i, 0),
            lax.dynamic_update_slice(n, n[:1], (i, j)),
            lax.dynamic_update_index_in_dim(b, ~b[:1], j, 0),
        )

    arrays = normal(rng, 4, 5, 3), whole(rng, 3, 4), flags(rng, 6), normal(rng, 2, 2, 3)
    return program, (*arrays, np.int32(rng.integers(-1, 6)), np.int32(rng.integers(-1, 6)))


@case
def gathers(rng):
    """Inside, and outside in every mode."""
    rows, columns, depth = shape(rng)

    def program(x, n, at, near):
        index = at % rows
        return (
            x.at[index].get(mode="promise_in_bounds"),
            x.at[at].get(mode="clip"),
            x.at[at].get(mode="fill"),
            x.at[:, near].get(mode="clip"),
            x.at[at, :, near].get(mode="fill", fill_value=7.0),
            jnp.take_along_axis(x, near[0] % columns + jnp.zeros((rows, 2, depth), jnp.int32), 1),
            jnp.take_along_axis(x[:, :, 0], jnp.broadcast_to(near, (rows, 2)), 1, mode="fill"),
            n.at[at].get(mode="fill"),
        )

    arrays = normal(rng, rows, columns, depth), whole(rng, rows, 2)
    return program, (*arrays, whole(rng, 2), whole(rng, 2, low=-2, high=7))


@case
def scatters(rng):
    size = shape(rng)

    def program(x, n, row, at):
        return (
            x.at[:, 1].set(row),
            x.at[:, 0].set(3.0),
            n.at[..., 1].set(5),
            x.at[jnp.array([0, 1]), :, 1].set(row[:2, :1] + jnp.zeros((2, size[1]), jnp.float32)),
            x.at[at].set(row[: len(at), None], mode="clip"),
        )

    at = rng.permutation(4)[:2].astype(np.int32) - 1
    at = at if len(np.unique(np.clip(at, 0, size[0] - 1))) == 2 else np.array([0, 1], np.int32)
    return program, (normal(rng, *size), whole(rng, *size), normal(rng, size[0], size[2]), at)


# -- loops -----------------------------------------------------------------------------------------------------------


@case
def scans(rng):
    def program(x, w, start):
        def step(carry, row):
            count, total = carry
            total = jnp.tanh(total @ w + row)
            return (count + 1, total), (total.sum(), jnp.broadcast_to(count, (2, 3)))

        empty = jnp.zeros((x.shape[1],), jnp.float32)  # a constant is carried
        return lax.scan(step, (start, empty), x), lax.scan(lambda c, _: (c + 1, c), start, None, length=3)

    return program, (normal(rng, 5, 4), normal(rng, 4, 4), np.int32(rng.integers(5)))


@case
def counted_loops(rng):
    """Any number of rounds, none too; one loop in another."""

    def program(x, count, none):
        def inner(i, y):
            return y + x[i % 3].sum() * lax.fori_loop(0, i, lambda _, z: z * 0.5, jnp.float32(1))

        return [lax.fori_loop(0, n, inner, jnp.float32(0)) for n in (count, none)]

    return program, (normal(rng, 3, 2), np.int32(rng.integers(1, 6)), np.int32(0))


@case
def conditional_loops(rng):
    def program(x, most):
        return lax.while_loop(lambda c: (c[0] < most) & (c[1].sum() < 99), lambda c: (c[0] + 1, c[1] * 2), (0, x))

    return program, (positive(rng, 4), np.int32(rng.integers(9)))


# -- random numbers --------------------------------------------------------------------------------------------------


@case
def random_numbers(rng):
    def program(seed, step, signed):
        key = jax.random.fold_in(jax.random.key(seed), step)
        first, second, third = jax.random.split(key, 3)
        return (
            jax.random.bits(first, (3, 5)),
            jax.random.uniform(second, (2, 7), minval=-1.0, maxval=3.0),
            jax.random.normal(third, (40,)),
            jax.random.key_data(jax.random.fold_in(jax.random.key(signed), jnp.int32(-3))),
            jax.random.gumbel(jax.random.fold_in(jax.random.key(7), step), (9,)),
        )

    return program, (bits(rng, 1)[0], bits(rng, 1)[0], np.int32(rng.integers(-9, 9)))


@case
def random_keys_in_a_loop(rng):
    def program(seed):
        keys = jax.random.split(jax.random.key(seed), 4)
        return lax.scan(lambda total, key: (total + jax.random.uniform(key), jax.random.bits(key)), 0.0, keys)

    return program, (bits(rng, 1)[0],)


@case
def calls(rng):
    """What only wraps a program, and what is known now."""

    def program(x):
        known = jnp.sin(jnp.ones((3, 4), jnp.float32)) + jax.random.uniform(jax.random.key(3), (3, 4))
        wrapped = jax.checkpoint(jax.nn.silu)(x)
        return jax.jit(lambda y: y * known)(x), wrapped, jax.nn.relu(x), known, x

    return program, (normal(rng, 3, 4),)
