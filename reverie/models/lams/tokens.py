"""Latent actions over tokens: which of a few codes led from one frame's tokens to the next's.

The task is Genie's (arXiv 2402.15391, section 2.1): an encoder that sees two frames says what happened, and a decoder
that sees the first frame and that must tell the second. Frames are a frozen tokenizer's codes here, so the decoder can
be sure or unsure, and a likelihood counts every way of being wrong alike; over pixels the same network sees that a
few of a thousand squares are off.

A codebook from the first step names whatever the decoder does not know *yet*: the scene, the weather, a bird. So
training has two halves. In the first, what happened is a point in a small space, as in a variational autoencoder
(arXiv 1312.6114), and its price in nats rises until only what no past can tell is worth saying. Then those points are
grouped into codes (k-means), and in the second half the code of a step is the one that explains it best, while the
encoder learns to name it: expectation-maximisation from a start that already knows actions.

Shapes: B batch, T time, N tokens per frame, P pairs of frames (B times T-1), L latent width, A codes, V token codes.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from reverie.actions import START
from reverie.nn.codes import changed, surprise
from reverie.nn.linear import Linear
from reverie.nn.quantise import usage
from reverie.nn.running import Statistics
from reverie.nn.transformer import SpaceTimeTransformer, TransformerConfig

PRICES, HASTE = (2e-4, 0.1), 0.015  # bounds of a nat's price, and how fast it follows what is told
RECENT = 1024  # points that are grouped into codes
DECAY = 0.99  # of a code's running mean, per step
NAMING = 0.05  # weight of the encoder's task to name the code that explains a step best


@dataclass(frozen=True)
class TokenLAMConfig:
    """``actions`` codes over a tokenizer's grid of codes; ``tokens``, ``grid`` and ``frame`` follow from that."""

    frame: tuple[int, int, int] = (64, 64, 3)
    tokens: int = 1024
    grid: tuple[int, int] = (8, 8)
    tokenizer: Any = None  # its config
    actions: int = 6
    latent: int = 4  # width of the space in which what happened is a point
    encoder: TransformerConfig = field(default_factory=lambda: TransformerConfig(places=False, time_every=0))
    decoder: TransformerConfig = field(default_factory=lambda: TransformerConfig(time_every=0))
    changed_weight: float = 5.0  # extra weight of tokens that differ from the frame before
    free: float = 0.5  # share of the training before there are codes
    told: tuple[float, float] = (3.0, 1.0)  # nats to be told at its beginning and end, in units of what a code can tell
    nearness: float = 0.02  # nats per token that a code loses for its squared distance from where the encoder points

    def fitted(self, frame: tuple[int, int, int], tokenizer: Any) -> "TokenLAMConfig":
        """Return this config for a tokenizer's codes."""
        return dataclasses.replace(
            self, frame=frame, tokens=tokenizer.codes, grid=tokenizer.grid, tokenizer=tokenizer.config
        )

    def make(self, rngs: nnx.Rngs) -> "TokenLAM":
        """Return the module."""
        return TokenLAM(self, rngs=rngs)


