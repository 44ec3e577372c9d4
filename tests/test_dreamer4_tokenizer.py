"""Dreamer 4's tokenizer: attention mask, what is hidden, what dynamics are given; contracts/ has what all promise.

Shapes: B batch, T time, P patches per frame, Q latent tokens, D width of their bottleneck, M model width.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.tiny import ACTIONS, SMALL, T, awake, frames, tiny
from flax import nnx
from test_perceptual import arrays, written

from reverie.actions import START
from reverie.data.arrays import ArrayDataset
from reverie.data.episode import Episode, Spec
from reverie.errors import ReverieError
from reverie.models.tokenizers import dreamer4
from reverie.models.tokenizers.dreamer4 import Dreamer4Config
from reverie.nn.batch import row_keys, settle
from reverie.nn.patch import hide
from reverie.nn.perceptual import ALEXNET
from reverie.training.checkpoint import load
from reverie.training.engine import Run, fit
from reverie.training.objectives import TokenizerObjective
from reverie.training.optim import OptimConfig

KEY = jax.random.key(0)
P, Q, D = 4, 6, 16  # of the tiny model
TALL = dataclasses.replace(SMALL, depth=4, time_every=2)
NETS = {"space+time": TALL, "alternate": dataclasses.replace(TALL, layout="alternate", registers=2, kv_heads=1)}


def made(net=SMALL, **changes):
    return awake(dataclasses.replace(tiny(Dreamer4Config(), net), **changes).make(nnx.Rngs(0)))


def everyone(patches, latents):
    """A planted mistake: every token reads every other."""
    return np.ones((patches + latents,) * 2, bool)


def slope(function, x):
    """Return how much a random mix of ``function(x)`` changes with each number of ``x``."""

    def mixed(x):
        y = function(x)
        return jnp.sum(y * jax.random.normal(KEY, y.shape))

    return np.abs(jax.jit(jax.grad(mixed))(x))


@pytest.fixture(params=sorted(NETS))
def net(request):
    return NETS[request.param]


def test_the_masks_are_the_paper_s():
    x, o = True, False
    np.testing.assert_array_equal(dreamer4.encoder_mask(2, 1), [[x, x, o], [x, x, o], [x, x, x]])
    np.testing.assert_array_equal(dreamer4.decoder_mask(2, 1), [[x, x, x], [x, x, x], [o, o, x]])


def embedded(model, clip):
    """Return its patches and latents, compiled: operation by operation that takes ten times as long."""
    x = jax.jit(lambda clip: model.embedded(clip))(clip)
    return x, jax.jit(lambda x: model.bottleneck(x))(x)


def with_token(model, name, value):
    graph, state = nnx.split(model)
    other = nnx.merge(graph, jax.tree.map(lambda leaf: leaf, state))
    getattr(other, name)[...] = value
    return other


def leaks(net, clip):
    """How much of what they may not know patches of the encoder know, and latents of the decoder."""
    model = made(net)
    x, z = embedded(model, clip)
    return {
        "patches of the encoder know latents": slope(
            lambda latents: with_token(model, "latents", latents).encoder_tokens(x)[:, :, :P], model.latents[...]
        ).max(),
        "latents of the decoder know queries": slope(
            lambda queries: with_token(model, "queries", queries).decoder_tokens(z)[:, :, P:], model.queries[...]
        ).max(),
    }


def test_patches_do_not_know_latents_nor_latents_queries(net):
    assert set(leaks(net, frames()).values()) == {0}


def test_planted_masks_are_noticed(monkeypatch):
    for mask in ("encoder_mask", "decoder_mask"):
        monkeypatch.setattr(dreamer4, mask, everyone)
    assert min(leaks(SMALL, frames()).values()) > 0


def test_latents_read_all_patches_and_patches_all_latents(net, monkeypatch):
    def blind():
        model = made(net)
        x, z = embedded(model, frames())
        seen = slope(lambda x: model.bottleneck(x)[:, -1], x)[:, -1]
        drawn = slope(lambda z: model.decoder_tokens(z)[:, -1, :P], z)[:, -1]
        return min(seen.max(-1).min(), drawn.max(-1).min())

    assert blind() > 0
    monkeypatch.setattr(dreamer4, "decoder_mask", dreamer4.encoder_mask)  # planted: the one in place of the other
    assert blind() == 0


def test_no_gradient_comes_from_the_future(net):
    model, t = made(net), T // 2
    x, z = embedded(model, frames())
    for function, given in ((lambda x: model.bottleneck(x), x), (model.decoder_tokens, z)):
        change = slope(lambda given, function=function: function(given)[:, t], given).max(axis=(0, 2, 3))
        assert (change[t + 1 :] == 0).all() and change[t] > 0 and change[t - 1] > 0


def test_frames_are_painted_from_the_bottleneck_alone():
    """Where latents say the same, frames are the same; and a frame's latents do not know what is hidden of it."""
    model = made()
    np.testing.assert_array_equal(*np.asarray(jax.jit(model.decoder_tokens)(jnp.zeros((2, 1, Q, D)))))

    @jax.jit
    def bottleneck(frames):
        return model.bottleneck(hide(model.embedded(frames), model.hidden[...], (1.0, 1.0), row_keys(KEY, 2)))

    np.testing.assert_array_equal(bottleneck(frames()), bottleneck(frames(seed=1)))


