"""Latent actions: what they may know of, and that they find the actions of a world they were never told."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contracts.tiny import SMALL, T, clip, dynamics, frames, state, tiny
from flax import nnx

from reverie.actions import START, ActionSpace
from reverie.models.lam import LAMConfig
from reverie.nn.quantise import VQConfig
from reverie.training.optim import OptimConfig

KEY = jax.random.key(0)
STEPS = 400


@pytest.fixture(scope="module")
def model():
    return dataclasses.replace(tiny(LAMConfig()), quantiser=VQConfig(32, 4)).make(nnx.Rngs(0))


@pytest.fixture(scope="module")
def infer(model):
    return jax.jit(model.infer)


def test_codes_begin_with_start_and_know_the_next_frame_at_most(infer):
    x, y = frames(), frames(seed=1)
    codes = np.asarray(infer(x))
    assert codes.shape == (2, T) and codes.dtype == np.int32
    assert (codes[:, 0] == START).all() and (codes[:, 1:] >= 0).all() and (codes < 32).all()
    for t in range(1, T):  # the code at t led to frame t, and was read off frames up to it
        mixed = np.asarray(infer(np.concatenate([x[:, :t], y[:, t:]], axis=1)))
        np.testing.assert_array_equal(mixed[:, :t], codes[:, :t])
    changed = [
        np.asarray(infer(np.concatenate([x[:, :t], y[:, t:]], axis=1)))[:, t] != codes[:, t] for t in range(1, T)
    ]
    assert np.mean(changed) > 0.3, "the frame an action led to says which it was"


def test_what_is_painted_knows_the_past_and_the_code_alone(model):
    """Changing frame t changes its painting only through one of a few codes, and no painting before."""
    predict = jax.jit(model.predict)
    x = frames()
    painted = np.asarray(predict(x))
    assert painted.shape == x[:, 1:].shape and painted.min() >= 0 and painted.max() <= 1
    for t in (1, 4, T - 1):
        y = x.copy()
        y[:, t] = frames(seed=1)[:, t]
        np.testing.assert_array_equal(predict(y)[:, : t - 1], painted[:, : t - 1])
    seen = [np.asarray(predict(np.concatenate([x[:1, :1], frames(1, seed=i)[:, 1:]], axis=1)))[0, 0] for i in range(40)]
    assert len(np.unique(np.stack(seen).round(4), axis=0)) <= 32


def test_contrast_survives_and_rows_are_independent(infer):
    x = frames(batch=16)
    for other in (x // 2, (0.5 * x + 0.2 * 255).astype(np.uint8)):
        assert np.mean(np.asarray(infer(other) != infer(x))[:, 1:]) > 0.05
    y = frames(batch=16, seed=1)
    y[3] = x[3]
    np.testing.assert_array_equal(infer(y)[3], infer(x)[3])


def moving_dot(rng, batch=64, length=4):
    """A bright dot on a ring of four places; the action moves it left, or right: frames, actions, where it was."""
    actions = rng.integers(0, 2, (batch, length))
    steps = np.where(actions == 1, 1, -1)
    steps[:, 0] = rng.integers(0, 4, batch)
    at = np.cumsum(steps, axis=1) % 4
    x = np.zeros((batch, length, 4, 4, 3), np.uint8)
    x[np.arange(batch)[:, None], np.arange(length), 1, at] = 255
    return x.repeat(2, axis=2).repeat(2, axis=3), actions[:, 1:], at[:, :-1]


def test_it_finds_the_actions_of_a_world_it_was_never_told():
    # A patch is the whole picture: where things go is one layer's work then, and what is left to find is the action.
    small = dataclasses.replace(SMALL, width=32, hidden=128, depth=1, window=2)
    config = LAMConfig((8, 8, 3), 8, small, small, VQConfig(2, 4, restart_after=10, decay=0.9))
    graph, params, rest = nnx.split(config.make(nnx.Rngs(1)), nnx.Param, ...)
    leaves, tree = jax.tree.flatten(params)
    weights = {str(i): leaf for i, leaf in enumerate(leaves)}
    tx = OptimConfig(rate=1e-2, warmup=20, weight_decay=0.0).make(STEPS)

    def made(weights, rest):
        params = jax.tree.unflatten(tree, [weights[str(i)] for i in range(len(weights))])
        return nnx.merge(graph, params, jax.tree.map(lambda leaf: leaf, rest))

    @jax.jit
    def train(weights, rest, opt, x, key):
        def loss(weights):
            module = made(weights, rest)
            value, _ = module.loss(x, key)
            return value, nnx.split(module, nnx.Param, ...)[2]

        (value, rest_now), grads = jax.value_and_grad(loss, has_aux=True)(weights)
        updates, opt = tx.update(grads, opt, weights)
        return optax.apply_updates(weights, updates), rest_now, opt, value

    rng, opt = np.random.default_rng(0), tx.init(weights)
    values = []
    for i in range(STEPS):
        weights, rest, opt, value = train(weights, rest, opt, moving_dot(rng)[0], jax.random.fold_in(KEY, i))
        values.append(float(value))
    x, actions, place = moving_dot(rng)
    codes = np.asarray(jax.jit(made(weights, rest).infer)(x))[:, 1:]
    # Which code means which action is free, and may depend on where the dot is; that the two are one to one is not.
    shares = [np.mean((codes == actions)[place == where]) for where in range(4)]
    assert np.mean(values[-20:]) < 0.5 * np.mean(values[:20])
    assert len(np.unique(codes)) == 2 and all(max(share, 1 - share) > 0.9 for share in shares)


def test_dynamics_and_latent_actions_can_learn_together():
    """Through relaxed codes the dynamics' gradient reaches the encoder; forward they are the codes themselves."""
    small = dataclasses.replace(SMALL, depth=1)
    model = tiny(LAMConfig(), small).make(nnx.Rngs(0))
    world = dynamics(actions=ActionSpace("latent", model.codes), transformer=small)
    latents, x = clip(length=3)[0], frames(length=3)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    before = state(model)

    @jax.jit
    def learn(params, rest):
        def loss(params):
            module = nnx.merge(graph, params, jax.tree.map(lambda leaf: leaf, rest))
            weights, own, _ = module.relaxed(x, KEY)
            return world.loss(latents, weights, KEY)[0], (weights, own, nnx.split(module, nnx.Param, ...)[2])

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, (weights, own, moved)), grads = learn(params, rest)
    codes = np.asarray(jax.jit(model.infer)(x))
    np.testing.assert_allclose(weights[:, 1:], np.eye(model.codes)[codes[:, 1:]], atol=1e-6)
    assert not np.asarray(weights[:, 0]).any() and np.isfinite(own)
    for part in ("patches", "encoder", "to_code"):
        assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads[part])) > 0, f"{part} learns nothing"
    assert not np.array_equal(jax.tree.leaves(moved["quantiser"]["book"])[0], before["quantiser.book"])