class TokenLAM(nnx.Module):
    """Encoder and decoder around a few codes, and the frozen tokenizer through whose eyes they see."""

    def __init__(self, config: TokenLAMConfig, *, rngs: nnx.Rngs):
        self.config, self.codes = config, config.actions
        self.tokenizer: Any = config.tokenizer.make(rngs)
        self.lookback = 1 + config.encoder.lookback + self.tokenizer.lookback

        def table(width):
            return nnx.Param(jax.random.normal(rngs.params(), (config.tokens, width)) * 0.5)

        self.change, self.before = table(config.encoder.width), table(config.decoder.width)
        # Without places of its own the encoder sees where changes lie to each other, not where in the picture: an
        # action is the same everywhere. Shown places, its points named the scene (decision 004).
        self.encoder = SpaceTimeTransformer(config.encoder, config.grid, rngs=rngs)
        self.to_latent = Linear(config.encoder.width, 2 * config.latent, rngs=rngs)
        self.action = Linear(config.latent, config.decoder.width, rngs=rngs)
        self.decoder = SpaceTimeTransformer(config.decoder, config.grid, extra=1, rngs=rngs)
        self.head = Linear(config.decoder.width, config.tokens, kernel_init=nnx.initializers.normal(0.02), rngs=rngs)
        self.price = Statistics(jnp.full((), 0.002))  # of a nat
        self.grouped = Statistics(jnp.zeros((), bool))
        self.recent = Statistics(jnp.zeros((RECENT, config.latent)))
        self.sums = Statistics(jnp.zeros((config.actions, config.latent)))
        self.counts = Statistics(jnp.ones(config.actions))

    def see(self, frames_BTHWC: Array) -> Array:
        """uint8 frames -> the tokenizer's codes (B, T, N)."""
        return self.tokenizer.encode(frames_BTHWC)

    def infer(self, frames_BTHWC: Array) -> Array:
        """Frames (B, T, H, W, C) -> codes (B, T): the action that led to each frame, START for the first."""
        return jnp.pad(self.read(self.see(frames_BTHWC)), ((0, 0), (1, 0)), constant_values=START)

    def read(self, seen_BTN: Array) -> Array:
        """Tokens of frames -> the code of each step, (B, T-1) int32."""
        return _nearest(self._happened(seen_BTN)[0], self.book)

    def predict(self, frames_BTHWC: Array) -> Array:
        """Frames 1..T-1 as told by those before and the inferred codes, float32 in 0..1."""
        seen = self.see(frames_BTHWC)
        codes = self.read(seen)
        return self.tokenizer.decode(jnp.argmax(self._tell(seen, self.book[codes]), axis=-1))

    @property
    def book(self) -> Array:
        """Where each code lies, (A, L)."""
        return self.sums[...] / self.counts[...][:, None]

    def loss(self, seen_BTN: Array, key: Array, progress: Array) -> tuple[Array, dict[str, Array]]:
        """Cross-entropy of each frame's tokens given the frame before and what happened, plus the price of that."""
        c = self.config
        mean, log_std = self._happened(seen_BTN)
        points = jax.lax.stop_gradient(mean).reshape(-1, c.latent)
        recent = jnp.concatenate([self.recent[...], points])[-RECENT:]
        free = progress < c.free
        sums, counts = jax.lax.cond(
            free | self.grouped[...],
            lambda: (self.sums[...], self.counts[...]),
            lambda: (kmeans(recent, c.actions, key), jnp.ones(c.actions)),
        )
        book = sums / counts[:, None]
        codes, self.price[...], value, metrics = jax.lax.cond(
            free,
            lambda: self._free_loss(seen_BTN, mean, log_std, book, key, progress),
            lambda: self._coded_loss(seen_BTN, mean, book),
        )
        one_hot = jax.nn.one_hot(codes.reshape(-1), c.actions)
        keep = jnp.float32(DECAY)
        self.sums[...] = keep * sums + (1 - keep) * (one_hot.T @ points)
        self.counts[...] = keep * counts + (1 - keep) * one_hot.sum(axis=0)
        self.recent[...], self.grouped[...] = recent, ~free
        return value, metrics | {f"code_{name}": share for name, share in usage(codes, c.actions).items()}

    def _free_loss(self, seen_BTN, mean, log_std, book, key, progress):
        """What happened is a point, told with as much noise as it bears: (codes, price, loss, metrics)."""
        first, last = (share * np.log(self.codes) for share in self.config.told)
        wanted = first + (last - first) * progress / self.config.free
        std = jnp.exp(log_std)
        nats = jnp.mean(jnp.sum((jnp.square(mean) + jnp.square(std) - 1) / 2 - log_std, axis=-1))
        told, metrics = self._told(seen_BTN, mean + std * jax.random.normal(key, mean.shape))
        price = self.price[...]
        loss = jnp.mean(told) + price * nats
        price = jnp.clip(price * jnp.exp(jnp.float32(HASTE) * (jax.lax.stop_gradient(nats) - wanted)), *PRICES)
        return _nearest(mean, book), price, loss, metrics | {"nats": nats, "named": jnp.zeros(())}

    def _coded_loss(self, seen_BTN, mean, book):
        """What happened is the code that tells the next frame best and lies near: (codes, price, loss, metrics)."""
        away = _distance(mean, book)
        told = jax.lax.map(lambda code: self._told(seen_BTN, jnp.broadcast_to(code, mean.shape))[0], book)
        cost = jnp.moveaxis(told, 0, -1) + jnp.float32(self.config.nearness) * away
        codes = jnp.argmin(jax.lax.stop_gradient(cost), axis=-1).astype(jnp.int32)
        told, metrics = self._told(seen_BTN, jax.lax.stop_gradient(book)[codes])
        unnamed = -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(-2 * away), codes[..., None], axis=-1))
        named = jnp.mean((_nearest(mean, book) == codes).astype(jnp.float32))
        loss = jnp.mean(told) + jnp.float32(NAMING) * unnamed
        return codes, self.price[...], loss, metrics | {"nats": jnp.zeros(()), "named": named}

    def _happened(self, seen_BTN):
        """Where each step lies among all that may happen: mean and log of standard deviation, both (B, T-1, L)."""
        table = self.change[...]
        now, before = seen_BTN[:, 1:], seen_BTN[:, :-1]
        y = self.encoder(table[now] - table[before])
        moved = changed(seen_BTN)[..., None]
        y = jnp.sum(y * moved, axis=2) / (jnp.sum(moved, axis=2) + 1)
        mean, log_std = jnp.split(self.to_latent(y), 2, axis=-1)
        return mean, jnp.clip(log_std, -6.0, 1.0)

    def _tell(self, seen_BTN, happened_BTL):
        """Logits (B, T-1, N, V) of the frames after each, given what happened."""
        x = self.before[...][seen_BTN[:, :-1]]
        return self.head(self.decoder(jnp.concatenate([x, self.action(happened_BTL)[:, :, None]], axis=2))[:, :, :-1])

    def _told(self, seen_BTN, happened_BTL):
        """Weighted nats per token of each frame but the first, (B, T-1), and metrics."""
        target, logits = seen_BTN[:, 1:], self._tell(seen_BTN, happened_BTL).astype(jnp.float32)
        moved = changed(seen_BTN)
        weights = 1 + jnp.float32(self.config.changed_weight) * moved
        right = (jnp.argmax(logits, axis=-1) == target).astype(jnp.float32)
        metrics = {"accuracy_changed": jnp.sum(right * moved) / (jnp.sum(moved) + 1e-6)}
        nats = surprise(logits, target) * weights
        return jnp.sum(nats, axis=-1) / jnp.mean(jnp.sum(weights, axis=-1)), metrics


