"""What every tokenizer family promises, whatever it does inside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.tiny import T, frames, rows_over_devices, state, tokenizer
from flax import nnx

from reverie.models.tokenizers import families
from reverie.nn.batch import row_keys, settle

KEY = jax.random.key(0)


@pytest.fixture(scope="module", params=sorted(families()))
def model(request):
    return tokenizer(families()[request.param])


@pytest.fixture(scope="module")
def encode(model):
    return jax.jit(model.encode)


@pytest.fixture(scope="module")
def decode(model):
    return jax.jit(model.decode)


def test_frames_become_latents_and_latents_frames(model, encode, decode):
    latents = encode(frames())
    assert latents.shape[:3] == (2, T, model.tokens) and model.tokens == model.grid[0] * model.grid[1]
    assert latents.dtype != jnp.int32 or (latents.min() >= 0 and latents.max() < model.codes)
    painted = decode(latents)
    assert painted.shape == frames().shape and painted.dtype == jnp.float32
    assert painted.min() >= 0 and painted.max() <= 1


def test_the_future_is_not_known(encode, decode):
    now, later = frames(), frames(seed=1)
    for t in (1, T // 2, T - 1):
        mixed = np.concatenate([now[:, :t], later[:, t:]], axis=1)
        np.testing.assert_array_equal(encode(now)[:, :t], encode(mixed)[:, :t])
        a, b = encode(now), encode(later)
        np.testing.assert_array_equal(decode(a)[:, :t], decode(jnp.concatenate([a[:, :t], b[:, t:]], axis=1))[:, :t])


def test_frame_by_frame_paints_what_a_whole_clip_does(model, encode, decode):
    latents = encode(frames())

    def step(state, latents):
        return model.decode_frame(state, latents)

    _, painted = jax.jit(lambda x: jax.lax.scan(step, model.empty(2), jnp.swapaxes(x, 0, 1)))(latents)
    np.testing.assert_allclose(jnp.swapaxes(painted, 0, 1), decode(latents), atol=1e-4)


def test_brightness_and_contrast_survive(encode):
    x = frames(batch=8)
    for other in (x // 2, (0.4 * x + 0.3 * 255).astype(np.uint8)):
        assert np.mean(encode(x) != encode(other)) > 0.2
    grey = np.full((1, 1, 8, 8, 3), 50, np.uint8)
    assert not np.array_equal(encode(np.repeat(grey, T, axis=1)), encode(np.repeat(grey * 4, T, axis=1)))


def test_rows_do_not_know_of_each_other(encode, decode):
    x, y = frames(), frames(seed=1)
    y[1] = x[1]
    np.testing.assert_array_equal(encode(x)[1], encode(y)[1])
    np.testing.assert_array_equal(decode(encode(x))[1], decode(encode(y))[1])


def test_a_loss_teaches_every_weight_and_is_the_same_on_many_devices(model):
    graph, params, statistics = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def step(params, frames):
        def loss(params):
            module = nnx.merge(graph, params, jax.tree.map(lambda leaf: leaf, statistics))  # variables of this trace
            found = module.loss(frames, row_keys(KEY, len(frames)))
            settle(module, found.notes, KEY, jnp.float32(0))
            return found.value, (found.metrics, nnx.state(module, nnx.Not(nnx.Param)))

        return jax.value_and_grad(loss, has_aux=True)(params)

    before = state(model)
    (value, (metrics, moved)), grads = step(params, frames(batch=8))
    assert np.isfinite(value) and all(np.isfinite(number.value) for number in metrics.values())
    for path, grad in nnx.to_flat_state(grads):
        assert np.isfinite(grad[...]).all() and np.abs(grad[...]).max() > 0, f"{path} learns nothing"
    many = step(params, *rows_over_devices(frames(batch=8)))
    one = ((value, (metrics, moved)), grads)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    for name, leaf in state(model).items():
        np.testing.assert_array_equal(leaf, before[name])
