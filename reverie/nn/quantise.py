"""From continuous vectors to codes: a cosine codebook (VQ) and finite scalar quantisation (FSQ).

Both compute in float32, whatever type the network around them has: ties between 1024 cosine similarities are common in
bfloat16, which has 8 bits of mantissa.

Shapes: ... any leading axes, L code width, V number of codes.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from reverie.nn.batch import Mean, Rows
from reverie.nn.running import Statistics

EXACT = jax.lax.Precision.HIGHEST  # by default TPUs and GPUs round a float32 matmul to 8 or 10 bits of mantissa


class Quantised(NamedTuple):
    """``vectors`` have straight-through gradients; the mean of ``misfit`` is the commitment loss."""

    vectors: Array  # (..., L)
    codes: Array  # (...), int32
    misfit: Array  # (...)
    scores: Array  # VQ: (..., V), the code with the highest is chosen; FSQ: (..., 0)


@dataclass(frozen=True, kw_only=True)
class VQConfig:
    """A codebook of unit vectors: each code is a running mean (EMA) of the vectors assigned to it.

    Running means replace the codebook loss of VQ-VAE (arXiv 1711.00937, appendix A.1): they need no learning rate, and
    weight decay cannot shrink them. A code that was not used for ``restart_after`` steps is moved onto a vector of the
    current batch, drawn in proportion to its quantisation error.

    ``rate_penalty`` is the rate penalty of entropy-constrained quantisation (Chou, Lookabaugh and Gray 1989, IEEE
    Trans. ASSP 37(1)), in squared distance per nat: a rarer code must fit better to be chosen. Without it several codes
    share one noisy appearance, and still parts of a video flicker between them.
    """

    codes: int = 1024  # codes in the codebook
    width: int = 32  # width of a code
    commitment: float = 0.25  # weight of the distance between a vector and its code
    decay: float = 0.99  # decay of a code's running mean, per step
    restart_after: int = 50  # steps without use after which a code is moved
    rate_penalty: float = 0.0  # how much better a rare code must fit to be chosen; 0: no penalty

    def make(self, rngs: nnx.Rngs) -> "VectorQuantiser":
        """Return the module."""
        return VectorQuantiser(self, rngs=rngs)


class VectorQuantiser(nnx.Module):
    """Nearest code by cosine similarity, minus the rate penalty."""

    def __init__(self, config: VQConfig, *, rngs: nnx.Rngs):
        self.config, self.codes, self.width = config, config.codes, config.width
        book = unit(jax.random.normal(rngs.params(), (config.codes, config.width)))
        self.book = Statistics(book)
        self.sums = Statistics(jnp.copy(book))
        self.counts = Statistics(jnp.ones(config.codes))
        self.idle = Statistics(jnp.zeros(config.codes, jnp.int32))

    def __call__(self, x: Array) -> Quantised:
        """Quantise (..., L)."""
        x = unit(x.astype(jnp.float32))
        # A squared distance is two minus twice the similarity; -log(count) is a code's rate in nats, up to a constant.
        rate_bonus = jnp.float32(self.config.rate_penalty / 2) * jnp.log(self.counts[...] + 1e-6)
        scores = jnp.einsum("...l,vl->...v", x, self.book[...], precision=EXACT)
        scores += jnp.expand_dims(rate_bonus, range(x.ndim - 1))
        codes = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        chosen = self.lookup(codes)
        misfit = jnp.float32(self.config.commitment) * jnp.mean(jnp.square(x - chosen), axis=-1)
        return Quantised(x + jax.lax.stop_gradient(chosen - x), codes, misfit, scores)

    def lookup(self, codes: Array) -> Array:
        """Codes (...) -> vectors (..., L)."""
        return self.book[...][codes]

    def note(self, x: Array, codes: Array) -> Any:
        """Return the statistics of vectors (..., L) and their codes for ``settle``."""
        x = unit(jax.lax.stop_gradient(x).astype(jnp.float32))
        flat, one_hot = x.reshape(-1, self.width), jax.nn.one_hot(codes.reshape(-1), self.codes, dtype=jnp.float32)
        # Dead codes go where the codebook fits worst. With uniform draws most of them would become sky.
        misfit = 1 - jnp.sum(x * self.lookup(codes), axis=-1) + 1e-6
        sums = jnp.matmul(one_hot.T, flat, precision=EXACT)
        return Assigned(one_hot.sum(axis=0), sums, Rows(x), Rows(misfit))

    def settle(self, note: "Assigned", key: Array, progress: Array) -> None:
        """Update the codebook with a step's batch."""
        c = self.config
        decay = jnp.float32(c.decay)
        counts = decay * self.counts[...] + (1 - decay) * note.used
        sums = decay * self.sums[...] + (1 - decay) * note.sums
        idle = jnp.where(note.used > 0, 0, self.idle[...] + 1)
        dead = idle > c.restart_after
        misfit = jnp.cumsum(note.misfit.array.reshape(-1))
        drawn = jnp.searchsorted(misfit, jax.random.uniform(key, (c.codes,)) * misfit[-1])
        fresh = note.vectors.array.reshape(-1, self.width)[jnp.minimum(drawn, misfit.size - 1)]
        # An unused code keeps its direction (its sums only shrink) until it is restarted.
        self.sums[...] = jnp.where(dead[:, None], fresh, sums)
        self.counts[...] = jnp.where(dead, 1.0, counts)
        self.idle[...] = jnp.where(dead, 0, idle)
        self.book[...] = unit(self.sums[...])


