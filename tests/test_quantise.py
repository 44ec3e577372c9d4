"""Quantisers: which code, what gradient, and a codebook that does not die."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.tiny import state
from flax import nnx

from reverie.nn.quantise import FSQConfig, VQConfig, unit, usage

KEY = jax.random.key(0)


def book(codes=16, width=4, **changes):
    return VQConfig(codes=codes, width=width, **changes).make(nnx.Rngs(0))


def learning(vq):
    """One step of learning as a pure function of (statistics, x, key)."""
    graph, statistics = nnx.split(vq)

    @jax.jit
    def step(statistics, x, key):
        module = nnx.merge(graph, statistics)
        q = module(x)
        module.settle(module.note(x, q.codes), key, jnp.float32(0))
        return nnx.state(module), q.codes

    return statistics, step


def test_gradients_pass_straight_through():
    vq, x, w = book(), jax.random.normal(KEY, (3, 5, 4)), jax.random.normal(jax.random.key(1), (3, 5, 4))
    through = jax.jit(jax.grad(lambda x: jnp.sum(vq(x).vectors * w)))(x)
    np.testing.assert_allclose(through, jax.grad(lambda x: jnp.sum(unit(x) * w))(x), atol=1e-6)
    q = vq(x)
    np.testing.assert_allclose(q.vectors, vq.lookup(q.codes), atol=1e-6)
    assert np.isfinite(jax.grad(lambda x: jnp.sum(vq(x).misfit))(jnp.zeros((1, 4)))).all()


def test_what_is_quantised_is_drawn_to_its_code():
    """The commitment: its gradient is that of the distance from a code that stands still, and follows its weight."""
    vq, x = book(commitment=0.5), jax.random.normal(KEY, (5, 4))
    chosen = vq.lookup(vq(x).codes)
    drawn = jax.jit(jax.grad(lambda x: jnp.sum(vq(x).misfit)))(x)
    expected = jax.grad(lambda x: 0.5 * jnp.sum(jnp.mean(jnp.square(unit(x) - chosen), axis=-1)))(x)
    np.testing.assert_allclose(drawn, expected, atol=1e-6)
    assert np.abs(np.asarray(drawn)).max(axis=-1).min() > 1e-3


def test_the_nearest_code_by_angle_is_chosen_whatever_the_length():
    vq, x = book(), jax.random.normal(KEY, (100, 4))
    near = np.argmax(np.asarray(x / jnp.linalg.norm(x, axis=-1, keepdims=True)) @ np.asarray(vq.book[...]).T, axis=-1)
    for scale in (1.0, 0.01, 300.0):
        np.testing.assert_array_equal(vq(x * scale).codes, near)
    np.testing.assert_array_equal(vq(vq.book[...] * 3).codes, np.arange(16))


def test_codes_are_chosen_in_float32():
    """Codes 1e-3 apart are one and the same in bfloat16, also inside the matmuls of GPUs and TPUs."""
    vq, x = book(codes=512), jax.random.normal(KEY, (200, 4)).astype(jnp.bfloat16)
    q = vq(x)
    assert (q.vectors.dtype, q.misfit.dtype, q.scores.dtype) == (jnp.float32,) * 3
    np.testing.assert_array_equal(q.codes, vq(x.astype(jnp.float32)).codes)
    exactly = np.asarray(x, np.float64)
    exactly = exactly / np.linalg.norm(exactly, axis=-1, keepdims=True) @ np.asarray(vq.book[...], np.float64).T
    best, second = np.sort(exactly)[:, [-1, -2]].T
    clear = best - second > 1e-6
    assert clear.sum() > 190
    np.testing.assert_array_equal(np.asarray(q.codes)[clear], exactly.argmax(-1)[clear])
    exact = [
        e.params["precision"]
        for e in jax.make_jaxpr(lambda x: vq(x).codes)(x).eqns
        if e.primitive.name == "dot_general"
    ]
    assert exact and all(p is not None and p[0] == jax.lax.Precision.HIGHEST for p in exact)


def test_statistics_change_only_when_they_settle():
    vq, x = book(), jax.random.normal(KEY, (100, 4))
    before = state(vq)
    note = vq.note(x, vq(x).codes)
    assert all(np.array_equal(leaf, before[name]) for name, leaf in state(vq).items())
    vq.settle(note, KEY, jnp.float32(0))
    assert not np.array_equal(vq.book[...], before["book"])
    np.testing.assert_allclose(jnp.linalg.norm(vq.book[...], axis=-1), np.ones(16), atol=1e-5)


def test_codes_move_to_what_they_stand_for():
    centres = unit(jnp.array([[1.0, 0, 0, 0.2], [0, 1, 0.3, 0], [0, 0, 1, 1], [-1, -1, 0, 0]]))
    statistics, step = learning(book(codes=4, decay=0.8, restart_after=3))
    for i in range(60):
        x = centres[np.arange(64) % 4] + 0.02 * jax.random.normal(jax.random.fold_in(KEY, i), (64, 4))
        statistics, codes = step(statistics, x, jax.random.fold_in(KEY, i))
    assert len(np.unique(codes)) == 4
    found = np.asarray(statistics["book"][...] @ centres.T).max(axis=0)
    assert (found > 0.995).all()


def test_a_collapsed_codebook_comes_back_to_life():
    """All codes but one lie where no vector is: without restarts nothing would ever choose them."""
    x = jnp.abs(jax.random.normal(KEY, (256, 4)))
    used = []
    for restart_after in (3, 10**6):
        vq = book(restart_after=restart_after, decay=0.9)
        for name in ("book", "sums"):
            getattr(vq, name)[...] = jnp.full((16, 4), -0.5).at[0].set(0.5)
        statistics, step = learning(vq)
        for i in range(40):
            statistics, codes = step(statistics, x, jax.random.fold_in(KEY, i))
        used.append(len(np.unique(codes)))
    assert used[0] >= 15 and used[1] == 1


def test_thrift_keeps_one_code_for_one_thing():
    """Sixty-four codes for four things and a little noise: several to each, between which one thing flickers."""
    centres = unit(jax.random.normal(KEY, (4, 4)))
    found = {}
    for rate_penalty in (0.0, 0.01):
        vq = book(codes=64, decay=0.9, restart_after=10, rate_penalty=rate_penalty)
        statistics, step = learning(vq)
        for i in range(150):
            x = centres[np.arange(256) % 4] + 0.02 * jax.random.normal(jax.random.fold_in(KEY, i), (256, 4))
            statistics, codes = step(statistics, x, jax.random.fold_in(KEY, i))
        nnx.update(vq, statistics)
        q = vq(x)
        chosen = np.asarray(q.codes).reshape(-1, 4)
        flickers = np.mean(chosen[1:] != chosen[:-1])
        misfit = float(jnp.mean(1 - jnp.sum(unit(x) * vq.lookup(q.codes), axis=-1)))
        found[rate_penalty] = len(np.unique(chosen)), flickers, misfit
        np.testing.assert_array_equal(q.codes, np.argmax(q.scores, axis=-1))
    codes, flickers, misfit = found[0.01]
    assert codes == 4 and flickers == 0 and misfit < 1e-3
    codes, flickers, _ = found[0.0]
    assert codes > 20 and flickers > 0.5


@pytest.mark.parametrize("levels", [(8, 6, 5, 5), (3,), (2, 2, 2), (7, 4)])
def test_fsq_codes_are_numbers_of_places(levels):
    """Every code has its own vector, and what lies at that vector gets that code back."""
    fsq = FSQConfig(levels=levels).make(nnx.Rngs(0))
    codes = jnp.arange(fsq.codes)
    vectors = np.asarray(fsq.lookup(codes))
    assert fsq.codes == np.prod(levels) == len(np.unique(vectors, axis=0))
    assert vectors.min() == -1 and vectors.max() <= 1
    level = np.array(levels)
    half, shift = (level - 1) * 1.001 / 2, np.where(level % 2 == 0, 0.5, 0)
    x = np.arctanh((vectors * (level // 2) + shift) / half) - np.arctanh(shift / half)
    q = fsq(jnp.asarray(x, jnp.float32))
    np.testing.assert_array_equal(q.codes, codes)
    np.testing.assert_allclose(q.vectors, vectors, atol=1e-6)


def test_fsq_reaches_every_code_and_its_gradient_is_that_of_the_bound():
    fsq = FSQConfig(levels=(5, 4)).make(nnx.Rngs(0))
    x = 2 * jax.random.normal(KEY, (2000, 2))
    assert set(np.asarray(fsq(x).codes).tolist()) == set(range(20))
    np.testing.assert_array_equal(
        fsq(x.astype(jnp.bfloat16)).codes, fsq(x.astype(jnp.bfloat16).astype(jnp.float32)).codes
    )
    grad = np.asarray(jax.grad(lambda x: jnp.sum(fsq(x).vectors))(x))
    assert np.isfinite(grad).all() and (grad >= 0).all() and (grad[np.abs(x) < 1] > 0).all()


def test_usage_counts():
    codes = jnp.arange(8), jnp.zeros(5, jnp.int32)
    even, one = ({name: share.value for name, share in usage(each, 8).items()} for each in codes)
    np.testing.assert_allclose([even["usage"], even["entropy"], even["perplexity"]], [1, 1, 8], rtol=1e-5)
    np.testing.assert_allclose([one["usage"], one["entropy"], one["perplexity"]], [1 / 8, 0, 1], atol=1e-6)
