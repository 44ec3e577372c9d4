"""Latent actions over tokens: the transition between two frames' tokens as one of a few codes.

The task is Genie's (arXiv 2402.15391, section 2.1): an encoder reads two frames and encodes the transition; a decoder
reads the first frame and the code and predicts the second. Here frames are the tokens of a frozen tokenizer, codes or
vectors. So the decoder predicts a distribution, and the likelihood scores every error alike. Over pixels the same
network learns that a few of a thousand patches are wrong.

A codebook from the first step on encodes whatever the decoder cannot predict *yet*: the scene, the weather, a bird. So
training has two halves. In the first half a transition is a point in a small space, as in a variational autoencoder
(arXiv 1312.6114). The KL weight rises until the code carries only what the past does not determine. Then k-means groups
those points into codes. In the second half the code of a transition is the one with the best prediction, and the
encoder learns to infer it: expectation-maximisation from a start that already separates actions.

Shapes: B batch, T time, N tokens per frame, P pairs of frames (B times T-1), L latent width, A codes, V token codes, D
numbers of a token that is a vector.
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
from reverie.config import FROM_DATA
from reverie.nn.batch import Loss, Mean, Rows, draw_rows, mean
from reverie.nn.codes import AT_ONCE, changed, scores
from reverie.nn.flow import moved
from reverie.nn.linear import Linear
from reverie.nn.quantise import usage
from reverie.nn.running import Statistics
from reverie.nn.transformer import SpaceTimeTransformer, TransformerConfig

KL_WEIGHTS, KL_RATE = (2e-4, 0.1), 0.015  # bounds of the KL weight, and how fast it adapts to the rate
RECENT = 1024  # points that k-means groups into codes
DECAY = 0.99  # of a code's running mean, per step
LEAST = 1e-4  # variance of a vector's numbers
INFERENCE = 0.05  # weight of the encoder's cross-entropy to the code with the best prediction


@dataclass(frozen=True, kw_only=True)
class TokenLAMConfig:
    """``actions`` codes over a tokenizer's grid of tokens. The first five fields follow from that: see ``fitted``."""

    frame: tuple[int, int, int] = field(default=(64, 64, 3), metadata=FROM_DATA)
    tokens: int = field(default=1024, metadata=FROM_DATA)  # codes that a token has; 0: tokens are vectors
    numbers: int = field(default=0, metadata=FROM_DATA)  # of a token that is a vector
    grid: tuple[int, int] = field(default=(8, 8), metadata=FROM_DATA)
    tokenizer: Any = field(default=None, metadata=FROM_DATA)  # its config
    actions: int = 6  # latent actions
    latent: int = 4  # width of the space of transitions
    encoder: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(position_embeddings=False, time_every=0)
    )
    decoder: TransformerConfig = field(default_factory=lambda: TransformerConfig(time_every=0))
    changed_weight: float = 5.0  # extra weight of tokens that differ from the previous frame
    continuous_share: float = 0.5  # share of the training with points instead of codes
    rate_target: tuple[float, float] = (3.0, 1.0)  # nats per transition, first and last, in units of log(actions)
    codes_at_once: int = AT_ONCE  # token codes whose logits the loss holds at a time; the result is the same
    distance_weight: float = 0.02  # cost of a code, in nats per token, per squared distance from the encoder's point

    def fitted(self, frame: tuple[int, int, int], tokenizer: Any) -> "TokenLAMConfig":
        """Return this config for a tokenizer's tokens."""
        numbers = 0 if tokenizer.codes else tokenizer.width
        read = {"tokens": tokenizer.codes, "numbers": numbers, "grid": tokenizer.grid, "tokenizer": tokenizer.config}
        return dataclasses.replace(self, frame=frame, **read)

    def make(self, rngs: nnx.Rngs) -> "TokenLAM":
        """Return the module."""
        return VectorLAM(self, rngs=rngs) if self.numbers else TokenLAM(self, rngs=rngs)


