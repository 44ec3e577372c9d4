"""Agent tokens: nothing else reads them, the world does as before, and they learn where the world does not."""

from dataclasses import dataclass, replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import tiny
from contracts.tiny import clip, state, watch
from exact_square import run
from flax import nnx

from reverie import config
from reverie.data.arrays import ArrayDataset
from reverie.data.episode import Episode, Spec
from reverie.errors import ReverieError
from reverie.models.agent import Agent, AgentConfig
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.models.dynamics.shortcut import ShortcutConfig
from reverie.nn.heads import HeadConfig
from reverie.training.agents import BehaviourObjective, ImaginationObjective
from reverie.training.blueprint import Blueprint
from reverie.training.checkpoint import load
from reverie.training.engine import fit
from reverie.world import rollout

config.packages.add(__name__)
HEADS = AgentConfig(head=HeadConfig(width=8, depth=1), ahead=2, tokens=3)
KEY = jax.random.key(0)


@cache
def original():
    """A world that is made when the first test needs it: two seconds, and every worker imports this file."""
    made = tiny.world(ShortcutConfig)
    made.dynamics.config = replace(made.dynamics.config, passes=1)  # less to compile
    return made


def world():
    """A copy of the same world."""
    return nnx.merge(*nnx.split(original()))


@pytest.fixture(scope="module")
def agent() -> Agent:
    return HEADS.make(world(), nnx.Rngs(0))


def test_a_world_with_agent_tokens_generates_the_same_frames_bit_for_bit(agent):
    latents, actions = clip(2, 6, of=ShortcutConfig)

    def generate(dynamics):
        return jax.jit(lambda x, a: rollout(dynamics, watch(dynamics, x, a)[0], None, a, KEY, 4))(latents, actions)

    (_, found), (_, expected) = generate(agent.world.dynamics), generate(original().dynamics)
    assert np.array_equal(found.latents, expected.latents) and np.asarray(found.latents).std() > 0.1
    assert found.h.shape == (4, 2, 3, 16) and expected.h.shape == (4, 2, 4, 16)


def test_nothing_but_agent_tokens_depends_on_agent_tokens(agent):
    """Gradients of all other outputs with respect to them are exactly 0, theirs are not; and they read the past."""
    latents, actions = clip(2, 5, of=ShortcutConfig)
    graph, weights = nnx.split(agent.world.dynamics)

    def outputs(tokens, latents):
        dynamics = nnx.merge(graph, jax.tree.map(jnp.asarray, weights))  # variables of this trace
        dynamics.agents.tokens[...] = tokens
        now, h = watch(dynamics, latents, actions)
        now, generated, _ = dynamics.imagine(now, actions[:, 0], KEY)
        others = jax.tree.map(lambda x: x.astype(jnp.float32), (now._replace(agents=None), generated))
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(others)), jnp.sum(jnp.sin(h[-1]))

    tokens = agent.tokens.tokens[...]
    others, own = jax.jit(jax.jacrev(outputs, argnums=(0, 1)))(tokens, latents)
    assert not np.asarray(others[0]).any() and np.asarray(others[1]).any()
    assert (np.abs(own[0]).sum(-1) > 0).all()
    # Every token of the frames in the window, of which the cache holds the last two.
    assert (np.abs(own[1]).sum((0, -1))[-3:] > 0).all()


@dataclass(frozen=True, kw_only=True)
class TinyBehaviour(BehaviourObjective):
    """Cloning in a world that no run has trained."""

    agent: AgentConfig = HEADS

    def init(self, rngs, spec, folder):
        return self.agent.make(world(), rngs)


def test_agent_tokens_learn_with_the_heads_and_stay_as_they_are_in_imagination(tmp_path):
    rng, space = np.random.default_rng(0), tiny.ACTIONS
    frames, actions = tiny.frames(4, 6), rng.integers(0, 3, (4, 6)).astype(np.int32)
    actions[:, 0] = space.start()
    spec, reward = Spec(tiny.FRAME, space, 10.0, "noise"), rng.normal(size=(4, 6)).astype(np.float32)
    episodes = [Episode(*each, np.zeros(6, bool)) for each in zip(frames, actions, reward, strict=True)]
    data = ArrayDataset.from_episodes(spec, episodes)
    fit(run(TinyBehaviour(), steps=2, batch=2, length=4), tmp_path / "agent", dataset=data, progress=False)
    cloned, new = load(tmp_path / "agent"), HEADS.make(world(), nnx.Rngs(0))
    assert cloned.tokens is cloned.world.dynamics.agents
    assert not np.allclose(cloned.tokens.tokens[...], new.tokens.tokens[...], atol=1e-5)
    worlds = [state(each.world) for each in (cloned, new)]
    assert all(np.array_equal(worlds[0][name], worlds[1][name]) for name in worlds[0] if ".agents." not in f".{name}")
    imagined = Blueprint(ImaginationObjective(), spec, 0, tmp_path / "policy").parts
    assert "world.dynamics.agents.tokens" in imagined["frozen"] and not any(
        "token" in name for name in imagined["params"]
    )


def test_where_agent_tokens_cannot_be_is_said():
    with pytest.raises(ReverieError, match="have no agent tokens"):
        HEADS.make(tiny.world(MaskGITConfig), nnx.Rngs(0))
    with pytest.raises(ValueError, match="at most the 4 tokens"):
        replace(HEADS, tokens=5).make(world(), nnx.Rngs(0))
