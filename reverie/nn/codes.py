"""Predictions of codes: cross-entropy, accuracy, and sampling with temperature, top-k and top-p.

Shapes: B batch, T time, N tokens per frame, V codes; ... any leading axes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from reverie.errors import ReverieError
from reverie.nn.batch import Loss, mean
from reverie.nn.linear import Linear

BLOCK = 32  # codes in a block of ``_cumulative``
AT_ONCE = 8192  # codes whose logits a loss computes at once


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


def scores(head: Linear, x: Array, codes: Array, at_once: int = AT_ONCE, best: int = 1) -> tuple[Array, Array]:
    """Return the nll of each code (...) in nats, and how many of the ``best`` likeliest codes are likelier than it.

    ``head``: features ``x`` (..., M) to logits (..., V). Logits of ``at_once`` codes are held at a time; the backward
    pass computes them again. Parts are codes and not tokens, so devices that share a batch still add the gradient of
    each weight once. A part has every p-th code, so columns divided over "tensor" stay where they are.
    """
    kernel, bias = head.weights
    number = kernel.shape[-1]
    if at_once < 1:
        raise ReverieError(f"codes_at_once {at_once} is not a number of codes: it must be 1 or more.")
    parts = -(-number // at_once)
    if parts == 1:
        total, own, top = _summary(head(x), codes, best)
        return total - own, jnp.sum(~(top <= own[..., None]), axis=-1)

    def dealt(weight: Array) -> Array:
        weight = jnp.pad(weight, [(0, 0)] * (weight.ndim - 1) + [(0, -number % parts)])
        return jnp.moveaxis(weight.reshape(*weight.shape[:-1], -1, parts), -1, 0)

    def part(columns: tuple[Array, Array | None, Array]) -> tuple[Array, Array, Array]:
        kernel, bias, first = columns
        logits = head.product(x, kernel, bias)
        real = (first + parts * jnp.arange(kernel.shape[-1]) < number).reshape((1,) * codes.ndim + (-1,))
        total, own, top = _summary(jnp.where(real, logits, np.float32(-1e30)), codes // parts, best)
        return total, jnp.where(codes % parts == first, own, 0.0), top

    columns = (*jax.tree.map(dealt, (kernel, bias)), jnp.arange(parts))
    totals, owns, tops = jax.lax.map(jax.checkpoint(part, prevent_cse=False), columns)
    own = jnp.sum(owns, axis=0)
    return jax.nn.logsumexp(totals, axis=0) - own, jnp.sum(~(tops <= own[None, ..., None]), axis=(0, -1))


def _summary(logits: Array, codes: Array, best: int) -> tuple[Array, Array, Array]:
    """Return the logsumexp of logits (..., V), the logit of each code, and the ``best`` largest logits (..., best)."""
    logits = logits.astype(jnp.float32)
    still = jax.lax.stop_gradient(logits)
    top = jnp.max(still, axis=-1, keepdims=True) if best == 1 else jax.lax.top_k(still, min(best, still.shape[-1]))[0]
    return jax.nn.logsumexp(logits, axis=-1), logits_of(logits, codes), top


def cross_entropy(
    head: Linear, x_BTNM: Array, codes_BTN: Array, scored_BTN: Array, changed_weight: float, at_once: int = AT_ONCE
) -> Loss:
    """Return the cross-entropy and accuracy of frames 1..T-1 where ``scored_BTN`` (float, (B, T-1, N)) is 1.

    ``x_BTNM``: features of these frames, from which ``head`` makes logits: see ``scores``. Tokens that changed since
    the previous frame have weight ``1 + changed_weight``: most of a frame stands still.
    """
    target, moved = codes_BTN[:, 1:], changed(codes_BTN)
    weights = scored_BTN * (1 + jnp.float32(changed_weight) * moved)
    nats, ahead = scores(head, x_BTNM, target, at_once)
    right = (ahead == 0).astype(jnp.float32)
    metrics = {"accuracy": mean(right, scored_BTN), "accuracy_changed": mean(right, scored_BTN * moved)}
    return Loss((mean(nats, weights),), metrics)


def top_k_accuracy(head: Linear, x_BTNM: Array, codes_BTN: Array, at_once: int = AT_ONCE) -> dict[str, Array]:
    """Return the top-k accuracy of frames 1..T-1, and the top-1 accuracy of tokens that changed."""
    target, moved = codes_BTN[:, 1:], changed(codes_BTN)
    _, rank = scores(head, x_BTNM, target, at_once, best=16)
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