class TokenLAM(nnx.Module):
    """Encoder and decoder with a few codes between them, and the frozen tokenizer whose codes they read.

    What a token is, only ``_make_tokens`` and the methods after ``_weights`` know.
    """

    right = "accuracy_changed"  # of the second number of ``_score``, where a token changed

    def __init__(self, config: TokenLAMConfig, *, rngs: nnx.Rngs):
        self.config, self.codes = config, config.actions
        self.tokenizer: Any = config.tokenizer.make(rngs)
        self.receptive_field = 1 + config.encoder.receptive_field + self.tokenizer.receptive_field
        self._make_tokens(config, rngs)
        # Without position embeddings the encoder sees the relative positions of changes, not where in the frame they
        # are: an action is the same everywhere. With them, its points encoded the scene (decision 004).
        self.encoder = SpaceTimeTransformer(config.encoder, config.grid, rngs=rngs)
        self.to_latent = Linear(config.encoder.width, 2 * config.latent, rngs=rngs)
        self.action = Linear(config.latent, config.decoder.width, rngs=rngs)
        self.decoder = SpaceTimeTransformer(config.decoder, config.grid, extra=1, rngs=rngs)
        numbers = config.numbers or config.tokens
        self.head = Linear(config.decoder.width, numbers, kernel_init=nnx.initializers.normal(0.02), rngs=rngs)
        self.price = Statistics(jnp.full((), 0.002))  # the KL weight, per nat
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
        """Tokens of frames -> the code of each transition, (B, T-1) int32."""
        return _nearest(self._encode(seen_BTN)[0], self.book)

    def predict(self, frames_BTHWC: Array) -> Array:
        """Frames 1..T-1 predicted from those before and the inferred codes, float32 in 0..1."""
        seen = self.see(frames_BTHWC)
        codes = self.read(seen)
        return self.tokenizer.decode(self._tokens(seen, self._predict(seen, self.book[codes])))

    @property
    def book(self) -> Array:
        """The centre of each code, (A, L)."""
        return self.sums[...] / self.counts[...][:, None]

    def loss(self, seen_BTN: Array, keys_B: Array, progress: Array) -> Loss:
        """Cross-entropy of each frame's tokens given the previous frame and the transition, plus the rate penalty."""
        c = self.config
        mean_BTL, log_std = self._encode(seen_BTN)
        codes, nll_BTN, right, penalty, nats, inferred = jax.lax.cond(
            self.grouped[...],
            lambda: self._coded(seen_BTN, mean_BTL),
            lambda: self._continuous(seen_BTN, mean_BTL, log_std, keys_B),
        )
        points, one_hot = jax.lax.stop_gradient(mean_BTL), jax.nn.one_hot(codes, c.actions)
        metrics = {self.right: mean(right, self._changed(seen_BTN)), "nats": mean(nats), "named": mean(inferred)}
        metrics |= {f"code_{name}": share for name, share in usage(codes, c.actions).items()}
        sums = jnp.einsum("bta,btl->al", one_hot, points)
        notes = Assigned(mean(nats), mean(nll_BTN), Rows(points), one_hot.sum(axis=(0, 1)), sums)
        return Loss((mean(nll_BTN, self._weights(seen_BTN)), mean(penalty)), metrics, notes)

    def settle(self, note: "Assigned", key: Array, progress: Array) -> None:
        """Update KL weight and codes after a step; at the end of the first half, group points into codes."""
        c = self.config
        first, last = (share * np.log(self.codes) for share in c.rate_target)
        target = first + (last - first) * progress / max(c.continuous_share, 1e-6)
        kl_weight = jnp.clip(self.price[...] * jnp.exp(jnp.float32(KL_RATE) * (note.nats.value - target)), *KL_WEIGHTS)
        self.price[...] = jnp.where(self.grouped[...], self.price[...], kl_weight)
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

    def _continuous(self, seen_BTN, mean_BTL, log_std, keys_B):
        """A transition is a point with noise, as in a VAE: returns what ``_coded`` does."""
        std = jnp.exp(log_std)
        nats = jnp.sum((jnp.square(mean_BTL) + jnp.square(std) - 1) / 2 - log_std, axis=-1)
        point = mean_BTL + std * draw_rows(jax.random.normal, keys_B, mean_BTL.shape[1:])
        codes = _nearest(mean_BTL, self.book)
        return codes, *self._score(seen_BTN, point), self.price[...] * nats, nats, jnp.zeros(nats.shape)

    def _coded(self, seen_BTN, mean_BTL):
        """A transition is the code with the best prediction of the next frame, among those near the encoder's point.

        Returns codes (B, T-1); nll and accuracy of tokens (B, T-1, N); the penalty, nats of the code, and whether the
        encoder inferred the code, (B, T-1) each.
        """
        distance = _distance(mean_BTL, self.book)
        weights = self._weights(seen_BTN)

        def cost_of(code):
            nll_BTN, _ = self._score(seen_BTN, jnp.broadcast_to(code, mean_BTL.shape))
            return jnp.mean(nll_BTN * weights, axis=-1)

        cost = jnp.moveaxis(jax.lax.map(cost_of, self.book), 0, -1)
        cost = cost + jnp.float32(self.config.distance_weight) * distance
        codes = jnp.argmin(jax.lax.stop_gradient(cost), axis=-1).astype(jnp.int32)
        scores = self._score(seen_BTN, jax.lax.stop_gradient(self.book)[codes])
        mismatch = -jnp.take_along_axis(jax.nn.log_softmax(-2 * distance), codes[..., None], axis=-1)[..., 0]
        inferred = (_nearest(mean_BTL, self.book) == codes).astype(jnp.float32)
        return codes, *scores, jnp.float32(INFERENCE) * mismatch, jnp.zeros(inferred.shape), inferred

    def _encode(self, seen_BTN):
        """The distribution of each transition: mean and log of the standard deviation, both (B, T-1, L)."""
        each = self._read(seen_BTN)
        y = self.encoder(each[:, 1:] - each[:, :-1])
        own = self._changed(seen_BTN)[..., None]
        y = jnp.sum(y * own, axis=2) / (jnp.sum(own, axis=2) + 1)
        mean, log_std = jnp.split(self.to_latent(y), 2, axis=-1)
        return mean, jnp.clip(log_std, -6.0, 1.0)

    def _predict(self, seen_BTN, transitions_BTL):
        """Features (B, T-1, N, M) of each next frame, given the transition."""
        x = jnp.concatenate([self._embed(seen_BTN[:, :-1]), self.action(transitions_BTL)[:, :, None]], axis=2)
        return self.decoder(x)[:, :, :-1]

    def _weights(self, seen_BTN):
        return 1 + jnp.float32(self.config.changed_weight) * self._changed(seen_BTN)

    # -- what a token is ---------------------------------------------------------------------------------------------

    def _make_tokens(self, config, rngs):
        def table(width):
            return nnx.Param(jax.random.normal(rngs.params(), (config.tokens, width)) * 0.5)

        self.change, self.before = table(config.encoder.width), table(config.decoder.width)

    def _read(self, seen_BTN):
        """Features of tokens, of which the encoder reads the difference between two frames."""
        return self.change[...][seen_BTN]

    def _embed(self, seen_BTN):
        """Features of tokens for the decoder."""
        return self.before[...][seen_BTN]

    def _changed(self, seen_BTN):
        """1.0 where a token differs from the frame before, (B, T-1, N)."""
        return changed(seen_BTN)

    def _tokens(self, seen_BTN, x_BTNM):
        """The likeliest tokens of frames 1..T-1, given features of the decoder."""
        return jnp.argmax(self.head(x_BTNM), axis=-1)

    def _score(self, seen_BTN, transitions_BTL):
        """The nll of each token of each frame but the first in nats, and whether it was the likeliest."""
        x = self._predict(seen_BTN, transitions_BTL)
        nats, ahead = scores(self.head, x, seen_BTN[:, 1:], self.config.codes_at_once)
        return nats, (ahead == 0).astype(jnp.float32)


