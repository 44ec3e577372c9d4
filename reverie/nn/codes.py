"""Frames of codes: how wrong a prediction is, how often it is right, and drawing from it.

Shapes: B batch, T time, N tokens per frame, V codes; ... any leading axes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from reverie.nn.batch import Loss, mean

BLOCK = 32  # codes that are summed at once


def surprise(logits: Array, codes: Array) -> Array:
    """Return -log p of each code (...) under logits (..., V), in nats."""
    return jax.nn.logsumexp(logits, axis=-1) - picked(logits, codes)


@jax.custom_vjp
def picked(logits: Array, codes: Array) -> Array:
    """Return the logit of each code (...) out of (..., V): gathered, with a gradient that compares and not scatters."""
    return jnp.take_along_axis(logits, codes[..., None], axis=-1)[..., 0]


def _picked_back(kept: tuple[Array, int], grad: Array):
    codes, places = kept
    return jnp.where(jax.nn.one_hot(codes, places, dtype=bool), grad[..., None], 0.0), None


picked.defvjp(lambda logits, codes: (picked(logits, codes), (codes, logits.shape[-1])), _picked_back)


def changed(codes_BTN: Array) -> Array:
    """Return 1.0 where a code differs from the frame before, (B, T-1, N)."""
    return (codes_BTN[:, 1:] != codes_BTN[:, :-1]).astype(jnp.float32)


def likelihood(logits_BTNV: Array, codes_BTN: Array, asked_BTN: Array, changed_weight: float) -> Loss:
    """Return the mean surprise of frames 1..T-1 where ``asked`` (float, (B, T-1, N)), and accuracies there.

    What changed since the frame before counts ``1 + changed_weight`` times: most of a picture stands still.
    """
    target, moved = codes_BTN[:, 1:], changed(codes_BTN)
    weights = asked_BTN * (1 + jnp.float32(changed_weight) * moved)
    right = (picked(logits_BTNV, target) >= jnp.max(logits_BTNV, axis=-1)).astype(jnp.float32)
    metrics = {"accuracy": mean(right, asked_BTN), "accuracy_changed": mean(right, asked_BTN * moved)}
    return Loss((mean(surprise(logits_BTNV, target), weights),), metrics)


def ranking(logits_BTNV: Array, codes_BTN: Array) -> dict[str, Array]:
    """Return how often the true code of frames 1..T-1 is among the likeliest, and the likeliest where it changed."""
    target, moved = codes_BTN[:, 1:], changed(codes_BTN)
    rank = jnp.sum(logits_BTNV > picked(logits_BTNV, target)[..., None], axis=-1)
    result = {f"top{k}": jnp.mean((rank < k).astype(jnp.float32)) for k in (1, 2, 5, 16)}
    first = (rank == 0).astype(jnp.float32)
    return result | {"changed_top1": jnp.sum(first * moved) / (jnp.sum(moved) + 1e-6)}


def draw(chance: Array, logits: Array, heat: Array, top_k: int = 0, top_p: float = 1.0) -> Array:
    """Draw codes (...) from softmax(logits / heat), logits (..., V); the likeliest for heat 0.

    ``chance``: a uniform number in [0, 1) for each. Draw those of a loop before it: a call for random numbers is eighty
    operations on CPU, however few they are.

    ``top_k`` > 0 leaves only the k likeliest; ``top_p`` < 1 the fewest that together have that probability (Holtzman et
    al. 2020, arXiv 1904.09751). By inverting the distribution function: one random number a token. Gumbel noise wants
    one for every code of every token, which on CPU took six times as long and a seventh of a large frame's time.
    """
    weights = jnp.exp((logits - jnp.max(logits, axis=-1, keepdims=True)) / jnp.maximum(heat, 1e-9))
    if top_k and top_k < logits.shape[-1]:
        least = jax.lax.top_k(weights, top_k)[0][..., -1:]
        weights = jnp.where(weights >= least, weights, 0.0)
    if top_p < 1:
        falling = -jnp.sort(-weights, axis=-1)
        before = jnp.cumsum(falling, axis=-1) - falling
        inside = before < jnp.float32(top_p) * jnp.sum(falling, axis=-1, keepdims=True)
        least = jnp.min(jnp.where(inside, falling, jnp.inf), axis=-1, keepdims=True)
        weights = jnp.where(weights >= least, weights, 0.0)
    below = _running_sums(weights)
    return jnp.sum((below <= chance[..., None] * below[..., -1:]).astype(jnp.int32), axis=-1)


def _running_sums(x: Array) -> Array:
    """Sums of ``x`` (..., V) up to each place. By blocks and a triangle: ``jnp.cumsum`` is a third as fast on CPU."""
    lead, places = x.shape[:-1], x.shape[-1]
    x = jnp.pad(x, ((0, 0),) * len(lead) + ((0, -places % BLOCK),)).reshape(*lead, -1, BLOCK)
    inside = x @ np.triu(np.ones((BLOCK, BLOCK), np.float32))
    before = jnp.cumsum(inside[..., -1:], axis=-2) - inside[..., -1:]
    return (inside + before).reshape(*lead, -1)[..., :places]
