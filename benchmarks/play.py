"""Playing: a frame with memory against one without, and from key to pixel at the size of the demo.

Shapes: B batch (one player), T frames of context, N tokens per frame.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from benchmarks.timing import Figure, interleaved, milliseconds, ratio
from reverie.actions import ActionSpace
from reverie.models.dynamics.causal import CausalConfig
from reverie.models.dynamics.diffusion import DiffusionConfig
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.models.dynamics.shortcut import ShortcutConfig
from reverie.nn.compiled import compiled
from reverie.nn.transformer import TransformerConfig
from reverie.presets import preset
from reverie.presets.recipe import Recipe
from reverie.world import Session, WorldConfig, WorldModel

CONTEXT = 16  # frames
NET = TransformerConfig(width=256, depth=4, heads=4, window=CONTEXT)
ACTIONS = ActionSpace("discrete", 6)
SMALL = MaskGITConfig(grid=(4, 4), actions=ACTIONS, transformer=NET, passes=25)
LARGE = replace(SMALL, grid=(16, 16), passes=10)
OTHERS = {"causal": CausalConfig, "diffusion": DiffusionConfig, "shortcut": ShortcutConfig}


def sides(config: Any, context: int = CONTEXT) -> dict[str, Callable[[], Array]]:
    """Return the same dynamics dreaming one frame after ``context`` others in two ways; the first time, the same frame.

    "cached" goes on from its memory, donated as a player's is; "uncached" runs context and new frame in every pass.
    """
    dynamics = config.make(nnx.Rngs(0))
    key = jax.random.key(0)
    shape = (1, context, dynamics.tokens)
    vectors = hasattr(config, "width")
    latents = (
        jax.random.normal(key, (*shape, config.width)) if vectors else jax.random.randint(key, shape, 0, config.codes)
    )
    actions = jnp.zeros((1, context + 1), jnp.int32)

    def take_in(dynamics: Any, latents: Array, actions: Array):
        def observe(t: Array, memory):
            return dynamics.observe(memory, latents[:, t], actions[:, t])[0]

        return jax.lax.fori_loop(0, context, observe, dynamics.empty(1))

    with_memory = compiled(dynamics, lambda model, *inputs: model.imagine(*inputs)[:2], donate=(0,))
    without = compiled(dynamics, lambda model, *inputs: model.imagine_uncached(*inputs))
    memory = compiled(dynamics, take_in)(latents, actions)

    def cached() -> Array:
        nonlocal memory
        memory, frame = with_memory(memory, actions[:, -1], key)
        return frame

    return {"uncached": lambda: without(latents, actions, key), "cached": cached}


def remembering(config: Any, seconds: float, context: int = CONTEXT, family: str = "") -> Iterator[Figure]:
    """Yield ms per dreamed frame with and without memory, and their ratio."""
    net, tokens = config.transformer, config.make(nnx.Rngs(0)).transformer.tokens
    named = f"{family}{tokens}"
    times = interleaved(sides(config, context), seconds=seconds, least=3)
    about = {
        "tokens": tokens,
        "context": context,
        "passes": getattr(config, "passes", tokens),
        "width": net.width,
        "depth": net.depth,
    }
    names = {side: f"play_{side}_{named}" for side in times}
    for side, name in names.items():
        yield Figure(name, milliseconds(times[side]), "ms/frame", config=about)
    gain = ratio(times["uncached"], times["cached"])
    yield Figure(f"play_cached_vs_uncached_{named}", gain, "x", (names["uncached"], names["cached"]), about)


def untrained(recipe: Recipe) -> WorldModel:
    """Return the world of a recipe with recorded actions, its weights random: it dreams noise, as fast as sense."""
    spec = recipe.source.spec()
    eyes: Any = recipe.tokenizer.objective
    objective: Any = recipe.dynamics.objective
    tokenizer = replace(eyes.tokenizer, frame=spec.frame).make(nnx.Rngs(0))
    dynamics = objective.dynamics.fitted(tokenizer, spec.actions).make(nnx.Rngs(1))
    config = WorldConfig(spec.frame, spec.actions, objective.context, spec.fps)
    return WorldModel(config, tokenizer, None, dynamics)


def demo(name: str = "toy-maskgit", frames: int = 300) -> Iterator[Figure]:
    """Yield frames a second, and the 95th percentile of ms from an action to its picture on the host."""
    session = Session(untrained(preset(name)))
    session.reset(np.zeros((1, *session.world.config.frame), np.uint8))
    programs = session.compilations
    actions = np.random.default_rng(0).integers(0, session.actions.size, frames + 1)
    steps = iter(actions.tolist())
    taken = interleaved({"step": lambda: session.step(next(steps))}, seconds=0, least=frames)["step"]
    if session.compilations != programs:
        raise RuntimeError("playing compiled something: a player would have seen the picture stand still")
    dynamics: Any = session.world.dynamics
    net, frame = dynamics.config.transformer, list(session.world.config.frame)
    about = {"preset": name, "frame": frame, "tokens": dynamics.tokens, "window": net.window}
    about |= {"width": net.width, "depth": net.depth, "passes": dynamics.config.passes}
    yield Figure("demo_frame_rate", 1e3 / milliseconds(taken), "frames/s", config=about)
    yield Figure("demo_frame_p95", float(np.percentile(taken, 95)) * 1e3, "ms", config=about)


def measure(seconds: float = 10.0) -> Iterator[Figure]:
    """Yield all figures of play."""
    yield from demo()
    yield from remembering(SMALL, seconds)
    yield from remembering(LARGE, 2 * seconds)
    for family, other in OTHERS.items():
        yield from remembering(other(grid=(4, 4), actions=ACTIONS, transformer=NET), seconds, family=f"{family}_")