def shares(least, most, batch=64, length=16, patches=256):
    """The share of patches hidden in every frame."""
    x = hide(jnp.ones((batch, length, patches, 2)), jnp.zeros(2), (least, most), row_keys(KEY, batch))
    assert set(np.unique(x)) <= {0, 1} and (x[..., 0] == x[..., 1]).all()
    return 1 - np.asarray(jnp.mean(x[..., 0], axis=-1))


def test_every_frame_has_a_share_of_hidden_patches_of_its_own():
    found = shares(0.0, 0.9)
    quantiles = np.quantile(found, [0.1, 0.3, 0.5, 0.7, 0.9])
    np.testing.assert_allclose(quantiles, 0.9 * np.array([0.1, 0.3, 0.5, 0.7, 0.9]), atol=0.05)
    assert found.std(axis=1).min() > 0.1, "the frames of a clip have one share"
    assert (shares(0.0, 0.0) == 0).all() and abs(shares(0.9, 0.9).mean() - 0.9) < 0.01


def test_the_loss_hides_as_much_as_the_config_says():
    """A learned vector has a gradient where it stands, and none where nothing is hidden."""
    for share, learns in ((0.9, True), (0.0, False)):
        graph, params, rest = nnx.split(made(mask_max=share), nnx.Param, ...)

        def loss(params, graph=graph, rest=rest):
            model = nnx.merge(graph, params, jax.tree.map(lambda leaf: leaf, rest))
            return model.loss(frames(), row_keys(KEY, 2)).value

        assert bool(jnp.any(jax.jit(jax.grad(loss))(params)["hidden"][...])) == learns


def test_latents_are_packed_in_order():
    model = made(packing=3)
    assert (model.tokens, model.grid, model.width) == (2, (1, 2), 3 * D)
    packed, (_, z) = jax.jit(model.encode)(frames()), embedded(model, frames())
    for n in range(2):
        for k in range(3):
            np.testing.assert_allclose(packed[:, :, n, k * D : (k + 1) * D], z[:, :, 3 * n + k], atol=1e-6)
    with pytest.raises(ValueError, match="6 latents cannot be packed by 4 evenly"):
        made(packing=4)


def learned(model, steps=200):
    """The model after so many losses, its weights as they were; only what it knows about its latents has changed."""
    graph, state = nnx.split(model)

    def step(state, key):
        model = nnx.merge(graph, state)
        settle(model, model.loss(frames(8), row_keys(key, 8)).notes, key, jnp.float32(0))
        return nnx.state(model), None

    return nnx.merge(graph, jax.jit(lambda s: jax.lax.scan(step, s, jax.random.split(KEY, steps))[0])(state))


def test_dynamics_are_given_unit_variance_and_pictures_do_not_change():
    model = learned(made(mask_max=0.0))
    latents, (_, z) = jax.jit(model.encode)(frames(8)), embedded(model, frames(8))
    np.testing.assert_allclose(latents.mean(axis=(0, 1)), np.zeros((3, 2 * D)), atol=0.05)
    raw = np.asarray(z.std(axis=(0, 1))).reshape(3, 2 * D)
    alive = raw > 0.1
    np.testing.assert_allclose(latents.std(axis=(0, 1))[alive], 1, atol=0.05)
    assert np.mean(alive) > 0.5 and np.abs(raw[alive] - 1).max() > 0.2, "it was so all along"
    np.testing.assert_allclose(jax.jit(model.decode)(latents), jax.jit(model.decode_latents)(z), atol=1e-4)


