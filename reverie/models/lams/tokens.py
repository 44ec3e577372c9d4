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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from reverie.actions import START
from reverie.nn.batch import Loss, Mean, Rows, draw_rows, mean
from reverie.nn.codes import changed, nll
from reverie.nn.linear import Linear
from reverie.nn.quantise import usage
from reverie.nn.running import Statistics
from reverie.nn.transformer import SpaceTimeTransformer, TransformerConfig

PRICES, HASTE = (2e-4, 0.1), 0.015  # bounds of a nat's price, and how fast it follows what is told
RECENT = 1024  # points that are grouped into codes
DECAY = 0.99  # of a code's running mean, per step
NAMING = 0.05  # weight of the encoder's task to name the code that explains a step best


@dataclass(frozen=True, kw_only=True)
class TokenLAMConfig:
    """``actions`` codes over a tokenizer's grid of codes; ``tokens``, ``grid`` and ``frame`` follow from that."""

    frame: tuple[int, int, int] = (64, 64, 3)
    tokens: int = 1024
    grid: tuple[int, int] = (8, 8)
    tokenizer: Any = None  # its config
    actions: int = 6
    latent: int = 4  # width of the space in which what happened is a point
    encoder: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(position_embeddings=False, time_every=0)
    )
    decoder: TransformerConfig = field(default_factory=lambda: TransformerConfig(time_every=0))
    changed_weight: float = 5.0  # extra weight of tokens that differ from the frame before
    continuous_share: float = 0.5  # share of the training before there are codes
    rate_target: tuple[float, float] = (
        3.0,
        1.0,
    )  # nats to be told at its beginning and end, in units of what a code can tell
    distance_weight: float = (
        0.02  # nats per token that a code loses for its squared distance from where the encoder points
    )

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

    def loss(self, seen_BTN: Array, keys_B: Array, progress: Array) -> Loss:
        """Cross-entropy of each frame's tokens given the frame before and what happened, plus the price of that."""
        c = self.config
        mean_BTL, log_std = self._happened(seen_BTN)
        codes, surprise_BTN, right, own, nats, named = jax.lax.cond(
            self.grouped[...],
            lambda: self._coded(seen_BTN, mean_BTL),
            lambda: self._free(seen_BTN, mean_BTL, log_std, keys_B),
        )
        points, one_hot = jax.lax.stop_gradient(mean_BTL), jax.nn.one_hot(codes, c.actions)
        metrics = {"accuracy_changed": mean(right, changed(seen_BTN)), "nats": mean(nats), "named": mean(named)}
        metrics |= {f"code_{name}": share for name, share in usage(codes, c.actions).items()}
        sums = jnp.einsum("bta,btl->al", one_hot, points)
        notes = Noted(mean(nats), Rows(points), one_hot.sum(axis=(0, 1)), sums)
        return Loss((mean(surprise_BTN, self._weights(seen_BTN)), mean(own)), metrics, notes)

    def settle(self, note: "Noted", key: Array, progress: Array) -> None:
        """Move price and codes after a step; where the first half of the training ends, group points into codes."""
        c = self.config
        first, last = (share * np.log(self.codes) for share in c.rate_target)
        wanted = first + (last - first) * progress / max(c.continuous_share, 1e-6)
        price = jnp.clip(self.price[...] * jnp.exp(jnp.float32(HASTE) * (note.nats.value - wanted)), *PRICES)
        self.price[...] = jnp.where(self.grouped[...], self.price[...], price)
        recent = jnp.concatenate([self.recent[...], note.points.array.reshape(-1, c.latent)])[-RECENT:]
        keep = jnp.float32(DECAY)
        self.sums[...], self.counts[...] = jax.lax.cond(
            self.grouped[...] | (progress < c.continuous_share),
            lambda: (
                keep * self.sums[...] + (1 - keep) * note.sums,
                keep * self.counts[...] + (1 - keep) * note.counts,
            ),
            lambda: (kmeans(recent, c.actions, key), jnp.ones(c.actions)),
        )
        self.recent[...], self.grouped[...] = recent, self.grouped[...] | (progress >= c.continuous_share)

    def _free(self, seen_BTN, mean_BTL, log_std, keys_B):
        """What happened is a point, told with as much noise as it bears: see ``_coded`` for what is returned."""
        std = jnp.exp(log_std)
        nats = jnp.sum((jnp.square(mean_BTL) + jnp.square(std) - 1) / 2 - log_std, axis=-1)
        point = mean_BTL + std * draw_rows(jax.random.normal, keys_B, mean_BTL.shape[1:])
        codes = _nearest(mean_BTL, self.book)
        return codes, *self._told(seen_BTN, point), self.price[...] * nats, nats, jnp.zeros(nats.shape)

    def _coded(self, seen_BTN, mean_BTL):
        """What happened is the code that tells the next frame best and lies near.

        Returns codes (B, T-1); surprise and hits of tokens (B, T-1, N); the rest of the loss, nats told, and whether
        the encoder named the code, (B, T-1) each.
        """
        away = _distance(mean_BTL, self.book)
        weights = self._weights(seen_BTN)

        def cost_of(code):
            surprise_BTN, _ = self._told(seen_BTN, jnp.broadcast_to(code, mean_BTL.shape))
            return jnp.mean(surprise_BTN * weights, axis=-1)

        told = jnp.moveaxis(jax.lax.map(cost_of, self.book), 0, -1)
        cost = told + jnp.float32(self.config.distance_weight) * away
        codes = jnp.argmin(jax.lax.stop_gradient(cost), axis=-1).astype(jnp.int32)
        told = self._told(seen_BTN, jax.lax.stop_gradient(self.book)[codes])
        unnamed = -jnp.take_along_axis(jax.nn.log_softmax(-2 * away), codes[..., None], axis=-1)[..., 0]
        named = (_nearest(mean_BTL, self.book) == codes).astype(jnp.float32)
        return codes, *told, jnp.float32(NAMING) * unnamed, jnp.zeros(named.shape), named

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
        """Nats that each token of each frame but the first is a surprise, and whether it was the likeliest."""
        target, logits = seen_BTN[:, 1:], self._tell(seen_BTN, happened_BTL).astype(jnp.float32)
        right = (jnp.argmax(logits, axis=-1) == target).astype(jnp.float32)
        return nll(logits, target), right

    def _weights(self, seen_BTN):
        return 1 + jnp.float32(self.config.changed_weight) * changed(seen_BTN)


class Noted(NamedTuple):
    """What price and codes learn from: nats told, where steps lie, and per code how many steps and their sum."""

    nats: Mean
    points: Rows  # (B, T-1, L)
    counts: Array  # (A,)
    sums: Array  # (A, L)


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
