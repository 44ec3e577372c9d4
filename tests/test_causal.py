"""Causal dynamics: who knows whom, in training and in play, and several tokens at once."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.tiny import SMALL, T, awake, clip, dynamics, watch
from flax import nnx

from reverie.models.dynamics.causal import CausalConfig
from reverie.nn.codes import nll, sample_codes

KEY = jax.random.key(3)


@pytest.fixture(scope="module", params=[(1, False), (2, True)], ids=["one by one", "two at once, scanned"])
def model(request):
    block, scan = request.param
    config = dynamics(CausalConfig).config
    net = dataclasses.replace(config.transformer, scan=scan)
    return awake(dataclasses.replace(config, block=block, transformer=net).make(nnx.Rngs(1)))


def test_a_token_knows_the_whole_past_and_earlier_blocks_and_nothing_else(model):
    latents, actions = clip(batch=1, length=5)
    tokens, block, last = latents.shape[2], model.config.block, 4
    changed = [(t, n) for t in range(5) for n in range(tokens)]
    rows = jnp.repeat(latents, 1 + len(changed), axis=0)
    for row, (t, n) in enumerate(changed):
        rows = rows.at[row + 1, t, n].set((latents[0, t, n] + 1) % 32)
    found = np.asarray(jax.jit(lambda x, a: model._predict(x, a))(rows, jnp.repeat(actions, len(rows), axis=0)))
    moved = np.abs(found[1:] - found[:1]).max(axis=-1)  # (changed, T-1, N)
    for row, (t, n) in enumerate(changed):
        for frame in range(1, last + 1):
            known = moved[row, frame - 1]
            if t > frame:
                assert (known == 0).all(), "a token of the future is known"
            elif t == frame:
                later = np.arange(tokens) // block > n // block
                assert (known[~later] == 0).all() and (known[later] > 0).all()
            elif frame - t < SMALL.window:
                assert (known > 0).all(), f"token {n} of frame {t} is not seen from frame {frame}"


def test_training_predicts_what_play_draws_from(model):
    """At temperature zero a frame is the likeliest of a training pass over itself, which is as unsure of it."""
    latents, actions = clip(length=T + 1)
    state, _ = jax.jit(lambda x, a: watch(model, x, a))(latents[:, :T], actions[:, :-1])
    imagine = jax.jit(lambda m, a: model.imagine_with_uncertainty(m, a, KEY, 0.0))
    _, generated, _, unsure = imagine(state, actions[:, -1])
    whole = jnp.concatenate([latents[:, :T], generated[:, None]], axis=1)
    logits = jax.jit(lambda x, a: model._logits(model._predict(x, a)))(whole, actions)[:, -1]
    np.testing.assert_array_equal(generated, jnp.argmax(logits, axis=-1))
    np.testing.assert_allclose(unsure, np.mean(nll(logits, generated), axis=-1) / np.log(2), rtol=1e-4)


def test_top_k_and_top_p_leave_out_the_unlikely():
    logits = jnp.log(jnp.broadcast_to(jnp.array([0.05, 0.5, 0.15, 0.3]), (4000, 4)))
    heat = jnp.float32(1)
    cuts: list[dict[str, Any]] = [{}, {"top_k": 2}, {"top_p": 0.75}, {"top_p": 0.85}, {"top_k": 1}]
    shares = [
        np.bincount(sample_codes(jax.random.uniform(KEY, (4000,)), logits, heat, **cut), minlength=4) / 4000
        for cut in cuts
    ]
    np.testing.assert_allclose(shares[0], [0.05, 0.5, 0.15, 0.3], atol=0.03)
    np.testing.assert_allclose(shares[1], [0, 0.625, 0, 0.375], atol=0.03)
    np.testing.assert_allclose(shares[2], [0, 0.625, 0, 0.375], atol=0.03)
    np.testing.assert_allclose(shares[3], [0, 0.526, 0.158, 0.316], atol=0.03)
    np.testing.assert_allclose(shares[4], [0, 1, 0, 0])


def test_blocks_must_fill_a_frame():
    with pytest.raises(ValueError, match="blocks of 3 must fill"):
        dataclasses.replace(dynamics(CausalConfig).config, block=3).make(nnx.Rngs(1))
