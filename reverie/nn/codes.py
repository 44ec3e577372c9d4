"""Predictions of codes: cross-entropy, accuracy, and sampling with temperature, top-k and top-p.

Shapes: B batch, T time, N tokens per frame, V codes; ... any leading axes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from reverie.nn.batch import Loss, mean

BLOCK = 32  # codes in a block of ``_cumulative``


def nll(logits: Array, codes: Array) -> Array:
    """Return the negative log-likelihood of each code (...) under logits (..., V), in nats."""
    return jax.nn.logsumexp(logits, axis=-1) - logits_of(logits, codes)


@jax.custom_vjp
def logits_of(logits: Array, codes: Array) -> Array:
    """Return the logit of each code (...) out of (..., V): a gather whose gradient is a comparison, not a scatter."""
    return jnp.take_along_axis(logits, codes[..., None], axis=-1)[..., 0]


def _logits_of_backward(residuals: tuple[Array, int], grad: Array):
    codes, number = residuals
    return jnp.where(jax.nn.one_hot(codes, number, dtype=bool), grad[..., None], 0.0), None


logits_of.defvjp(lambda logits, codes: (logits_of(logits, codes), (codes, logits.shape[-1])), _logits_of_backward)


def changed(codes_BTN: Array) -> Array:
    """Return 1.0 where a code differs from the frame before, (B, T-1, N)."""
    return (codes_BTN[:, 1:] != codes_BTN[:, :-1]).astype(jnp.float32)


def cross_entropy(logits_BTNV: Array, codes_BTN: Array, scored_BTN: Array, changed_weight: float) -> Loss:
    """Return the cross-entropy and accuracy of frames 1..T-1 where ``scored_BTN`` (float, (B, T-1, N)) is 1.

    Tokens that changed since the previous frame have weight ``1 + changed_weight``: most of a frame stands still.
    """
    target, moved = codes_BTN[:, 1:], changed(codes_BTN)
    weights = scored_BTN * (1 + jnp.float32(changed_weight) * moved)
    right = (logits_of(logits_BTNV, target) >= jnp.max(logits_BTNV, axis=-1)).astype(jnp.float32)
    metrics = {"accuracy": mean(right, scored_BTN), "accuracy_changed": mean(right, scored_BTN * moved)}
    return Loss((mean(nll(logits_BTNV, target), weights),), metrics)


def top_k_accuracy(logits_BTNV: Array, codes_BTN: Array) -> dict[str, Array]:
    """Return the top-k accuracy of frames 1..T-1, and the top-1 accuracy of tokens that changed."""
    target, moved = codes_BTN[:, 1:], changed(codes_BTN)
    rank = jnp.sum(logits_BTNV > logits_of(logits_BTNV, target)[..., None], axis=-1)
    result = {f"top{k}": jnp.mean((rank < k).astype(jnp.float32)) for k in (1, 2, 5, 16)}
    first = (rank == 0).astype(jnp.float32)
    return result | {"changed_top1": jnp.sum(first * moved) / (jnp.sum(moved) + 1e-6)}


def sample_codes(uniform: Array, logits: Array, temperature: Array, top_k: int = 0, top_p: float = 1.0) -> Array:
    """Sample codes (...) from softmax(logits / temperature), logits (..., V); at temperature 0 the likeliest.

    ``uniform``: a random number in [0, 1) for each code. For a loop, draw all of them before it: a call of the random
    number generator is eighty operations on CPU, however few numbers it makes.

    ``top_k`` > 0 keeps the k likeliest codes, ``top_p`` < 1 the fewest that together have that probability (nucleus
    sampling, Holtzman et al. 2020, arXiv 1904.09751). Sampling inverts the cumulative distribution, with one random
    number per token. Gumbel noise needs one for every code of every token. On CPU that took six times as long, and a
    seventh of a large frame's time.
    """
    weights = jnp.exp((logits - jnp.max(logits, axis=-1, keepdims=True)) / jnp.maximum(temperature, 1e-9))
    if top_k and top_k < logits.shape[-1]:
        least = jax.lax.top_k(weights, top_k)[0][..., -1:]
        weights = jnp.where(weights >= least, weights, 0.0)
    if top_p < 1:
        descending = -jnp.sort(-weights, axis=-1)
        preceding = jnp.cumsum(descending, axis=-1) - descending
        inside = preceding < jnp.float32(top_p) * jnp.sum(descending, axis=-1, keepdims=True)
        least = jnp.min(jnp.where(inside, descending, jnp.inf), axis=-1, keepdims=True)
        weights = jnp.where(weights >= least, weights, 0.0)
    cumulative = _cumulative(weights)
    return jnp.sum((cumulative <= uniform[..., None] * cumulative[..., -1:]).astype(jnp.int32), axis=-1)


def _cumulative(x: Array) -> Array:
    """Cumulative sums of ``x`` (..., V), in blocks by a triangular matrix: ``jnp.cumsum`` is a third as fast on CPU."""
    lead, number = x.shape[:-1], x.shape[-1]
    x = jnp.pad(x, ((0, 0),) * len(lead) + ((0, -number % BLOCK),)).reshape(*lead, -1, BLOCK)
    inside = x @ np.triu(np.ones((BLOCK, BLOCK), np.float32))
    preceding = jnp.cumsum(inside[..., -1:], axis=-2) - inside[..., -1:]
    return (inside + preceding).reshape(*lead, -1)[..., :number]
