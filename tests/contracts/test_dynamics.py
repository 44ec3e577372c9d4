"""What every dynamics family promises, whatever it does inside."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.tiny import ACTIONS, SMALL, T, dynamics, other, rows_over_devices, state, watch
from contracts.tiny import clip as any_clip
from flax import nnx

from reverie.models.dynamics import families
from reverie.nn.batch import row_keys

KEY = jax.random.key(7)


def keys(latents):
    return row_keys(KEY, len(latents))


@pytest.fixture(scope="module", params=sorted(families()))
def model(request):
    return dynamics(families()[request.param])


@pytest.fixture(scope="module")
def clip(model):
    """Latents such as the family takes, and actions."""
    return partial(any_clip, of=model.config)


@pytest.fixture(scope="module")
def generate(model):
    """Observe a clip, generate one frame more: (state before, state after, latents, features)."""

    @jax.jit
    def generate(latents, actions, key, temperature):
        state, _ = watch(model, latents, actions[:, :-1])
        return state, *model.imagine(state, actions[:, -1], key, temperature)

    return lambda latents, actions, key=KEY, temperature=1.0: generate(latents, actions, key, np.float32(temperature))


def test_the_cache_changes_nothing_but_the_time_it_takes(model, generate, clip):
    """T is more than twice the window: what has left it was overwritten several times."""
    latents, actions = clip(length=T + 1)
    slow = jax.jit(model.imagine_uncached)
    for temperature in (0.0, 1.0, 2.0):
        expected = slow(latents[:, :T], actions, KEY, np.float32(temperature))
        np.testing.assert_allclose(generate(latents[:, :T], actions, KEY, temperature)[2], expected, atol=1e-4)


def test_a_generated_frame_is_appended_like_an_observed_one(model, generate, clip):
    """However often a frame is refined: nothing else in the state may change."""
    latents, actions = clip(length=T + 1)
    before, after, generated, h = generate(latents[:, :T], actions)
    watched, h_watched = jax.jit(model.observe)(before, generated, actions[:, -1])
    for a, b in zip(jax.tree.leaves((after, h)), jax.tree.leaves((watched, h_watched)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_every_token_of_the_past_in_the_window_is_seen_by_every_token(model, clip):
    latents, actions = clip(batch=1)
    tokens = latents.shape[2]
    changed = [(t, n) for t in range(T - SMALL.window, T - 1) for n in range(tokens)]
    rows = jnp.repeat(latents, 1 + len(changed), axis=0)
    for row, (t, n) in enumerate(changed):
        rows = rows.at[row + 1, t, n].set(other(latents[0, t, n]))
    h = jax.jit(lambda x, a: watch(model, x, a)[1][-1])(rows, jnp.repeat(actions, len(rows), axis=0))
    seen = np.abs(np.asarray(h[1:] - h[:1])).max(axis=-1)
    assert seen.shape == (len(changed), tokens)
    assert (seen > 1e-7).all(), "some token of some past frame can be changed unnoticed"


def test_actions_of_the_past_and_the_present_are_seen(model, clip):
    latents, actions = clip(batch=1)
    rows = jnp.repeat(actions, SMALL.window + 1, axis=0)
    for row, t in enumerate(range(T - SMALL.window, T)):
        rows = rows.at[row + 1, t].set((actions[0, t] + 1) % ACTIONS.size)
    h = jax.jit(lambda x, a: watch(model, x, a)[1][-1])(jnp.repeat(latents, len(rows), axis=0), rows)
    assert (np.abs(np.asarray(h[1:] - h[:1])).max(axis=-1) > 1e-7).all()


def test_rows_do_not_know_of_each_other(generate, clip):
    latents, actions = clip(batch=4, length=T + 1)
    others, acted = clip(batch=4, length=T + 1, seed=1)
    mixed = generate(others.at[2].set(latents[2])[:, :T], acted.at[2].set(actions[2]))
    for a, b in zip(generate(latents[:, :T], actions)[2:], mixed[2:], strict=True):
        np.testing.assert_array_equal(a[2], b[2])
        assert not np.array_equal(a[1], b[1])


def test_the_same_key_generates_the_same_and_another_does_not(generate, clip):
    latents, actions = clip(batch=4, length=T + 1)
    first, again = generate(latents[:, :T], actions), generate(latents[:, :T], actions)
    np.testing.assert_array_equal(first[2], again[2])
    assert not np.array_equal(first[2], generate(latents[:, :T], actions, jax.random.key(8))[2])


def test_temperature_zero_leaves_nothing_to_chance(generate, clip):
    latents, actions = (jnp.repeat(x, 16, axis=0) for x in clip(batch=1, length=T + 1))
    still = generate(latents[:, :T], actions, KEY, 0.0)[2]
    np.testing.assert_array_equal(still, generate(latents[:, :T], actions, jax.random.key(8), 0.0)[2])
    np.testing.assert_array_equal(still, np.repeat(still[:1], 16, axis=0))
    assert len(np.unique(generate(latents[:, :T], actions)[2], axis=0)) > 1


def test_uncertainty_changes_no_bit_and_is_that_of_the_head(model, clip):
    """Tokens that are all as likely have log2(codes) bits each; a denoiser that sees nothing always says the same."""
    if not hasattr(model, "imagine_with_uncertainty"):
        assert not getattr(model, "uncertainty", ""), "a unit of nothing"
        return
    latents, actions = clip(length=T + 1)
    graph, weights = nnx.split(model)

    @jax.jit
    def both(weights, state, actions):
        model = nnx.merge(graph, weights)
        return model.imagine(state, actions, KEY, 1.0), model.imagine_with_uncertainty(state, actions, KEY, 1.0)

    before, _ = watch(model, latents[:, :T], actions[:, :T])
    plain, watched = both(weights, before, actions[:, -1])
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(watched[:3]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert watched[3].shape == (len(latents),) and (watched[3] > 0).all() and len(set(watched[3].tolist())) > 1
    weights["head"] = jax.tree.map(jnp.zeros_like, weights["head"])
    blind = both(weights, before, actions[:, -1])[1][3]
    np.testing.assert_allclose(blind, np.log2(getattr(model.config, "codes", 1)), atol=1e-5)
    assert model.uncertainty


def test_the_default_temperature_is_the_models_own(model, generate, clip):
    latents, actions = clip(length=T + 1)
    state, _ = watch(model, latents[:, :T], actions[:, :-1])
    default = jax.jit(model.imagine)(state, actions[:, -1], KEY)[1]
    np.testing.assert_allclose(default, generate(latents[:, :T], actions, KEY, model.temperature)[2], atol=1e-4)


def test_a_loss_teaches_every_weight_and_is_the_same_on_many_devices(model, clip):
    latents, actions = clip(batch=8, length=4)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def step(params, latents, actions):
        def loss(params):
            found = nnx.merge(graph, params, rest).loss(latents, actions, keys(latents))
            return found.value, found.metrics

        return jax.value_and_grad(loss, has_aux=True)(params)

    before = state(model)
    (value, metrics), grads = step(params, latents, actions)
    assert np.isfinite(value) and all(np.isfinite(number.value) for number in metrics.values())
    for path, grad in nnx.to_flat_state(grads):
        assert np.isfinite(grad[...]).all() and np.abs(grad[...]).max() > 0, f"{path} learns nothing"
    many = step(params, *rows_over_devices(latents, actions))
    for a, b in zip(jax.tree.leaves(((value, metrics), grads)), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    for name, leaf in state(model).items():
        np.testing.assert_array_equal(leaf, before[name])


def test_actions_may_be_weights_through_which_gradients_pass(model, clip):
    """One-hot weights are the actions they stand for, and none at all are no action yet."""
    latents, actions = clip(length=4)
    weights = jax.nn.one_hot(actions, ACTIONS.size)

    def loss(actions):
        return model.loss(latents, actions, keys(latents)).value

    value, grad = jax.jit(jax.value_and_grad(loss))(weights)
    np.testing.assert_allclose(value, jax.jit(loss)(actions), atol=1e-5)
    assert (np.abs(np.asarray(grad[:, 1:])).max(axis=-1) > 0).all()


def test_what_led_to_the_first_frame_of_a_clip_is_before_its_time(model, clip):
    latents, actions = clip(length=4)
    loss = jax.jit(lambda a: model.loss(latents, a, keys(latents)).value)
    assert loss(actions) == loss(actions.at[:, 0].set(2))


def test_reports_are_finite_numbers(model, clip):
    numbers = jax.jit(model.report)(*clip(length=4), KEY)
    assert all(np.isfinite(number) and np.ndim(number) == 0 for number in numbers.values())