class Assigned(NamedTuple):
    """A batch's assignments: for each code the number of its vectors and their sum, and all vectors."""

    used: Array  # (V,)
    sums: Array  # (V, L)
    vectors: Rows  # (..., L), unit length
    misfit: Rows  # (...), quantisation error of each


@dataclass(frozen=True, kw_only=True)
class FSQConfig:
    """Finite scalar quantisation (arXiv 2309.15505): each of a few channels is rounded to one of ``levels`` values.

    There is no codebook that could collapse. The tanh before rounding can saturate, so normalise before projecting.
    """

    levels: tuple[int, ...] = (8, 6, 5, 5)  # values of each channel; their product is the number of codes

    def make(self, rngs: nnx.Rngs) -> "FiniteScalarQuantiser":
        """Return the module."""
        return FiniteScalarQuantiser(self, rngs=rngs)


class FiniteScalarQuantiser(nnx.Module):
    """Round every channel; the code is the mixed-radix number of the rounded channels."""

    def __init__(self, config: FSQConfig, *, rngs: nnx.Rngs):
        self.config, self.width = config, len(config.levels)
        self.codes = int(np.prod(config.levels))

    def __call__(self, x: Array) -> Quantised:
        """Quantise (..., L)."""
        levels, half, radix = self._tables(x.ndim)
        middle = levels // 2
        # tanh spreads x over `levels` steps; half a step of shift makes room for an even number of levels.
        shift = np.where(levels % 2 == 0, 0.5, 0.0).astype(np.float32)
        offset = np.arctanh(shift / half).astype(np.float32)
        bounded = jnp.tanh(x.astype(jnp.float32) + offset) * half - shift
        rounded = bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)
        digits = jax.lax.stop_gradient(rounded).astype(jnp.int32) + middle
        codes = (digits * radix).sum(axis=-1)
        return Quantised(
            rounded / middle.astype(np.float32), codes, jnp.zeros(codes.shape), jnp.zeros((*codes.shape, 0))
        )

    def note(self, x: Array, codes: Array) -> Any:
        """FSQ has no statistics."""
        return None

    def lookup(self, codes: Array) -> Array:
        """Codes (...) -> vectors (..., L)."""
        levels, _, radix = self._tables(codes.ndim + 1)
        digits = (codes[..., None] // radix) % levels
        scale = (levels // 2).astype(np.float32)
        return (digits.astype(jnp.float32) - scale) / scale

    def _tables(self, ndim: int):
        levels = np.array(self.config.levels, np.int32).reshape((1,) * (ndim - 1) + (-1,))
        radix = np.cumprod([1, *self.config.levels[:-1]]).astype(np.int32).reshape(levels.shape)
        half = ((levels - 1) * (1 + 1e-3) / 2).astype(np.float32)
        return levels, half, radix


def usage(codes: Array, number: int) -> dict[str, Mean]:
    """Return the share of codes in use, their entropy relative to the maximum, and their perplexity."""
    counts = jnp.zeros(number).at[codes.reshape(-1)].add(1.0)
    kinds = {"usage": _share_in_use, "entropy": _entropy, "perplexity": _perplexity}
    return {name: Mean(counts, jnp.ones(()), then) for name, then in kinds.items()}


def _share_in_use(counts: Array) -> Array:
    return jnp.mean((counts > 0).astype(jnp.float32))


def _nats(counts: Array) -> Array:
    p = counts / counts.sum()
    return -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0))


def _entropy(counts: Array) -> Array:
    return _nats(counts) / np.float32(np.log(max(len(counts), 2)))


def _perplexity(counts: Array) -> Array:
    return jnp.exp(_nats(counts))


def unit(x: Array) -> Array:
    """Scale vectors along the last axis to length one; the gradient at zero is finite."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)
