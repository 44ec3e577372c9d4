"""Heads: an agent's policy, rewards, values and ends, read off the features of a frame.

Numbers are two-hot over symexp bins. As in DreamerV3 (arXiv 2301.04104, ``embodied/jax/outs.py``) the two weights
interpolate in real space and a prediction is the mean over bins in real space. So the mean of noisy targets is learned
without bias. Output layers start at zero: a value of 0 and a uniform policy.

Shapes: ... any leading axes, N tokens per frame, M model width, K bins, A components of an action, P numbers that
describe a distribution over actions.
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.scipy.special import betaln, digamma

from reverie.actions import ActionSpace
from reverie.errors import ReverieError
from reverie.nn.linear import Linear

EDGE = 1e-3  # continuous actions nearer than this share of the range to a bound count as this far from it: the density
# of a Beta distribution is 0 at both bounds


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The network of a head. It keeps a frame's tokens apart: their mean lost three quarters of what PMPO gained."""

    width: int = 128  # of each hidden layer
    depth: int = 2  # hidden layers
    convolutions: int = 0  # layers of 3x3 convolutions over the grid of tokens, before anything else
    channels: int = 32  # of each convolution
    queries: int = 0  # learned queries that pool the tokens by attention; 0: the tokens are flattened


class Head(nnx.Module):
    """Features (..., N, M) -> (..., *outputs), float32; zeros before training. ``features``: (N, M).

    ``tasks``: how many there are; the head then reads a learned token of the task beside the features. ``grid``: rows
    and columns of the tokens, None if they have no positions. Raises ReverieError if convolutions lack a grid.
    """

    def __init__(
        self, config: HeadConfig, features: tuple[int, int], outputs: tuple[int, ...], tasks: int = 0,
        grid: tuple[int, int] | None = None, *, rngs: nnx.Rngs,
    ):  # fmt: skip
        if config.convolutions and grid is None:
            raise ReverieError(
                "heads with convolutions need a grid of tokens, and these tokens have no positions: "
                "let head.convolutions be 0."
            )
        self.features, self.outputs, self.grid = features, outputs, grid
        channels = [features[1], *[config.channels] * config.convolutions]
        convolution = partial(nnx.Conv, kernel_size=(3, 3), use_bias=False, rngs=rngs)
        self.convolutions = nnx.List([convolution(*pair) for pair in pairwise(channels)])
        self.convolution_norms = nnx.List([nnx.RMSNorm(size, rngs=rngs) for size in channels[1:]])
        tokens, width = features[0] + bool(tasks), channels[-1]
        self.tasks = TaskEmbedding(tasks, width, rngs=rngs) if tasks else None
        self.pool = AttentionPool(config.queries, width, rngs=rngs) if config.queries else None
        sizes = [(config.queries or tokens) * width, *[config.width] * config.depth]
        self.layers = nnx.List([Linear(*pair, use_bias=False, rngs=rngs) for pair in pairwise(sizes)])
        self.norms = nnx.List([nnx.RMSNorm(size, rngs=rngs) for size in sizes[1:]])
        self.out = Linear(sizes[-1], prod(outputs), kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, h: Array, task: Array | int = 0) -> Array:
        """``task``: the id of each frame's task, int32 (...) or what broadcasts to it; 0: none."""
        h = self._convolved(h.astype(jnp.float32))
        if self.tasks is not None:
            token = self.tasks(task)
            h = jnp.concatenate([h, jnp.broadcast_to(token, (*h.shape[:-2], h.shape[-1]))[..., None, :]], axis=-2)
        h = h if self.pool is None else self.pool(h)
        x = h.reshape(*h.shape[:-2], -1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = jax.nn.silu(norm(layer(x)))
        return self.out(x).reshape(*x.shape[:-1], *self.outputs)

    def _convolved(self, h: Array) -> Array:
        """Features (..., N, M) -> (..., N, channels), each of the tokens around it; as they are if there are none."""
        if not self.convolutions:
            return h
        x = h.reshape(-1, *(self.grid or ()), h.shape[-1])
        for layer, norm in zip(self.convolutions, self.convolution_norms, strict=True):
            x = jax.nn.silu(norm(layer(x)))
        return x.reshape(*h.shape[:-1], -1)


class TaskEmbedding(nnx.Module):
    """Ids of tasks (...) -> (..., M); 0 is no task. Other ids count from 1, as in ``Spec.tasks``."""

    def __init__(self, tasks: int, width: int, *, rngs: nnx.Rngs):
        self.table = nnx.Param(jax.random.normal(rngs.params(), (1 + tasks, width)))  # of the scale of features

    def __call__(self, task: Array | int) -> Array:
        return self.table[...][jnp.asarray(task, jnp.int32)]


class AttentionPool(nnx.Module):
    """Tokens (..., N, M) -> (..., queries, M): each learned query takes the tokens it asks for."""

    def __init__(self, queries: int, width: int, *, rngs: nnx.Rngs):
        # Queries of unit scale: smaller ones would all begin as the same mean over tokens.
        self.queries = nnx.Param(jax.random.normal(rngs.params(), (queries, width)))
        self.key, self.value = (Linear(width, width, use_bias=False, rngs=rngs) for _ in range(2))

    def __call__(self, h: Array) -> Array:
        scale = np.float32(h.shape[-1] ** -0.5)
        weights = jax.nn.softmax(jnp.einsum("...nm,qm->...qn", self.key(h), self.queries[...]) * scale, axis=-1)
        return jnp.einsum("...qn,...nm->...qm", weights, self.value(h))


# -- numbers and events ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TwoHot:
    """A distribution over numbers: ``bins`` of them, at symexp of even steps from -reach to reach."""

    bins: int = 255  # an odd number, so that 0 is one of them
    reach: float = 20.0  # of symlog(number): 20 is 4.9e8, 6 is 402; narrower bins are more exact

    def __post_init__(self):
        if self.bins < 3 or not self.bins % 2 or not 0 < self.reach <= 80:
            raise ValueError(f"two-hot needs an odd number of bins >= 3 and 0 < reach <= 80, not {self}")

    @property
    def values(self) -> np.ndarray:
        """The numbers that the bins stand for, (K,) float32, exactly antisymmetric."""
        half = np.expm1(np.linspace(self.reach, 0, self.bins // 2 + 1))
        return np.concatenate([-half, half[-2::-1]]).astype(np.float32)

    def mean(self, logits: Array) -> Array:
        """Logits (..., K) -> the mean (...). Opposite bins are added first: equal logits give exactly 0."""
        each = jax.nn.softmax(logits, axis=-1) * _last(self.values, logits.ndim)
        middle = self.bins // 2
        low, high = each[..., :middle], each[..., middle + 1 :]
        return jnp.sum(low[..., ::-1] + high, axis=-1) + each[..., middle]

    def nll(self, logits: Array, numbers: Array) -> Array:
        """Cross-entropy (...) of logits (..., K) with numbers (...); outside the bins the outermost counts."""
        values = jnp.asarray(self.values)
        numbers = jax.lax.stop_gradient(jnp.clip(numbers, values[0], values[-1]))
        above = jnp.clip(jnp.searchsorted(values, numbers, side="right"), 1, self.bins - 1)
        low, high = values[above - 1], values[above]
        share = (numbers - low) / (high - low)
        log_p = jax.nn.log_softmax(logits, axis=-1)
        log_low, log_high = (jnp.take_along_axis(log_p, at[..., None], axis=-1)[..., 0] for at in (above - 1, above))
        return -((1 - share) * log_low + share * log_high)


def bernoulli_nll(logits: Array, events: Array) -> Array:
    """Cross-entropy (...) of logits with events, bool or probabilities (...)."""
    return jax.nn.softplus(logits) - events.astype(jnp.float32) * logits


# -- actions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ActionDistribution:
    """Distributions over the actions of a space, described by P numbers each, all zeros for a uniform one.

    Components of discrete, multi and binary actions are independent categorical variables. Those of continuous actions
    are Beta variables over their bounds, with both parameters above 1 (1.7 at zero, nearly uniform). So a sample needs
    no clipping, and its log-probability is that of the action taken.
    """

    space: ActionSpace

    def __post_init__(self):
        if self.space.kind == "none":
            raise ReverieError("an agent needs actions to choose from, and this world has none.")

    @property
    def parameters(self) -> int:
        """P."""
        return 2 * self.space.size if self._continuous else sum(self.space.levels)

    def sample(self, outputs: Array, key: Array) -> Array:
        """Outputs (..., P) -> actions (...) or (..., A), as the space says."""
        if self._continuous:
            return self._scaled(jax.random.beta(key, *self._beta(outputs)))
        return self._flat(jax.random.categorical(key, self._log_p(outputs), axis=-1))

    def mode(self, outputs: Array) -> Array:
        """The most probable action: outputs (..., P) -> (...) or (..., A)."""
        if self._continuous:
            a, b = self._beta(outputs)
            return self._scaled((a - 1) / (a + b - 2))
        return self._flat(jnp.argmax(self._log_p(outputs), axis=-1))

    def shares(self, outputs: Array) -> Array:
        """Return the probability of each of the space's ``named_levels``: outputs (..., P) -> (..., buttons).

        For continuous actions, how near the mean of a component lies to either end: two numbers that sum to 1.
        """
        component, level = np.array(self.space.named_levels).T
        if self._continuous:
            a, b = self._beta(outputs)
            high = (a / (a + b))[..., component]
            return jnp.where(jnp.asarray(level == 2), high, 1 - high)
        return jnp.exp(self._log_p(outputs)[..., component, level])

    def log_prob(self, outputs: Array, actions: Array) -> Array:
        """Log-probability (density) of actions, (...). Codes (START, UNLABELLED) get some number: weight them by 0."""
        if self._continuous:
            (a, b), (low, high) = self._beta(outputs), self._bounds(outputs.ndim)
            x = jnp.clip((actions - low) / (high - low), EDGE, 1 - EDGE)
            density = (a - 1) * jnp.log(x) + (b - 1) * jnp.log1p(-x) - betaln(a, b) - jnp.log(high - low)
            return jnp.sum(density, axis=-1)
        chosen = jnp.maximum(actions if self.space.shape else actions[..., None], 0)
        return jnp.sum(jnp.take_along_axis(self._log_p(outputs), chosen[..., None], axis=-1)[..., 0], axis=-1)

    def kl(self, outputs: Array, others: Array) -> Array:
        """KL divergence (...) of the distribution ``outputs`` from ``others``, in nats."""
        if self._continuous:
            (a, b), (c, d) = self._beta(outputs), self._beta(others)
            same = (c - a + d - b) * digamma(a + b)
            each = betaln(c, d) - betaln(a, b) + (a - c) * digamma(a) + (b - d) * digamma(b) + same
            return jnp.sum(each, axis=-1)
        log_p, log_q = self._log_p(outputs), self._log_p(others)
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=(-2, -1))

    def entropy(self, outputs: Array) -> Array:
        """Entropy (...) in nats; of continuous actions the differential one."""
        if self._continuous:
            (a, b), (low, high) = self._beta(outputs), self._bounds(outputs.ndim)
            each = betaln(a, b) - (a - 1) * digamma(a) - (b - 1) * digamma(b) + (a + b - 2) * digamma(a + b)
            return jnp.sum(each + jnp.log(high - low), axis=-1)
        log_p = self._log_p(outputs)
        return -jnp.sum(jnp.exp(log_p) * log_p, axis=(-2, -1))

    def fitted(self, actions: Array) -> Array:
        """Return the outputs (..., P) that describe actions (K, ...) or (K, ..., A): frequencies, or moments.

        Half an action of every kind is added to the frequencies, so that none becomes impossible.
        """
        if self._continuous:
            low, high = self._bounds(actions.ndim)
            x = jnp.clip((actions - low) / (high - low), EDGE, 1 - EDGE)
            mean, spread = jnp.mean(x, axis=0), jnp.maximum(jnp.var(x, axis=0), EDGE**2)
            count = mean * (1 - mean) / spread - 1
            above = jnp.maximum(jnp.concatenate([mean * count, (1 - mean) * count], axis=-1) - 1, EDGE)
            return above + jnp.log(-jnp.expm1(-above))  # the inverse of softplus
        each = actions if self.space.shape else actions[..., None]
        seen = [jnp.sum(jax.nn.one_hot(each[..., a], size), axis=0) for a, size in enumerate(self.space.levels)]
        return jnp.log(jnp.concatenate(seen, axis=-1) + jnp.float32(0.5))

    @property
    def _continuous(self) -> bool:
        return self.space.kind == "continuous"

    def _log_p(self, outputs: Array) -> Array:
        """Log-probabilities (..., A, K) of each component's values; -1e30 beyond the last value of a component."""
        levels = self.space.levels
        first, most = np.cumsum([0, *levels[:-1]]), max(levels)
        real = np.arange(most)[None] < np.array(levels)[:, None]
        at = np.where(real, first[:, None] + np.arange(most)[None], 0)
        logits = jnp.where(real.reshape((1,) * (outputs.ndim - 1) + real.shape), outputs[..., at], np.float32(-1e30))
        return jax.nn.log_softmax(logits, axis=-1)

    def _flat(self, chosen: Array) -> Array:
        chosen = chosen.astype(jnp.int32)
        return chosen if self.space.shape else chosen[..., 0]

    def _beta(self, outputs: Array) -> tuple[Array, Array]:
        a, b = jnp.split(1 + jax.nn.softplus(outputs), 2, axis=-1)
        return a, b

    def _bounds(self, ndim: int) -> tuple[Array, Array]:
        low, high = (_last(np.array(bound, np.float32), ndim) for bound in (self.space.low, self.space.high))
        return low, high

    def _scaled(self, x: Array) -> Array:
        low, high = self._bounds(x.ndim)
        return low + jnp.clip(x, EDGE, 1 - EDGE) * (high - low)


def _last(row: Any, ndim: int) -> Array:
    """A row (K,) as the last axis of an array of ``ndim`` axes."""
    return jnp.asarray(row).reshape((1,) * (ndim - 1) + (-1,))
