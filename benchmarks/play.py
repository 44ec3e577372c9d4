"""Playing: a frame with a KV cache against one without, and from key to pixel at the size of the demo.

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

from benchmarks.timing import PEAK, Figure, interleaved, matmul, milliseconds, ratio
from reverie.actions import ActionSpace
from reverie.models.dynamics.causal import CausalConfig
from reverie.models.dynamics.diffusion import DiffusionConfig
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.models.dynamics.shortcut import ShortcutConfig
from reverie.nn.compiled import compiled
from reverie.nn.transformer import TransformerConfig, unstack_layers
from reverie.presets import preset
from reverie.presets.recipe import Recipe
from reverie.training import flops
from reverie.world import Session, WorldConfig, WorldModel, rollout

CONTEXT = 16  # frames
NET = TransformerConfig(width=256, depth=4, heads=4, window=CONTEXT)
ACTIONS = ActionSpace("discrete", 6)
SMALL = MaskGITConfig(grid=(4, 4), actions=ACTIONS, transformer=NET, passes=25)
LARGE = replace(SMALL, grid=(16, 16), passes=10)
OTHERS = {  # without a KV cache, a causal frame runs the whole context for each token
    "causal": (CausalConfig, [(4, 4), (8, 8)]),
    "diffusion": (DiffusionConfig, [(4, 4), (8, 8), (16, 16)]),
    "shortcut": (ShortcutConfig, [(4, 4), (8, 8), (16, 16)]),
}


class Sides:
    """The same dynamics generating one frame after ``context`` others in two ways; the first frames are equal.

    "cached" continues from its KV cache, donated as in play; "uncached" runs context and new frame in every pass.
    """

    def __init__(self, config: Any, context: int = CONTEXT):
        dynamics, key = unstack_layers(config.make(nnx.Rngs(0))), jax.random.key(0)
        self.tokens = dynamics.transformer.tokens
        latents, actions = clip(config, dynamics.tokens, 1, context)
        with_cache = compiled(dynamics, lambda model, *inputs: model.imagine(*inputs)[:2], (0,), few_rows=True)
        without = compiled(dynamics, lambda model, *inputs: model.imagine_uncached(*inputs))
        self._cache = compiled(dynamics, taken_in)(latents, actions)
        programs = {
            "cached": with_cache.traced(self._cache, actions[:, -1], key),
            "uncached": without.traced(latents, actions, key),
        }
        self.gflop = {name: flops.count(program) / 1e9 for name, program in programs.items()}

        def cached() -> Array:
            self._cache, frame = with_cache(self._cache, actions[:, -1], key)
            return frame

        self.calls: dict[str, Callable[[], Array]] = {
            "uncached": lambda: without(latents, actions, key),
            "cached": cached,
        }


def clip(config: Any, tokens: int, rows: int, context: int) -> tuple[Array, Array]:
    """Return random latents (rows, context, N[, L]) and actions, one more than frames."""
    shape, key = (rows, context, tokens), jax.random.key(0)
    if hasattr(config, "codes"):
        latents = jax.random.randint(key, shape, 0, config.codes)
    else:
        latents = jax.random.normal(key, (*shape, config.width))
    return latents, jnp.zeros((rows, context + 1), jnp.int32)


def taken_in(dynamics: Any, latents: Array, actions: Array) -> Any:
    """Return the state of the dynamics after a clip."""

    def observe(t: Array, state):
        return dynamics.observe(state, latents[:, t], actions[:, t])[0]

    return jax.lax.fori_loop(0, latents.shape[1], observe, dynamics.empty(len(latents)))


def caching(
    config: Any, seconds: float, context: int = CONTEXT, family: str = "", peak: int = PEAK
) -> Iterator[Figure]:
    """Yield ms per generated frame with KV cache and without, the ratio, and the shares of a large matmul's rate."""
    sides, net = Sides(config, context), config.transformer
    named = f"{family}{sides.tokens}"
    times = interleaved({**sides.calls, "matmul": matmul(peak)}, seconds=seconds, least=3)
    rate = 2 * peak**3 / 1e9 / times["matmul"]
    about = {
        "tokens": sides.tokens,
        "context": context,
        "passes": getattr(config, "passes", sides.tokens),
        "width": net.width,
        "depth": net.depth,
    }
    top, names = f"matmul_peak_{named}", {side: f"play_{side}_{named}" for side in sides.calls}
    yield Figure(top, float(np.median(rate)), "GFLOP/s", config={"side": peak})
    for side, name in names.items():
        gflop = sides.gflop[side]
        yield Figure(name, milliseconds(times[side]), "ms/frame", config=about | {"gflop": round(gflop, 3)})
        share = float(np.median(gflop / times[side] / rate))
        yield Figure(f"{name}_share_of_peak", share, "of 1", (name, top), about)
    gain = ratio(times["uncached"], times["cached"])
    yield Figure(f"play_cached_vs_uncached_{named}", gain, "x", (names["uncached"], names["cached"]), about)


