"""MaskGIT: what a hidden frame may be guessed from in training, and how a frame is filled."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.tiny import ACTIONS, SMALL, awake, clip, dynamics, tiny, tokenizer
from flax import nnx

from reverie.actions import ActionSpace
from reverie.errors import ReverieError
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.nn.batch import row_keys
from reverie.nn.codes import cross_entropy
from reverie.nn.linear import Linear
from reverie.nn.patch import neighbourhood
from reverie.nn.transformer import TransformerConfig

KEY = jax.random.key(3)
WAYS = {
    "plain": {},
    "hidden": {"context": "hidden"},
    "added, previous": {"conditioning": "add", "previous": True},
    "hidden, previous": {"context": "hidden", "previous": True},
    "hidden, neighbours": {"context": "hidden", "previous": True, "neighbours": 1, "context_noise": 0.5},
}


def make(transformer=SMALL, **changes):
    config = dataclasses.replace(tiny(MaskGITConfig(), transformer), **changes)
    return awake(config.fitted(tokenizer(), ACTIONS).make(nnx.Rngs(1)))


@pytest.mark.parametrize("way", WAYS)
def test_a_hidden_frame_is_guessed_from_the_past_alone(way):
    """Features of frame t may know latents before t and actions up to t; of frame t itself only what is not hidden."""
    model, (x, a), (y, b) = make(**WAYS[way]), clip(length=5), clip(length=5, seed=1)
    run = jax.jit(lambda x, a: model._predict_masked(x, a, row_keys(KEY, len(x)), ratio=1.0)[0])
    full = run(x, a)
    for t in (1, 2, 4):
        mixed = run(
            jnp.concatenate([x[:, :t], y[:, t:]], axis=1), jnp.concatenate([a[:, : t + 1], b[:, t + 1 :]], axis=1)
        )
        np.testing.assert_array_equal(mixed[:, :t], full[:, :t])
        past = run(x.at[:, t - 1].set(y[:, t - 1]), a)
        if model.config.context == "clean" or model.config.previous:
            assert (np.abs(past[:, t - 1] - full[:, t - 1]).max(axis=-1) > 0).all(), "the frame before is not seen"
        led = run(x, a.at[:, t].set((a[:, t] + 1) % ACTIONS.size))
        assert (np.abs(led[:, t - 1] - full[:, t - 1]).max(axis=-1) > 0).all(), "the action is not seen"


@pytest.mark.parametrize("way", ["plain", "added, previous"])
def test_training_guesses_what_playing_guesses(way):
    model, (x, a) = make(**WAYS[way]), clip(length=6)
    hidden = jnp.full_like(x[:, 0], model.config.codes)

    def play(state, inputs):
        latents, action = inputs
        h, _ = model._step(state, hidden, action)
        return model.observe(state, latents, action)[0], model._logits(h)

    @jax.jit
    def both(x, a):
        trained = model._logits(model._predict_masked(x, a, row_keys(KEY, len(x)), ratio=1.0)[0])
        _, played = jax.lax.scan(play, model.empty(len(x)), (jnp.swapaxes(x, 0, 1), a.T))
        return trained, jnp.swapaxes(played, 0, 1)[:, 1:]

    np.testing.assert_allclose(*both(x, a), atol=1e-4)


@pytest.mark.parametrize("way", ["hidden", "added, previous"])
def test_cached_and_uncached_frames_are_equal(way):
    model, (x, a) = make(passes=4, **WAYS[way]), clip(length=8)

    @jax.jit
    def both(x, a):
        def take_in(state, inputs):
            return model.observe(state, *inputs)[0], None

        state, _ = jax.lax.scan(take_in, model.empty(len(x)), (jnp.swapaxes(x, 0, 1), a[:, :-1].T))
        return model.imagine(state, a[:, -1], KEY)[1], model.imagine_uncached(x, a, KEY)

    np.testing.assert_array_equal(*both(x[:, :-1], a))


def test_it_computes_in_bfloat16_and_scanned():
    """As on accelerators: the loss is float32 and near that of float32."""
    x, a = clip(length=4)
    model = make(transformer=dataclasses.replace(SMALL, dtype="bfloat16", scan=True, remat="dots"))
    with jax.numpy_dtype_promotion("standard"):  # jax.nn.dot_product_attention promotes, and says so nowhere
        loss = jax.jit(model.loss)(x, a, row_keys(KEY, len(x))).value
        state, latents, _ = jax.jit(model.imagine)(model.empty(2), a[:, 1], KEY)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, jax.jit(make().loss)(x, a, row_keys(KEY, len(x))).value, rtol=2e-2)
    assert state.cache.layers[0][0].dtype == jnp.bfloat16 and latents.dtype == jnp.int32


def fill(logits, passes, temperature=1.0, rows=256, key=KEY, schedule="cosine"):
    """Sample frames whose logits (N, V) never change: what each pass was given, (K, rows, N), and the result."""
    tokens, codes = logits.shape
    model = dynamics().config
    model = dataclasses.replace(model, codes=codes, grid=(tokens, 1), passes=passes, schedule=schedule).make(
        nnx.Rngs(0)
    )

    given = []

    def predict(latents):
        jax.debug.callback(lambda seen: given.append(np.asarray(seen)), latents, ordered=True)
        return jnp.broadcast_to(logits[None], (rows, tokens, codes))

    latents, _ = jax.jit(lambda: model.sample(predict, rows, key, temperature))()
    jax.effects_barrier()
    return np.stack([*given, latents]), codes


@pytest.mark.parametrize("schedule", ["cosine", "geometric"])
@pytest.mark.parametrize("passes", [1, 3, 25])
def test_every_pass_keeps_what_was_kept_and_the_last_hides_nothing(passes, schedule):
    given, hidden = fill(jax.random.normal(KEY, (16, 8)), passes, schedule=schedule)
    left = (given == hidden).sum(axis=-1)
    assert (left == left[:, :1]).all() and (np.diff(left[:, 0]) <= 0).all()
    assert left[0, 0] == 16 and left[-1, 0] == 0
    share = np.arange(passes + 1) / passes
    expected = {
        "cosine": 16 * np.cos(np.pi / 2 * share),
        # 16 tokens, all but one of the passes, then none: the last token by itself.
        "geometric": np.where(share < 1, 16.0 ** (1 - share * passes / max(passes - 1, 1)), 0),
    }[schedule]
    np.testing.assert_array_equal(left[:, 0], np.floor(expected + 1e-6))
    assert schedule == "cosine" or passes == 1 or left[-2, 0] == 1
    for before, after in itertools.pairwise(given):
        np.testing.assert_array_equal(after[before != hidden], before[before != hidden])


def test_temperature_zero_takes_the_likeliest_and_more_is_more_diverse():
    logits = 2 * jax.random.normal(KEY, (16, 8))
    best = np.broadcast_to(np.argmax(logits, axis=-1), (256, 16))
    right = [np.mean(fill(logits, 4, temperature)[0][-1] == best) for temperature in (0.0, 0.5, 1.0, 3.0)]
    assert right[0] == 1 and (np.diff(right) < -0.03).all()


def test_one_pass_at_temperature_one_samples_what_the_logits_say():
    logits = jax.random.normal(KEY, (16, 8))
    drawn = fill(logits, 1, rows=2000)[0][-1]
    shares = (drawn[..., None] == np.arange(8)).mean(axis=0)
    np.testing.assert_allclose(shares, jax.nn.softmax(logits), atol=0.05)


def test_early_passes_are_the_more_adventurous():
    """Token n may be one of n + 1 codes, all alike, so it is the less sure the larger n: greedy passes go in order."""
    logits = jnp.where(jnp.arange(16)[None] <= jnp.arange(16)[:, None], 0.0, -1e9)
    passes = 8
    given, hidden = fill(logits, passes, temperature=2.0)
    in_order = []
    for before, after in itertools.pairwise(given[:-1]):
        chosen, left = (before == hidden) & (after != hidden), after == hidden
        pairs = chosen[:, :, None] & left[:, None, :]
        in_order.append(np.mean((np.arange(16)[:, None] < np.arange(16))[None].repeat(256, 0)[pairs]))
    assert in_order[-1] > in_order[0] + 0.1 and in_order[-1] > 0.75
    assert np.mean(in_order[: passes // 2]) < np.mean(in_order[passes // 2 :])


def test_a_loss_weighs_what_changes():
    """Of three tokens one differs from the frame before: it counts 1 + weight times, the others once."""
    x, codes = jax.random.normal(KEY, (1, 1, 3, 5)), jnp.array([[[0, 1, 2], [4, 1, 2]]])
    head = Linear(5, 7, rngs=nnx.Rngs(0))
    nats = -np.asarray(jax.nn.log_softmax(head(x)))[0, 0, np.arange(3), [4, 1, 2]]
    for weight in (0.0, 50.0):
        loss = cross_entropy(head, x, codes, jnp.ones((1, 1, 3)), weight).value
        np.testing.assert_allclose(loss, np.average(nats, weights=[1 + weight, 1, 1]), rtol=1e-5)
    x, a = clip(length=4)
    at = [jax.jit(make(changed_weight=w).loss)(x, a, row_keys(KEY, len(x))).value for w in (0.0, 50.0)]
    assert at[0] != at[1], "the model's loss does not know the weight"


def test_a_token_reads_its_neighbours_of_the_frame_before_and_nothing_further_away():
    x = jnp.arange(1.0, 21.0).reshape(1, 1, 20, 1)  # 4 by 5, row by row
    around = np.asarray(neighbourhood(x, (4, 5), 1))[0, 0]
    assert around[6].tolist() == [1, 2, 3, 6, 7, 8, 11, 12, 13]
    assert around[0].tolist() == [0, 0, 0, 0, 1, 2, 0, 6, 7] and around[19].tolist()[4:] == [20, 0, 0, 0, 0]
    with pytest.raises(ReverieError, match="previous"):
        MaskGITConfig(neighbours=1).make(nnx.Rngs(0))


def test_context_noise_disturbs_a_share_of_the_frames_to_predict_from_and_no_target():
    net = TransformerConfig(width=16, depth=1, heads=2, hidden=16, time_every=0)
    config = MaskGITConfig(
        codes=32,
        grid=(4, 5),
        actions=ActionSpace(),
        transformer=net,
        context="hidden",
        previous=True,
        context_noise=0.5,
    )
    latents = jnp.broadcast_to(jnp.arange(6)[:, None], (200, 6, 20))
    seen = np.asarray(config.make(nnx.Rngs(0))._corrupted(latents, row_keys(jax.random.key(0), 200)))
    other = np.asarray(latents)[:, ::-1]
    assert ((seen == latents) | (seen == other)).all()
    share = (seen != latents).mean(-1)
    assert 0.45 < (share > 0).mean() < 0.55 and 0.45 < share[share > 0].mean() < 0.55
    quiet = dataclasses.replace(config, context_noise=0.0).make(nnx.Rngs(0))
    assert quiet._corrupted(latents, row_keys(jax.random.key(0), 200)) is latents


def test_the_single_pace_draws_the_last_tokens_one_by_one():
    model = MaskGITConfig(codes=32, grid=(4, 5), passes=6, schedule="single", transformer=SMALL).make(nnx.Rngs(0))
    assert model.schedule().tolist() == [5, 4, 3, 2, 1, 0]
    many = MaskGITConfig(codes=32, grid=(2, 2), passes=9, schedule="single", transformer=SMALL).make(nnx.Rngs(0))
    assert many.schedule().tolist() == [4, 4, 4, 4, 4, 3, 2, 1, 0]
