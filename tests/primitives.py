"""Small programs that together use every primitive of the converter to ONNX, in each form that a model may need.

``CASES`` maps a name to a function that draws shapes and inputs and returns (program, arrays). More of them
are in ``primitives_at_run_time``.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

Case = Callable[[np.random.Generator], tuple[Callable, tuple]]
CASES: dict[str, Case] = {}


def shape(rng: np.random.Generator, rank: int = 3) -> tuple[int, ...]:
    return tuple(map(int, rng.integers(2, 6, rank)))


def normal(rng: np.random.Generator, *size: int) -> np.ndarray:
    return rng.normal(0, 2, size or shape(rng)).astype(np.float32)


def whole(rng: np.random.Generator, *size: int, low: int = -9, high: int = 10, dtype: Any = np.int32) -> np.ndarray:
    return rng.integers(low, high, size or shape(rng)).astype(dtype)


def bits(rng: np.random.Generator, *size: int) -> np.ndarray:
    return rng.integers(0, 2**32, size or shape(rng), dtype=np.uint64).astype(np.uint32)


def flags(rng: np.random.Generator, *size: int) -> np.ndarray:
    return rng.integers(0, 2, size or shape(rng)).astype(bool)


def add(name: str, program: Callable, *draw: Callable) -> None:
    CASES[name] = lambda rng: (program, tuple(each(rng) for each in draw))


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


def alike(program: Callable, draw: Callable, count: int = 2) -> Case:
    """Draw operands of one shape, and of shapes that broadcast."""

    def drawn(rng):
        size = shape(rng)
        operands = [draw(rng, *size) for _ in range(count)]
        row = draw(rng, 1, size[1], 1)

        def both(row, *operands):
            wide = jnp.broadcast_to(row, size)
            return program(*operands), program(operands[0], *[wide] * (count - 1))

        return both, (row, *operands)

    return drawn


def positive(rng, *size):
    return np.abs(normal(rng, *size)) + np.float32(0.1)


def inside(rng, *size):
    return rng.uniform(-1, 1, size or shape(rng)).astype(np.float32)


def small(rng, *size):
    return (normal(rng, *size) * 10.0 ** rng.integers(-7, 1)).astype(np.float32)


for name in ("abs", "ceil", "cos", "erf", "exp", "exp2", "floor", "logistic", "neg", "sign", "sin", "tanh"):
    add(name, getattr(lax, name), normal)
for name in ("log", "sqrt", "rsqrt"):
    add(name, getattr(lax, name), positive)
for name in ("log1p", "expm1"):
    add(name, getattr(lax, name), lambda rng: np.concatenate([small(rng, 40), inside(rng, 40), positive(rng, 9)]))
add(
    "erf_inv",
    lax.erf_inv,
    lambda rng: np.concatenate([inside(rng, 99), np.array([0, -1, 1, 0.9999999, 1e-9], np.float32)]),
)
add("neg_int", lax.neg, whole)
add("abs_sign_int", lambda x: (lax.abs(x), lax.sign(x)), whole)
for name in ("add", "sub", "mul", "max", "min"):
    CASES[name] = alike(getattr(lax, name), normal)
    CASES[f"{name}_int"] = alike(getattr(lax, name), whole)
for name in ("add", "sub", "mul", "max", "min"):
    CASES[f"{name}_uint"] = alike(getattr(lax, name), bits)
CASES["max_of_nan"] = alike(lax.max, lambda rng, *size: np.where(flags(rng, *size), np.nan, 1).astype(np.float32))
CASES["div"] = alike(lax.div, positive)
CASES["div_int"] = alike(lax.div, lambda rng, *size: whole(rng, *size) * 2 + 1)
CASES["rem"] = alike(lax.rem, lambda rng, *size: normal(rng, *size) + 0.01)
CASES["rem_int"] = alike(lax.rem, lambda rng, *size: whole(rng, *size) * 2 + 1)
CASES["rem_uint"] = alike(lax.rem, lambda rng, *size: bits(rng, *size) % np.uint32(99) + np.uint32(1))
CASES["pow"] = alike(lax.pow, positive)
for name in ("eq", "ne", "lt", "le", "gt", "ge"):
    CASES[name] = alike(getattr(lax, name), lambda rng, *size: whole(rng, *size).astype(np.float32))
    CASES[f"{name}_int"] = alike(getattr(lax, name), whole)
    CASES[f"{name}_uint"] = alike(getattr(lax, name), lambda rng, *size: bits(rng, *size) >> np.uint32(30))
CASES["eq_bool"] = alike(lax.eq, flags)
for name in ("bitwise_and", "bitwise_or", "bitwise_xor"):
    CASES[name] = alike(getattr(lax, name), flags)
    CASES[f"{name}_uint"] = alike(getattr(lax, name), bits)
add("bitwise_not", lambda a, b, c: (lax.bitwise_not(a), lax.bitwise_not(b), lax.bitwise_not(c)), flags, bits, whole)
for kind, draw in {"float": normal, "int": whole, "uint": bits, "bool": flags}.items():
    CASES[f"select_{kind}"] = alike(lambda a, b: lax.select(a == a[:, :1], a, b), draw)
CASES["clamp"] = alike(lambda a, b: lax.clamp(jnp.float32(-1), a * b, jnp.float32(1)), normal)
add("stop_gradient", lambda x: lax.stop_gradient(x) + lax.optimization_barrier(x), normal)


@case
def rounding(rng):
    halves = np.concatenate([whole(rng, 20) / np.float32(2), normal(rng, 20)]).astype(np.float32)
    return lambda x: (lax.round(x), lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)), (halves,)


@case
def powers(rng):
    return lambda x: [lax.integer_pow(x, y) for y in (-3, -1, 2, 3, 4, 7)] + [lax.square(x)], (positive(rng),)


@case
def finite(rng):
    return lax.is_finite, (np.array([0, 1, -np.inf, np.inf, np.nan, 3e38], np.float32),)


@case
def conversions(rng):
    def program(x, n, b, u):
        kinds = (jnp.float32, jnp.int32, jnp.uint32, jnp.bool_)
        return [y.astype(kind) for y in (n, b, u) for kind in kinds], x.astype(jnp.int32), x.astype(jnp.uint8)

    return program, (rng.uniform(0, 255, 40).astype(np.float32), whole(rng), flags(rng), bits(rng))


@case
def shifts(rng):
    by = jnp.uint32(rng.integers(0, 32))
    return lambda x: (lax.shift_left(x, jnp.full_like(x, by)), x >> by), (bits(rng),)


@case
def floats_from_bits(rng):
    """Every exponent; subnormal numbers are left out, which XLA may flush to 0."""
    drawn = bits(rng, 400)
    exponent = (drawn >> np.uint32(23)) & np.uint32(255)
    special = np.array([0, -0.0, 1, -1, np.inf, -np.inf, 3.4028235e38, 1.1754944e-38], np.float32).view(np.uint32)
    return lambda x: lax.bitcast_convert_type(x, jnp.float32), (
        np.concatenate([drawn[(exponent > 0) & (exponent < 255)], special]),
    )


# -- shapes ----------------------------------------------------------------------------------------------------------


@case
def reshaped(rng):
    a, b, c = shape(rng)
    x = normal(rng, a, b, c)

    def program(x, row):
        lazy = jnp.broadcast_to(row, (a, 1, c))  # the same along a
        return (
            x.reshape(a * b, c),
            lazy.reshape(a, c),
            lazy.reshape(a * c),
            lazy[:, 0].reshape(1, a, 1, c) * 2,
            jnp.expand_dims(x, (0, 3)),
            jnp.squeeze(lazy, 1),
            lazy.transpose(2, 1, 0),
            x.transpose(2, 0, 1),
            lazy[1:, :, ::2],
            jnp.broadcast_to(x[None, :, None], (2, a, 3, b, c)),
        )

    return program, (x, normal(rng, 1, 1, c))


@case
def joined(rng):
    size = shape(rng)

    def program(x, y, row):
        lazy = jnp.broadcast_to(row, size)
        return (
            jnp.concatenate([x, lazy, y[:, :1]], 1),
            jnp.stack([x, lazy], 1),
            jnp.stack([x, y], -1),
            jnp.tile(x, (1, 2, 3)),
            jnp.split(x, [1], axis=2),
            jnp.flip(x, (0, 2)),
        )

    return program, (normal(rng, *size), normal(rng, *size), normal(rng, size[2]))


@case
def sliced(rng):
    def program(x, n):
        return x[1:, ::2], x[:, 1], lax.rev(n, (1,)), n[:2, :, -1:]

    return program, (normal(rng), whole(rng, 4, 5, 3))


@case
def padded(rng):
    def program(x, n, b):
        return (
            lax.pad(x, jnp.float32(2), ((1, 2, 0), (0, 1, 0), (-1, 0, 0))),
            jnp.pad(n, ((1, 0), (0, 2))),
            jnp.pad(b, 1),
        )

    return program, (normal(rng), whole(rng, *shape(rng, 2)), flags(rng, *shape(rng, 2)))


@case
def reduced(rng):
    def program(x, n, b, row):
        lazy = jnp.broadcast_to(row, (3, row.shape[-1]))
        return (
            [f(x, axis=axis) for f in (jnp.sum, jnp.max, jnp.min, jnp.prod) for axis in (1, (0, 2), None)],
            [f(n, axis=1) for f in (jnp.sum, jnp.max, jnp.min)],
            [f(b, axis=axis) for f in (jnp.all, jnp.any) for axis in (0, None)],
            lazy.sum(),
            x.mean(-1, keepdims=True),
        )

    return program, (normal(rng), whole(rng), flags(rng, 4, 2), normal(rng, 1, 5))


@case
def extremes(rng):
    """Ties go to the first."""
    return lambda x: (jnp.argmax(x, -1), jnp.argmin(x, 0)), (whole(rng, 5, 4, 7, low=0, high=3).astype(np.float32),)


@case
def cumulative(rng):
    return lambda x, n: (jnp.cumsum(x, 1), lax.cumsum(x, 2, reverse=True), jnp.cumsum(n, 0)), (normal(rng), whole(rng))


@case
def sorted_with_ties(rng):
    rows, length = shape(rng, 2)
    keys = whole(rng, rows, 7 * length, low=0, high=4)

    def program(n, x, payload):
        return (
            jnp.sort(n, 1),
            jnp.argsort(n, 1),
            lax.sort((x, payload), dimension=0, num_keys=1),
            jnp.argsort(jnp.argsort(x, 1), 1),
        )

    return program, (keys, keys.astype(np.float32), normal(rng, *keys.shape))


@case
def sorted_floats(rng):
    """Zeros of both signs are equal, and infinities come last."""
    return lambda x: jnp.argsort(x), (np.array([1, 0.0, np.inf, -0.0, -1, 0.0, -np.inf, np.inf, -0.0], np.float32),)


@case
def products(rng):
    a, b, c, d = shape(rng, 4)

    def program(x, y, w, v):
        return (
            x @ w,
            w.T @ w,
            v @ w,
            v @ v,
            jnp.einsum("abc,abd->acd", x, y),
            jnp.einsum("abc,bad->bacd", x, y.transpose(1, 0, 2)),
            jnp.einsum("abc,abc->b", x, x),
            jnp.einsum("abc,dc->dab", x, w.T),
            jnp.einsum("abc,abd->cd", x, y),
            jnp.einsum("c,d->cd", v, w[0]),
            jnp.einsum("abc,ebfc->aebf", x, x[:, :, None]),
        )

    return program, (normal(rng, a, b, c), normal(rng, a, b, d), normal(rng, c, d), normal(rng, c))