def imagining(name: str, config: Any, seconds: float, rows: int = 16, length: int = 16) -> Iterator[Figure]:
    """Yield how much faster ``rows`` rollouts are in one program than frame by frame; ``name`` them.

    Frame by frame in a Python loop: compiled with a KV cache; by ``nnx.jit``, the obvious first version; and without
    a cache, every frame run over a context as long as the rollout.
    """
    dynamics, key = unstack_layers(config.make(nnx.Rngs(0))), jax.random.key(0)
    latents, actions = clip(config, dynamics.tokens, rows, length)
    begun = compiled(dynamics, taken_in)(latents, actions)
    whole = compiled(dynamics, lambda model, state, acts: rollout(model, state, None, acts, key, length)[1].latents)
    frame = compiled(dynamics, lambda model, *inputs: model.imagine(*inputs)[:2])
    plain = nnx.jit(lambda model, *inputs: model.imagine(*inputs)[:2])
    without = compiled(dynamics, lambda model, *inputs: model.imagine_uncached(*inputs))

    def looped(step: Callable) -> Array:
        state, last = begun, latents[:, -1]
        for t in range(length):
            state, last = step(state, actions[:, t], jax.random.fold_in(key, t))
        return last

    times = interleaved(
        {
            "rollout": lambda: whole(begun, actions[:, 1:]),
            "loop": lambda: looped(frame),
            "nnx_loop": lambda: looped(lambda *inputs: plain(dynamics, *inputs)),
            "loop_without_memory": lambda: looped(lambda state, _, key: (state, without(latents, actions, key))),
        },
        seconds=seconds,
        least=3,
    )
    about = {"of": name, "rows": rows, "length": length}
    for side, taken in times.items():
        yield Figure(f"imagine_{side}_{name}", milliseconds(taken) / length, "ms/frame", config=about)
        if side != "rollout":
            pair = (f"imagine_{side}_{name}", f"imagine_rollout_{name}")
            yield Figure(f"imagine_rollout_vs_{side}_{name}", ratio(taken, times["rollout"]), "x", pair, about)


def untrained(recipe: Recipe) -> WorldModel:
    """Return the world of a recipe with recorded actions and random weights; its frames are noise, at full speed."""
    spec = recipe.source.spec()
    eyes: Any = recipe.tokenizer.objective
    objective: Any = recipe.dynamics.objective
    tokenizer = replace(eyes.tokenizer, frame=spec.frame).make(nnx.Rngs(0))
    dynamics = objective.dynamics.fitted(tokenizer, spec.actions).make(nnx.Rngs(1))
    config = WorldConfig(frame=spec.frame, actions=spec.actions, context=objective.context, fps=spec.fps)
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
    yield from caching(SMALL, seconds)
    yield from caching(LARGE, 2 * seconds)
    for family, (other, grids) in OTHERS.items():
        for grid in grids:
            config = other(grid=grid, actions=ACTIONS, transformer=NET)
            yield from caching(config, seconds, family=f"{family}_")
    yield from imagining("toy-shortcut", untrained(preset("toy-shortcut")).dynamics.config, seconds)