class VectorLAM(TokenLAM):
    """The same over vectors. A prediction is a normal distribution, as wide as recent errors."""

    right = "better_changed"  # share of changed tokens that are predicted better than by their last value

    def __init__(self, config: TokenLAMConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.variance = Statistics(jnp.full((), 0.05))  # of a number, given the past and the transition

    def settle(self, note: "Assigned", key: Array, progress: Array) -> None:
        """See ``TokenLAM.settle``; the variance follows the errors of the step."""
        super().settle(note, key, progress)
        keep, error = jnp.float32(DECAY), 2 * note.nll.value * self.variance[...]
        self.variance[...] = jnp.maximum(keep * self.variance[...] + (1 - keep) * error, jnp.float32(LEAST))

    def _make_tokens(self, config, rngs):
        width = config.encoder.width
        self.features = Linear(config.numbers, 2 * width, rngs=rngs)
        self.change = Linear(2 * width, width, rngs=rngs)
        self.before = Linear(config.numbers, config.decoder.width, rngs=rngs)

    def _read(self, seen_BTND):
        # A difference of vectors would be the same wherever it is; that of their features is not.
        return self.change(jax.nn.gelu(self.features(seen_BTND)))

    def _embed(self, seen_BTND):
        return self.before(seen_BTND)

    def _changed(self, seen_BTND):
        return moved(seen_BTND)

    def _tokens(self, seen_BTND, x_BTNM):
        return seen_BTND[:, :-1] + self.head(x_BTNM).astype(jnp.float32)

    def _score(self, seen_BTND, transitions_BTL):
        target = seen_BTND[:, 1:]
        error = jnp.mean(jnp.square(target - self._tokens(seen_BTND, self._predict(seen_BTND, transitions_BTL))), -1)
        copied = jnp.mean(jnp.square(target - seen_BTND[:, :-1]), axis=-1)
        return error / (2 * self.variance[...]), (error < copied).astype(jnp.float32)


class Assigned(NamedTuple):
    """A batch's statistics for KL weight and codes: the rate, the likelihood, all points, and for each code their
    number and sum."""

    nats: Mean
    nll: Mean
    points: Rows  # (B, T-1, L)
    counts: Array  # (A,)
    sums: Array  # (A, L)


def kmeans(points_PL: Array, groups: int, key: Array, tries: int = 8, rounds: int = 30) -> Array:
    """Return the centres (groups, L) of the best of ``tries`` k-means clusterings, each started by k-means++."""

    def cluster(key):
        def choose(i, centres):
            least = jnp.min(jnp.where((jnp.arange(groups) < i)[None], _distance(points_PL, centres), jnp.inf), axis=-1)
            cumulative = jnp.cumsum(jnp.where(i == 0, jnp.ones_like(least), least))
            drawn = jax.random.uniform(jax.random.fold_in(key, i)) * cumulative[-1]
            return centres.at[i].set(points_PL[jnp.minimum(jnp.searchsorted(cumulative, drawn), len(points_PL) - 1)])

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