def test_what_never_changes_does_not_pass_the_bottleneck():
    """A large constant in a latent's numbers would leave no room for the others: it is taken out before the norm."""
    model = made(mask_max=0.0)
    encode, shift = model.encoder_tokens, jnp.zeros(SMALL.width).at[0].set(50.0)
    model.encoder_tokens = lambda x: encode(x) + shift[None, None, None]
    x, constant = map(np.asarray, embedded(model, frames(8)))  # planted: the constant is not known yet
    model.centre.settle(jax.jit(lambda x: model.centre.note(model._projected(x)))(x), KEY, jnp.float32(0))
    _, z = map(np.asarray, embedded(model, frames(8)))
    assert z.std(axis=(0, 1)).mean() > 0.3 > 5 * constant.std(axis=(0, 1)).mean()


def test_the_bottleneck_begins_wide_awake():
    """Not at the ends of tanh, and no two latent tokens alike: a replica began with 52 % and .04 (see the file)."""
    net = dataclasses.replace(SMALL, width=64, depth=2, heads=4, hidden=192)
    model = tiny(Dreamer4Config(), net).make(nnx.Rngs(0))
    x, z = embedded(model, frames(8))

    def awake(z):
        return np.mean(np.abs(z) > 0.99) < 0.05 and 0.3 < np.std(z) < 0.8 and np.std(z, axis=2).mean() > 0.3

    assert awake(np.asarray(z))
    h = jax.jit(lambda x: model.to_latent(4 * model.encoder_tokens(x)[:, :, P:]))(x)  # planted: no norm before it
    assert not awake(np.tanh(h))
    model.latents[...] = jnp.broadcast_to(model.latents[...][:1], model.latents.shape)  # planted: tokens all alike
    model.encoder.slots = None
    assert not awake(np.asarray(embedded(model, frames(8))[1]))


# -- with LPIPS ---------------------------------------------------------------------------------------------------


def sharp(folder):
    """A config for 32x32 frames with LPIPS by a narrow AlexNet of random weights."""
    return dataclasses.replace(
        tiny(Dreamer4Config()), frame=(32, 32, 3), patch=8, perceptual=written(folder, arrays(ALEXNET))
    )


def film(length=6):
    rng = np.random.default_rng(0)
    actions = np.zeros(length, np.int32)
    actions[0] = START
    pictures, none = rng.integers(0, 256, (length, 32, 32, 3), np.uint8), np.zeros(length, np.float32)
    return ArrayDataset.from_episodes(
        Spec((32, 32, 3), ACTIONS, 7.0, "x"), [Episode(pictures, actions, none, none > 0)]
    )


def two_losses(config, **changes):
    """Return the losses of a film before and after the statistics of the first have settled, and its metrics."""
    graph, state = nnx.split(dataclasses.replace(config, **changes).make(nnx.Rngs(0)))
    clip, keys = film().arrays["frames"][None], row_keys(KEY, 1)

    @jax.jit
    def both(state):
        model = nnx.merge(graph, state)
        found = model.loss(clip, keys)
        settle(model, found.notes, KEY, jnp.float32(0))
        return found.value, model.loss(clip, keys).value, found.metrics

    return both(state)


def test_lpips_is_a_term_of_its_own_weight(tmp_path):
    config = sharp(tmp_path)
    (plain, plain_again, _), (first, second, metrics) = (
        two_losses(config, perceptual_weight=weight) for weight in (0.0, 0.4)
    )
    assert metrics["lpips"].value > 0
    np.testing.assert_allclose(first - plain, metrics["lpips"].value * 0.4, rtol=1e-4)
    # The second loss of each term is divided by the first.
    np.testing.assert_allclose(second / plain_again, 1.4, rtol=0.05)
    np.testing.assert_allclose(two_losses(config, perceptual="")[0], plain, rtol=1e-6)


def test_with_lpips_it_trains_and_is_loaded_where_its_file_is_not(tmp_path):
    config = sharp(tmp_path)
    run = Run(
        objective=TokenizerObjective(tokenizer=config),
        batch=2,
        length=3,
        steps=2,
        optimizer=OptimConfig(warmup=1),
        report_every=0,
    )
    fit(run, tmp_path / "run", dataset=film(), progress=False)
    (tmp_path / "lpips.npz").unlink()
    dreamer4.perceptual.read.cache_clear()
    model = load(tmp_path / "run")
    assert (
        model.error_scale.square[...] > 0
        and model.perceptual_scale.square[...] > 0
        and model.moments.square[...].max() != 1
    )
    assert jax.eval_shape(model.encode, film().arrays["frames"][None]).shape == (1, 6, 3, 2 * D)
    with pytest.raises(ReverieError, match="there are no LPIPS weights at"):
        fit(run, tmp_path / "again", dataset=film(), progress=False)
