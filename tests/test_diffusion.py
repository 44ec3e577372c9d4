"""Flows and the diffusion dynamics: samplers against analytic denoisers, each beside a mistake it must catch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.tiny import SMALL, T, awake, clip, dynamics, other, watch
from flax import nnx

from reverie.models.dynamics.diffusion import DiffusionConfig
from reverie.models.dynamics.shortcut import ShortcutConfig, two_half_steps
from reverie.nn.batch import row_keys, settle, split_keys
from reverie.nn.flow import data_of, denoise, noised, ramp
from reverie.nn.step import made_with

KEY = jax.random.key(0)


def test_an_oracle_is_believed():
    data, noise = jnp.sign(jax.random.normal(KEY, (64,))), jax.random.normal(jax.random.key(1), (64,))
    for passes in (1, 4, 32):
        found, _ = denoise(lambda point, level: data, noise, passes)
        np.testing.assert_allclose(found, data, atol=1e-3)


def test_the_sampler_tells_the_level_it_has():
    """An oracle walks straight, so its position gives its level, and a wrong level in its input is noticed."""
    data, noise = jnp.ones(64), jax.random.normal(KEY, (64,)) - 3
    for ahead, most in ((0.0, 1e-5), (1 / 8, 1 / 8)):

        def predict(point, level, ahead=ahead):
            """The data, and in the first number the largest error of the level in its input."""
            lies = jnp.mean((point[1:] - noise[1:]) / (data[1:] - noise[1:]))
            return data.at[0].set(jnp.maximum(point[0], jnp.abs(level + ahead - lies)))

        off = denoise(predict, noise.at[0].set(0.0), 8)[0][0]
        assert (off <= most * 1.001) and (off >= most * 0.999 or not ahead)


def test_exact_denoisers_of_a_bell_curve_give_it_its_spread():
    """Not so a sampler that noises its own prediction anew at every level, and tells the level before."""
    spread, noise, passes = 0.5, jax.random.normal(KEY, (20_000,)), 64

    def mean(point, level):
        return level * spread**2 * point / (level**2 * spread**2 + (1 - level) ** 2)

    found, _ = denoise(mean, noise, passes)
    assert abs(float(jnp.std(found)) / spread - 1) < 0.03
    point = noise
    for k in range(passes):
        point = noised(mean(point, k / passes), noise, jnp.float32(k / passes))
    assert abs(float(jnp.std(point)) / spread - 1) > 0.3


def test_two_half_steps_are_a_whole_one_along_a_straight_flow():
    start, flow = jax.random.normal(KEY, (16,)), jax.random.normal(jax.random.key(1), (16,))
    level = jnp.float32(0.25)
    half = noised(data_of(flow, start, level), start, jnp.float32(0.5 / 0.75 * 0.5))
    np.testing.assert_allclose(data_of(flow, half, jnp.float32(0.5)), data_of(flow, start, level), atol=1e-5)


def test_the_error_of_data_is_that_of_the_flow_times_the_noise_squared():
    data, noise, guess = (jax.random.normal(jax.random.key(i), (32,)) for i in range(3))
    for level in (0.0, 0.3, 0.9):
        at = noised(data, noise, jnp.float32(level))
        error = jnp.square(data_of(guess, at, jnp.float32(level)) - data)
        np.testing.assert_allclose(error, (1 - level) ** 2 * jnp.square(guess - (data - noise)), atol=1e-5)
    np.testing.assert_allclose(ramp(jnp.array([0.0, 1.0])), [0.1, 1.0], rtol=1e-6)


@pytest.fixture(scope="module", params=[("clean", "x"), ("forcing", "x"), ("clean", "v")], ids="-".join)
def model(request):
    context, predict = request.param
    config = dynamics(DiffusionConfig).config
    return dataclasses.replace(config, context=context, predict=predict).make(nnx.Rngs(1))


def test_a_frame_depends_on_all_of_the_past_and_on_nothing_else(model):
    latents, actions = clip(batch=1, length=5, of=DiffusionConfig)
    predict = jax.jit(lambda x, a: model._predict(x, a, row_keys(KEY, 1))[1])
    plain = np.asarray(predict(latents, actions))
    for t in range(5):
        moved = np.abs(np.asarray(predict(latents.at[0, t, 1].set(other(latents[0, t, 1])), actions)) - plain)[0]
        for frame in range(1, 5):
            if frame < t:
                assert (moved[frame - 1] == 0).all(), "the future is known"
            elif frame == t + 1:
                assert (moved[frame - 1].max(axis=-1) > 0).all(), "the past is not seen"


def test_remembered_noise_is_drawn_once(model):
    latents, actions = clip(length=T, of=DiffusionConfig)
    state = model.empty(2)
    step = jax.jit(model.observe)
    first, again = (step(state, latents[:, 0], actions[:, 0])[0] for _ in range(2))
    np.testing.assert_array_equal(first.last_BNL, again.last_BNL)
    level = model.config.context_level
    noise = (first.last_BNL - level * latents[:, 0]) / (1 - level)
    np.testing.assert_allclose(noise[0], noise[1], atol=1e-4)
    later = step(first, latents[:, 0], actions[:, 0])[0]
    assert not np.allclose(later.last_BNL, first.last_BNL)


def test_uncertainty_is_the_distance_from_what_a_single_pass_generates():
    several = dynamics(DiffusionConfig)
    single = nnx.clone(several)
    single.config = dataclasses.replace(several.config, passes=1)
    actions = jnp.array([0, 2])
    (_, last, _, unsure), (_, first, _) = (
        jax.jit(imagine)(several.empty(2), actions, KEY)
        for imagine in (several.imagine_with_uncertainty, single.imagine)
    )
    np.testing.assert_allclose(unsure, np.sqrt(np.mean(np.square(last - first), axis=(1, 2))), rtol=1e-5)
    assert several.uncertainty and not single.uncertainty


def test_sizes_and_levels_lie_on_their_grid():
    model = dataclasses.replace(dynamics(ShortcutConfig).config, levels=8, bootstrap=0.5).make(nnx.Rngs(0))
    draw = jax.jit(lambda own: model.draw(own, *split_keys(row_keys(KEY, 200), 2), 5))
    for own, sizes in ((True, {0.25, 0.5, 1.0}), (False, {0.125})):
        size, level = map(np.asarray, draw(own))
        assert set(np.unique(size)) == sizes
        assert ((level / size) % 1 == 0).all() and (level >= 0).all() and (level + size <= 1).all()
    assert set(np.unique(level)) == set(np.arange(8) / 8)


@pytest.mark.parametrize(("levels", "share"), [(8, 0.25), (8, 0.0), (1, 0.25)])
def test_a_share_of_steps_is_taught_by_half_steps_however_few_rows_there_are(levels, share):
    config = dataclasses.replace(dynamics(ShortcutConfig).config, levels=levels, bootstrap=share, passes=1)
    model = config.make(nnx.Rngs(0))
    latents, actions = clip(batch=1, length=3, of=ShortcutConfig)
    keys = jax.random.split(KEY, 400)
    taught = jax.jit(jax.vmap(model._is_bootstrap))(keys)
    assert abs(float(jnp.mean(taught.astype(jnp.float32))) - (share if levels > 1 else 0)) < 0.06
    loss = jax.jit(lambda key: model.loss(latents, actions, key[None]).metrics)
    for own in {bool(own) for own in taught}:
        first = int(jnp.argmax(taught == own))
        assert bool(loss(keys[first])["bootstrap"].value) == own


def test_all_rows_of_a_step_are_taught_alike():
    """However the batch is cut, the key of the step decides, and not that of a part."""
    model = dynamics(ShortcutConfig)
    steps, parts = jax.random.split(jax.random.key(3), 40), jax.random.split(KEY, 8)
    own = [{bool(made_with(step, model._is_bootstrap)(part)) for part in parts} for step in steps]
    assert all(len(each) == 1 for each in own) and {True} in own and {False} in own


def test_settings_without_a_meaning_are_refused():
    config = dynamics(ShortcutConfig).config
    for change, says in (({"bootstrap": 1.0}, "share of the steps"), ({"predict": "v"}, "predicts clean frames")):
        with pytest.raises(ValueError, match=says):
            dataclasses.replace(config, **change).make(nnx.Rngs(0))


@pytest.mark.parametrize("level", [0.0, 0.25, 0.5])
def test_two_half_steps_of_an_exact_flow_lead_to_its_data(level):
    """Along a straight flow they end where it ends; a teacher with the level of the next step does not."""
    data, noise = jax.random.normal(KEY, (1, 1, 4, 2)), jax.random.normal(jax.random.key(1), (1, 1, 4, 2))
    at, size = jnp.full((1, 1), level), jnp.full((1, 1), 0.5)
    draft = noised(data, noise, jnp.float32(level))

    def exact(point, level, size):
        assert size.shape == (1, 1)
        return data

    def ahead(point, level, size):
        return point + (data - noise) * (1 - level - size)[..., None, None]

    found = [two_half_steps(each, draft, at, size, velocity_clip=100.0) for each in (exact, ahead)]
    np.testing.assert_allclose(found[0], data, atol=1e-5)
    assert float(jnp.abs(found[1] - data).max()) > 0.1


def test_a_shortcut_knows_how_far_it_steps():
    model = dynamics(ShortcutConfig)
    latents, actions = clip(length=T, of=ShortcutConfig)
    context = model._context(latents, actions, row_keys(KEY, 2))
    denoise = jax.jit(lambda size: model._denoised(context, latents[:, 1:], jnp.ones((2, T - 1)) / 2, size))
    small, large = (denoise(jnp.full((2, T - 1), size)) for size in (1 / 64, 1 / 2))
    assert float(jnp.abs(small - large).max()) > 1e-3


@pytest.fixture(scope="module", params=["clean", "forcing"])
def dreamer(request):
    """Shortcut forcing with all the paper has: tokens for action and level, clips cut short, images, registers."""
    net = dataclasses.replace(SMALL, layout="alternate", time_every=2, depth=4, kv_heads=1, registers=2, soft_cap=50.0)
    config = dataclasses.replace(dynamics(ShortcutConfig).config, transformer=net, context=request.param)
    pieces = {
        "conditioning": "prepend",
        "image_share": 0.3,
        "short_length": 2,
        "long_share": 0.3,
        "ema_teacher": 0.5,
        "bootstrap": 0.5,
    }
    return awake(dataclasses.replace(config, **pieces).make(nnx.Rngs(1)))


def test_the_papers_own_choices_give_the_same_frames_with_and_without_cache(dreamer):
    latents, actions = clip(length=T + 1, of=ShortcutConfig)
    state, _ = watch(dreamer, latents[:, :T], actions[:, :-1])
    expected = jax.jit(dreamer.imagine_uncached)(latents[:, :T], actions, KEY)
    np.testing.assert_allclose(jax.jit(dreamer.imagine)(state, actions[:, -1], KEY)[1], expected, atol=1e-4)


def test_clips_in_a_row_know_nothing_of_each_other(dreamer):
    """Not a bit of a frame of another clip, nor what led to a clip's first frame; all of one's own clip before."""
    latents, actions = clip(batch=1, length=6, of=ShortcutConfig)
    begins = jnp.array([[True, False, False, True, False, True]])
    own, level = np.array([0, 0, 0, 1, 1, 2]), jnp.full((1, 5), 0.5)

    @jax.jit
    def predict(latents, actions):
        draft = noised(latents[:, 1:], jax.random.normal(KEY, latents[:, 1:].shape), level[..., None, None])
        return dreamer._denoised(dreamer._context(latents, actions, row_keys(KEY, 1), begins), draft, level)

    plain = predict(latents, actions)
    for t in range(6):
        moved = predict(latents.at[0, t].add(0.5), actions)
        acted = predict(latents, actions.at[0, t].set((actions[0, t] + 1) % 3))
        by_frame, by_action = (np.abs(np.asarray(x - plain))[0].max(axis=(1, 2)) for x in (moved, acted))
        for frame in range(1, 6):
            before = own[frame] == own[t] and t <= frame
            assert (by_frame[frame - 1] > 0) == before, (t, frame)
            assert (by_action[frame - 1] > 0) == (before and not begins[0, t]), (t, frame)


def test_rows_are_cut_in_the_shares_that_were_asked_for(dreamer):
    begins = np.asarray(dreamer._begins(row_keys(KEY, 3000), 6)).sum(axis=1)
    shares = {clips: np.mean(begins == clips) for clips in (1, 3, 6)}
    assert sum(shares.values()) == 1.0
    np.testing.assert_allclose([shares[6], shares[1]], [0.3, 0.7 * 0.3], atol=0.04)


def test_a_teacher_is_an_average_that_is_not_trained(dreamer):
    """The weights themselves stay as they are, and their average follows them slowly."""
    latents, actions = clip(batch=8, length=6, of=ShortcutConfig)
    graph, weights, rest = nnx.split(dreamer, nnx.Param, ...)

    @jax.jit
    def step(weights, rest):
        def loss(weights):
            model = nnx.merge(graph, weights, jax.tree.map(jnp.asarray, rest))
            found = model.loss(latents, actions, row_keys(KEY, len(latents)))
            settle(model, found.notes, KEY, jnp.float32(0))
            return found.value, nnx.split(model, nnx.Param, ...)[1:]

        grads, (after, rest) = jax.grad(loss, has_aux=True)(weights)
        return grads, after, rest

    double = jax.tree.map(lambda leaf: 2 * leaf, weights)
    grads, after, moved = step(double, rest)
    for path, grad in nnx.to_flat_state(grads):
        assert np.isfinite(grad[...]).all() and np.abs(grad[...]).max() > 0, f"{path} learns nothing"
    for a, b in zip(jax.tree.leaves(double), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)
    first, then = (dict(nnx.to_flat_state(state)) for state in (rest, moved))
    assert len(first) == len(nnx.to_flat_state(weights))
    trained = {".".join(map(str, path)): weight for path, weight in nnx.to_flat_state(double)}
    path: Any
    for path, average in first.items():
        np.testing.assert_allclose(then[path][...], (average[...] + trained[path[1]][...]) / 2, atol=1e-6)


def keys_of(model, own, rows=4):
    """Keys of a step that is taught by half steps, or of one that is not."""
    return next(
        keys for i in range(99) if bool(model._is_bootstrap((keys := row_keys(jax.random.key(i), rows))[0])) == own
    )


def gradient_of(model, latents, actions, keys):
    graph, weights, rest = nnx.split(model, nnx.Param, ...)

    def loss(weights):
        return nnx.merge(graph, weights, rest).loss(latents, actions, keys).value

    return jax.tree.leaves(jax.jit(jax.grad(loss))(weights))


@pytest.mark.parametrize("teacher", [0.0, 0.5])
def test_no_gradient_passes_through_the_target(monkeypatch, teacher):
    """It is the same as with a teacher that stands still."""
    model = awake(dataclasses.replace(dynamics(ShortcutConfig).config, ema_teacher=teacher).make(nnx.Rngs(1)))
    latents, actions = clip(batch=4, length=3, of=ShortcutConfig)
    keys = keys_of(model, own=True)
    own = gradient_of(model, latents, actions, keys)
    still = model._teacher()
    monkeypatch.setattr(type(model), "_teacher", lambda self: still)
    for a, b in zip(own, gradient_of(model, latents, actions, keys), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_half_steps_are_those_of_the_average():
    """Where the average is another network, targets are others; the data teach what they taught."""
    model = awake(dataclasses.replace(dynamics(ShortcutConfig).config, ema_teacher=0.5).make(nnx.Rngs(1)))
    latents, actions = clip(batch=4, length=3, of=ShortcutConfig)
    graph, state = nnx.split(model)
    other = nnx.merge(graph, jax.tree.map(lambda leaf: leaf, state))
    for average in other.taught.values():
        average[...] = average[...] * -1 + 0.3
    loss = jax.jit(lambda state, keys: nnx.merge(graph, state).loss(latents, actions, keys).value)
    for own in (True, False):
        keys = keys_of(model, own)
        losses = [float(loss(nnx.state(each), keys)) for each in (model, other)]
        assert (abs(losses[0] - losses[1]) > 1e-4) == own, losses


def test_passes_and_levels_are_powers_of_two():
    with pytest.raises(ValueError, match="powers of two"):
        dataclasses.replace(dynamics(ShortcutConfig).config, passes=3).make(nnx.Rngs(0))
