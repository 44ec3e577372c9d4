"""Dreamer 4's tokenizer: who reads whom, what is hidden, what dynamics are given. What all tokenizers promise is in
contracts/test_tokenizers.py.

Shapes: B batch, T time, P patches per frame, Q latent tokens, D width of their bottleneck, M model width.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.tiny import SMALL, T, awake, frames, tokenizer
from flax import nnx
from test_perceptual import arrays, written

from reverie.errors import ReverieError
from reverie.models.tokenizers import dreamer4
from reverie.models.tokenizers.dreamer4 import Dreamer4Config
from reverie.nn.perceptual import ALEXNET
from reverie.nn.transformer import TransformerConfig

KEY = jax.random.key(0)
P, Q = 4, 6  # of the tiny model
NETS = {
    "space+time": SMALL,
    "alternate, registers": dataclasses.replace(SMALL, layout="alternate", time_every=2, depth=4, registers=2),
}


def made(transformer: TransformerConfig = SMALL, **changes):
    return awake(dataclasses.replace(tokenizer(Dreamer4Config, transformer=transformer).config, **changes).make(nnx.Rngs(0)))


def everyone(patches: int, latents: int) -> np.ndarray:
    """The planted mistake: every token reads every other."""
    return np.ones((patches + latents, patches + latents), bool)


def slope(function, x, of):
    """How much the numbers ``of(function(x))`` depend on each of ``x``: largest absolute gradient of a random mix."""
    mix = jax.random.normal(KEY, of(jax.eval_shape(function, x)).shape) if False else None
    del mix

    def total(x):
        y = of(function(x))
        return jnp.sum(y * jax.random.normal(KEY, y.shape))

    return np.abs(jax.jit(jax.grad(total))(x))


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
class TestWhoReadsWhom:
    def test_patches_of_the_encoder_do_not_know_the_latents(self, net, monkeypatch):
        def leak():
            model = made(net)
            x = jax.random.normal(KEY, (1, T, P + Q, net.width))
            return slope(model.encoder_reads, x, lambda y: y[:, :, :P])[:, :, P:].max()

        assert leak() == 0
        monkeypatch.setattr(dreamer4, "encoder_mask", everyone)
        assert leak() > 0