def kmeans(points_PL: Array, groups: int, key: Array, tries: int = 8, rounds: int = 30) -> Array:
    """Return the centres (groups, L) of the best of ``tries`` k-means clusterings, each begun by k-means++."""

    def cluster(key):
        def choose(i, centres):
            least = jnp.min(jnp.where((jnp.arange(groups) < i)[None], _distance(points_PL, centres), jnp.inf), axis=-1)
            chance = jnp.cumsum(jnp.where(i == 0, jnp.ones_like(least), least))
            drawn = jax.random.uniform(jax.random.fold_in(key, i)) * chance[-1]
            return centres.at[i].set(points_PL[jnp.minimum(jnp.searchsorted(chance, drawn), len(points_PL) - 1)])

        def refine(_, centres):
            own = jax.nn.one_hot(_nearest(points_PL, centres), groups)
            count = own.sum(axis=0)[:, None]
            return jnp.where(count > 0, own.T @ points_PL / jnp.maximum(count, 1), centres)

        centres = jax.lax.fori_loop(0, groups, choose, jnp.zeros((groups, points_PL.shape[-1])))
        centres = jax.lax.fori_loop(0, rounds, refine, centres)
        return centres, jnp.sum(jnp.min(_distance(points_PL, centres), axis=-1))

    centres, errors = jax.vmap(cluster)(jax.random.split(key, tries))
    return centres[jnp.argmin(errors)]


def _nearest(points: Array, book: Array) -> Array:
    return jnp.argmin(_distance(points, book), axis=-1).astype(jnp.int32)


def _distance(points: Array, book: Array) -> Array:
    """Squared distance of points (..., L) from each code, (..., A)."""
    book = jnp.expand_dims(book, range(points.ndim - 1))
    return jnp.sum(jnp.square(points[..., None, :] - book), axis=-1)
