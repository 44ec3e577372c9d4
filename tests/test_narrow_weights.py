"""Worlds with fewer bits: what is held, that it is what pages store, and that play and evaluation use it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import tiny
from contracts.tiny import SMALL, clip, dynamics, watch
from flax import nnx
from golden import unpack

from reverie import cli
from reverie.evaluation import run
from reverie.models.dynamics.causal import CausalConfig
from reverie.narrow_weights import narrowed, rounded
from reverie.nn.linear import Linear
from reverie.nn.transformer import unstack_layers
from reverie.play import server


def linear(model):
    return [layer for _, layer in nnx.iter_modules(model) if isinstance(layer, Linear)]


def seen(model, latents, actions):
    """Return the features of a clip, frame by frame as in play."""
    graph, state = nnx.split(unstack_layers(model))
    return np.asarray(jax.jit(lambda state: watch(nnx.merge(graph, state), latents, actions)[1])(state))


@pytest.mark.parametrize(("bits", "dtype", "scan"), [(8, jnp.int8, False), (16, jnp.float16, True)])
def test_layers_hold_few_bits_and_compute_what_pages_store(bits, dtype, scan):
    world = tiny.world()
    world.dynamics = dynamics(CausalConfig, transformer=replace(SMALL, scan=scan))
    page, held = rounded(world, bits).dynamics, narrowed(world, bits).dynamics
    assert {layer.kernel[...].dtype for layer in linear(held)} == {jnp.dtype(dtype)} and len(linear(held)) == 7
    latents, actions = clip(length=4)
    np.testing.assert_allclose(seen(held, latents, actions), seen(page, latents, actions), atol=1e-4)
    assert np.abs(world.dynamics.head.kernel[...] - page.head.kernel[...]).max() > 1e-4
    np.testing.assert_allclose(held.head.weights[0], page.head.kernel[...], atol=1e-7)


def test_no_bits_are_dropped_unless_asked():
    world = tiny.world()
    assert narrowed(world, 32) is world and narrowed(world.tokenizer, 8) is world.tokenizer


def test_play_and_evaluation_take_the_bits_that_are_asked_for(tmp_path, monkeypatch):
    """A world on disk: the weights that are played, and those that are measured and noted with the numbers."""
    folder, seen = unpack(tmp_path / "world"), []
    monkeypatch.setattr(server, "serve", lambda world, **_: seen.append(world))
    monkeypatch.setattr(run, "evaluate", lambda world, *_, **__: (seen.append(world), ({}, {}))[1])
    monkeypatch.setattr(run, "say", lambda numbers: None)
    monkeypatch.setattr(run, "write_report", lambda numbers, *_: seen.append(numbers))
    assert cli.main(["play", str(folder), "--bits", "8"]) == 0
    assert cli.main(["eval", str(folder), "--bits", "8"]) == 0
    played, measured, numbers = seen
    for world in (played, measured):
        assert all(layer.kernel[...].dtype == jnp.int8 for layer in linear(world.dynamics))
        assert all(layer.kernel[...].dtype == jnp.float32 for layer in linear(world.tokenizer))
    assert numbers == {"bits": 8}
    assert cli.main(["eval", str(folder)]) == 0 and seen[-1] == {}
