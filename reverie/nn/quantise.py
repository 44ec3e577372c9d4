"""From continuous vectors to codes: a cosine codebook (VQ) and finite scalar quantisation (FSQ).

Both are exact in float32 whatever the network around them computes in: a tie between two of 1024 cosine similarities
is common in bfloat16, whose 8 bits of mantissa cannot tell them apart.

Shapes: ... any leading axes, L code width, V number of codes.
"""

from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from reverie.nn.batch import Mean, Rows
from reverie.nn.running import Statistics

EXACT = jax.lax.Precision.HIGHEST  # left alone, TPUs and GPUs round a float32 matmul to 8 or 10 bits of mantissa


class Quantised(NamedTuple):
    """What a quantiser returns; gradients pass ``vectors`` straight through, the mean of ``misfit`` is its own loss."""

    vectors: Array  # (..., L)
    codes: Array  # (...), int32
    misfit: Array  # (...)
    scores: Array  # (..., V) of each code, the highest is chosen, for VQ; (..., 0) for FSQ


@dataclass(frozen=True)
class VQConfig:
    """A codebook of unit vectors, moved by running means of what was assigned to each code.

    Running means replace the codebook loss of VQ-VAE (arXiv 1711.00937, appendix A.1): they need no learning rate, and
    weight decay cannot shrink them. A code that nothing chose for ``restart_after`` steps is moved onto a vector of
    the batch at hand, the likelier the worse it is served.

    ``thrift`` is the price of a nat, in squared distance: a rarer code must fit better by as much as naming it costs
    more, as in entropy-constrained quantisation (Chou, Lookabaugh and Gray 1989, IEEE Trans. ASSP 37(1)). Without it
    several codes share what is one thing and a little noise, and what stands still flickers between them.
    """

    codes: int = 1024
    width: int = 32
    _: KW_ONLY
    commitment: float = 0.25
    decay: float = 0.99
    restart_after: int = 50
    thrift: float = 0.0

    def make(self, rngs: nnx.Rngs) -> "VectorQuantiser":
        """Return the module."""
        return VectorQuantiser(self, rngs=rngs)


class VectorQuantiser(nnx.Module):
    """Nearest code by cosine similarity, and cheapest where ``thrift`` says so."""

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
        # A squared distance is two less twice the similarity; -log(count) is what naming costs, up to a constant.
        cheapness = jnp.float32(self.config.thrift / 2) * jnp.log(self.counts[...] + 1e-6)
        scores = jnp.einsum("...l,vl->...v", x, self.book[...], precision=EXACT)
        scores += jnp.expand_dims(cheapness, range(x.ndim - 1))
        codes = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        chosen = self.lookup(codes)
        misfit = jnp.float32(self.config.commitment) * jnp.mean(jnp.square(x - chosen), axis=-1)
        return Quantised(x + jax.lax.stop_gradient(chosen - x), codes, misfit, scores)

    def lookup(self, codes: Array) -> Array:
        """Codes (...) -> vectors (..., L)."""
        return self.book[...][codes]

    def note(self, x: Array, codes: Array) -> Any:
        """Return what ``settle`` takes in of what was quantised, (..., L), and its codes."""
        x = unit(jax.lax.stop_gradient(x).astype(jnp.float32))
        flat, one_hot = x.reshape(-1, self.width), jax.nn.one_hot(codes.reshape(-1), self.codes, dtype=jnp.float32)
        # Dead codes go where the codebook fits worst: by chance, most vectors are the sky, and so would most codes be.
        misfit = 1 - jnp.sum(x * self.lookup(codes), axis=-1) + 1e-6
        sums = jnp.matmul(one_hot.T, flat, precision=EXACT)
        return Assigned(one_hot.sum(axis=0), sums, Rows(x), Rows(misfit))

    def settle(self, note: "Assigned", key: Array, progress: Array) -> None:
        """Move the codebook to what a step's batch assigned to it."""
        c = self.config
        decay = jnp.float32(c.decay)
        counts = decay * self.counts[...] + (1 - decay) * note.used
        sums = decay * self.sums[...] + (1 - decay) * note.sums
        idle = jnp.where(note.used > 0, 0, self.idle[...] + 1)
        dead = idle > c.restart_after
        misfit = jnp.cumsum(note.misfit.array.reshape(-1))
        drawn = jnp.searchsorted(misfit, jax.random.uniform(key, (c.codes,)) * misfit[-1])
        fresh = note.vectors.array.reshape(-1, self.width)[jnp.minimum(drawn, misfit.size - 1)]
        # A code that is not in use keeps its place (its sums only shrink, their direction stays) until restarted.
        self.sums[...] = jnp.where(dead[:, None], fresh, sums)
        self.counts[...] = jnp.where(dead, 1.0, counts)
        self.idle[...] = jnp.where(dead, 0, idle)
        self.book[...] = unit(self.sums[...])


class Assigned(NamedTuple):
    """What a codebook learns from: per code how many vectors chose it and their sum, and all vectors."""

    used: Array  # (V,)
    sums: Array  # (V, L)
    vectors: Rows  # (..., L), of length one
    misfit: Rows  # (...), how badly each is served


@dataclass(frozen=True)
class FSQConfig:
    """Finite scalar quantisation (arXiv 2309.15505): each of a few channels is rounded to one of ``levels`` values.

    There is no codebook to collapse; what can collapse is the tanh in front, so normalise before projecting onto it.
    """

    levels: tuple[int, ...] = (8, 6, 5, 5)

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
        """Nothing is learned here."""
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
    """Return the share of codes in use, their entropy as a share of the largest possible, and their perplexity."""
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
