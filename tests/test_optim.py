"""Schedules, the decay mask, Muon on stacked layers, and the running mean of weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reverie.training.optim import OptimConfig, average, matrices


def weights():
    rng = np.random.default_rng(0)
    shapes = {
        "embed.table": (6, 4),
        "groups.layers.0.mlp.up.kernel": (3, 4, 8),
        "groups.layers.0.mlp.up.bias": (3, 8),
        "groups.layers.0.norm.scale": (3, 4),
        "head.kernel": (4, 6),
        "slots": (5, 4),
    }
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def curve(config: OptimConfig, steps: int) -> np.ndarray:
    return np.array([config.rate_at(step, steps) for step in range(steps)])


def test_wsd_warms_up_stays_and_falls():
    rate = curve(OptimConfig(rate=1.0, warmup=4, decay=0.25, floor=0.1), 20)
    np.testing.assert_allclose(rate[:5], [0, 0.25, 0.5, 0.75, 1], atol=1e-6)
    np.testing.assert_allclose(rate[5:16], 1.0)
    np.testing.assert_allclose(rate[15:], np.linspace(1, 0.1, 6)[:5], atol=1e-6)


def test_cosine_falls_all_the_way_and_constant_stays():
    rate = curve(OptimConfig(rate=2.0, schedule="cosine", warmup=0), 100)
    np.testing.assert_allclose(rate, 1 + np.cos(np.pi * np.arange(100) / 100), atol=1e-5)
    assert (curve(OptimConfig(rate=2.0, schedule="constant", warmup=0), 9) == 2.0).all()


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "constant"])
@pytest.mark.parametrize("longer", [21, 40, 400])
def test_up_to_its_fall_a_schedule_does_not_depend_on_the_length(schedule, longer):
    config = OptimConfig(rate=1.0, schedule=schedule, warmup=3, decay=0.4)
    common = min(config.fall(20), config.fall(longer))
    np.testing.assert_array_equal(curve(config, 20)[:common], curve(config, longer)[:common])
    assert common == {"wsd": 12, "cosine": 0, "constant": 20}[schedule]


def test_a_run_shorter_than_its_warm_up_only_warms_up():
    np.testing.assert_allclose(curve(OptimConfig(rate=1.0, warmup=100), 2), [0, 0.01], atol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_only_matrices_decay(kind):
    before = weights()
    tx = OptimConfig(kind=kind, weight_decay=0.5).make()
    nothing = jax.tree.map(jnp.zeros_like, before)
    updates = jax.jit(lambda nothing, before: tx.update(nothing, tx.init(before), before)[0])(nothing, before)
    after: Any = optax.apply_updates(before, optax.tree.scale(0.1, updates))
    for name in before:
        shrunk = 0.95 if name.endswith("kernel") else 1.0
        np.testing.assert_allclose(after[name], shrunk * before[name], rtol=1e-5, err_msg=name)
    assert [name for name, is_matrix in matrices(before).items() if is_matrix] == [
        "groups.layers.0.mlp.up.kernel",
        "head.kernel",
    ]


def test_muon_orthogonalises_each_layer_of_a_stack_and_leaves_the_rest_to_adam():
    before = weights()
    config = OptimConfig(kind="muon", weight_decay=0.0, clip=0.0)
    gradients = jax.tree.map(lambda leaf: leaf * 3, before)
    tx = config.make()
    updates: Any = tx.update(gradients, tx.init(before), before)[0]
    for layer in updates["groups.layers.0.mlp.up.kernel"]:
        singular = np.linalg.svd(layer, compute_uv=False)
        assert singular.max() / singular.min() < 2  # Newton-Schulz leaves them in about 0.7..1.2 of each other
    adam = OptimConfig(weight_decay=0.0, clip=0.0).make()
    expected: Any = adam.update(gradients, adam.init(before), before)[0]
    for name in before:
        if name != "groups.layers.0.mlp.up.kernel":
            np.testing.assert_array_equal(updates[name], expected[name])


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_moments_are_float32_whatever_the_weights_are(kind):
    half = {name: leaf.astype(jnp.bfloat16) for name, leaf in weights().items()}
    state = OptimConfig(kind=kind).make().init(half)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} <= {jnp.dtype("float32"), jnp.dtype("int32")}


def test_the_gradient_is_clipped_by_its_global_norm():
    before = weights()
    config = OptimConfig(weight_decay=0.0, eps=1.0, clip=1.0)
    tx = config.make()

    def move(scale):
        gradients = jax.tree.map(lambda leaf: leaf * scale, before)
        return optax.tree.norm(tx.update(gradients, tx.init(before), before)[0])

    np.testing.assert_allclose(move(10.0), move(1000.0), rtol=1e-5)


def test_the_running_mean_follows_fast_at_first_and_slowly_later():
    zero, one = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}
    np.testing.assert_allclose(average(zero, one, 0.99, jnp.int32(1))["w"], 1 - 2 / 11, rtol=1e-6)
    np.testing.assert_allclose(average(zero, one, 0.99, jnp.int32(10**6))["w"], 0.01, rtol=1e-4)
