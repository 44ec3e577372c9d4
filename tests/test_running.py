"""Running numbers: what a loss is divided by, and what brings latents to unit variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reverie.nn.batch import mean
from reverie.nn.running import RunningMoments, RunningRMS

KEY = jax.random.key(0)


def through(module, values, call):
    """Give a module one value after another, under jit, as training does: what it answers, in order."""
    graph, state = nnx.split(module)

    @jax.jit
    def step(state, value):
        merged = nnx.merge(graph, state)
        answer = call(merged, value)
        return nnx.state(merged), answer

    answers = []
    for value in values:
        state, answer = step(state, value)
        answers.append(answer)
    return nnx.merge(graph, state), np.array(answers)


def scaled(scale, loss):
    """One step: the loss divided, and learned from."""
    answer = scale(mean(loss)).value
    scale.settle(mean(loss), KEY, jnp.float32(0))
    return answer


def learn(moments, x):
    moments.settle(moments.note(x), KEY, jnp.float32(0))


def expected(losses, after=False, floor=0.1):
    """The rule in plain words; ``after`` and ``floor`` are what could go wrong with it."""
    square, largest, answers = 0.0, 0.0, []
    for loss in losses:
        if not square:  # the first: nothing is known to divide it by
            square, largest = loss**2, loss
            answers.append(loss)
            continue
        new = 0.95 * square + 0.05 * loss**2
        largest = max(largest, square**0.5)
        answers.append(loss / max((new if after else square) ** 0.5, floor * largest))
        square = new
    return np.array(answers)


LOSSES = np.array([0.3, 0.6, 0.05, 0.0, 2.0, *[0.01] * 120], np.float32)


def test_a_loss_is_divided_by_what_it_has_been():
    _, answers = through(RunningRMS(), LOSSES, scaled)
    np.testing.assert_allclose(answers, expected(LOSSES), rtol=1e-4)
    assert answers[0] == LOSSES[0]
    for wrong in (expected(LOSSES, after=True), expected(LOSSES, floor=0.0)):  # planted mistakes
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(answers, wrong, rtol=1e-4)


def test_a_loss_that_goes_to_nothing_does_not_grow():
    falling = np.float32(0.5) * np.float32(0.99) ** np.arange(1500, dtype=np.float32)
    scale, answers = through(RunningRMS(), falling, scaled)
    assert answers[-1] < 1e-5 and scale.largest[...] == 0.5
    assert expected(falling, floor=0.0)[-1] > 0.1  # as it would without the floor


def test_no_gradient_but_the_loss_s_own_and_units_do_not_matter():
    scale, _ = through(RunningRMS(), LOSSES[:4], scaled)
    before = float(scale(mean(jnp.float32(0.7))).value / 0.7)
    np.testing.assert_allclose(jax.grad(lambda x: scale(mean(x)).value)(jnp.float32(0.7)), before, rtol=1e-6)
    _, a = through(RunningRMS(), LOSSES, scaled)
    _, b = through(RunningRMS(), LOSSES * 1000, scaled)
    np.testing.assert_allclose(a[1:], b[1:], rtol=1e-4)
    assert np.isfinite(RunningRMS()(mean(jnp.float32(0))).value)


def test_vectors_come_to_mean_0_and_variance_1_and_back():
    rng = np.random.default_rng(0)
    mean, spread = rng.normal(size=(3, 2)), np.array([[0.1, 0.5], [0.7, 0.2], [0.4, 0.0]])
    data = (mean + spread * rng.normal(size=(1000, 8, 5, 3, 2))).astype(np.float32)
    moments, _ = through(RunningMoments(3, 2), data, learn)
    z = np.asarray(moments.normalise(data[-200:].reshape(-1, 3, 2)))
    alive = spread > 0
    assert np.abs(z.mean(axis=0)[alive]).max() < 0.2 and np.abs(z.std(axis=0)[alive] - 1).max() < 0.1
    assert np.abs(z[:, ~alive]).max() < 0.1, "what does not vary is not blown up"
    np.testing.assert_allclose(moments.restore(jnp.asarray(z)), data[-200:].reshape(-1, 3, 2), atol=1e-5)
    early, _ = through(RunningMoments(3, 2), data[:20], learn)
    np.testing.assert_allclose(early.mean[...], data[:20].mean(axis=(0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(early.square[...], np.square(data[:20]).mean(axis=(0, 1, 2)), atol=1e-5)


def test_before_anything_is_seen_nothing_is_changed():
    x = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    np.testing.assert_array_equal(RunningMoments(3, 2).normalise(x), x)
    np.testing.assert_array_equal(RunningMoments(3, 2).restore(x), x)


def test_what_is_kept_has_no_gradient():
    def learned(x):
        moments = RunningMoments(2)
        learn(moments, x)
        return jnp.sum(moments.normalise(x) ** 2)

    def given(x, moments):
        return jnp.sum(moments.normalise(x) ** 2)

    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)
    moments = RunningMoments(2)
    learn(moments, x)
    np.testing.assert_allclose(jax.grad(learned)(x), jax.grad(given)(x, moments), rtol=1e-5)
