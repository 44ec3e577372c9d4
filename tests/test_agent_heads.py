"""What heads of an agent read of a world besides its features as they are: a grid of tokens, or MaskGIT's inputs."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from contracts.tiny import clip
from contracts.tiny import world as tiny_world
from flax import nnx

from reverie.errors import ReverieError
from reverie.models.agent import AgentConfig
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.models.dynamics.shortcut import ShortcutConfig
from reverie.nn.heads import HeadConfig
from reverie.world import features, prefill

KEY = jax.random.key(0)


def test_heads_convolve_over_the_grid_of_any_world_whose_tokens_have_one():
    """Agent tokens have none, nor have latents without positions: that is an error in one line."""
    heads = AgentConfig(head=HeadConfig(width=8, depth=1, convolutions=1, channels=4), ahead=1)
    world = tiny_world(MaskGITConfig)
    agent = heads.make(world, nnx.Rngs(0))
    assert agent.policy.grid == world.tokenizer.grid == (2, 2) and len(agent.reward.convolutions) == 1
    world.tokenizer.grid = (1, 4)  # that of Dreamer 4's tokenizer: its latents have no position in the picture
    for agents, of in ((0, world), (2, tiny_world(ShortcutConfig))):
        with pytest.raises(ReverieError, match="need a grid of tokens.*let head.convolutions be 0"):
            replace(heads, tokens=agents).make(of, nnx.Rngs(0))


def test_heads_may_read_what_maskgit_reads():
    """Embeddings of the tokens of a frame and of the one before, in clips and in imagination alike."""
    heads, world = AgentConfig(head=HeadConfig(width=8, depth=1), inputs=True), tiny_world(MaskGITConfig)
    agent = heads.make(world, nnx.Rngs(0))
    dynamics, (latents, actions) = world.dynamics, clip(2, 3, of=MaskGITConfig)

    @jax.jit
    def read(latents, actions):
        state, _ = prefill(dynamics, latents, actions, state=agent.empty(2))
        return features(dynamics, latents, actions, agent.empty(2)), dynamics.imagine(state, actions[:, 0], KEY)

    found, (_, generated, h) = read(latents, actions)
    tables = np.asarray(dynamics.embed[...]), np.asarray((dynamics.before or dynamics.embed)[...])
    for got, now, before in ((found[:, 2], latents[:, 2], latents[:, 1]), (h, generated, latents[:, 2])):
        np.testing.assert_array_equal(got, np.concatenate([tables[0][now], tables[1][before]], -1))
    assert agent.policy.features == (4, 2 * tables[0].shape[1])
    with pytest.raises(ReverieError, match="let inputs be False"):
        heads.make(tiny_world(ShortcutConfig), nnx.Rngs(0))
