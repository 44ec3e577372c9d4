"""An update of a policy in imagination, beside the same update whose rollouts run their whole past for every frame.

Shapes: B batch, T frames so far, N tokens per frame, M width of features.
"""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from benchmarks.play import clip, untrained
from benchmarks.timing import Figure, interleaved, milliseconds, ratio
from benchmarks.training import Side
from reverie import config
from reverie.data.episode import Spec
from reverie.models.agent import Agent
from reverie.nn.embed import from_start
from reverie.nn.flow import denoise
from reverie.nn.kv_cache import previous_frames
from reverie.nn.transformer import TransformerConfig
from reverie.presets import preset
from reverie.presets.recipe import Recipe
from reverie.training.agents import ImaginationObjective

SEGMENT = 4  # frames
HOST = re.compile(r"= .*? (?:infeed|outfeed|send|recv)\(|custom_call_target=\"\w*callback\w*\"")


@dataclass(frozen=True, kw_only=True)
class Imagination(ImaginationObjective):
    """Ours, in an untrained world; every rollout begins with all ``context`` real frames, so that neither side pads."""

    recipe: Any = None

    def init(self, rngs: nnx.Rngs, spec: Spec, folder: Path) -> Agent:
        """Return an untrained agent in an untrained world."""
        heads, world = self.recipe.agent.objective.agent, untrained(self.recipe)
        cloned, again = (heads.make(world, nnx.Rngs(2)) for _ in range(2))
        return self.begun(cloned, again.policy, rngs)

    def real_frames(self, key: Array, most: int) -> int:
        """All."""
        return most


class Recomputed(Imagination):
    """The same update without a KV cache: every pass of every frame runs all frames so far.

    ``SEGMENT`` frames in a row share a loop, so a pass runs up to ``SEGMENT - 1`` frames more than there are. (With
    1, compiling took minutes.) No frame reads those after it.
    """

    def imagine(self, model: Agent, batch: dict[str, Array], key: Array) -> tuple[Array, Array]:
        """See ``ImaginationObjective.imagine``."""
        latents, actions = (batch[name][:, : self.context] for name in ("latents", "actions"))
        actions, dynamics = from_start(actions, model.world.config.actions), model.world.dynamics

        def step(carry, i):
            latents, actions, h = carry
            t, (key_act, key_frame) = self.context + i, jax.random.split(jax.random.fold_in(key, i))
            taken = model.act(h, key_act)
            actions = actions.at[:, t].set(taken)
            latents = latents.at[:, t].set(generate(dynamics, latents, actions, t, key_frame))
            h = run_all(dynamics, dynamics._past(latents), actions, t)
            return (latents, actions, h), (h, taken)

        h = run_all(dynamics, dynamics._past(latents), actions, self.context - 1)
        found = []
        for first in range(0, self.horizon, SEGMENT):
            latents, actions = (
                jnp.pad(x, [(0, 0), (0, SEGMENT)] + [(0, 0)] * (x.ndim - 2)) for x in (latents, actions)
            )
            begun = latents, actions, h if first == 0 else found[-1][0][-1]
            (latents, actions, _), steps = jax.lax.scan(step, begun, jnp.arange(first, first + SEGMENT))
            found.append(steps)
        later, taken = jax.tree.map(lambda *each: jnp.concatenate(each), *found)
        return jax.lax.stop_gradient((jnp.concatenate([h[None], later]), taken))


def generate(dynamics: Any, latents: Array, actions: Array, t: Array, key: Array) -> Array:
    """Return frame t of clips, sampled; frames from t on are not read."""
    finished, passes = dynamics._past(latents), dynamics.config.passes

    def predict(point: Array, level: Array) -> Array:
        label = dynamics._label(level, 1 / passes)
        return dynamics._data(run_all(dynamics, finished.at[:, t].set(point), actions, t, label), point, level)

    return denoise(predict, dynamics._noise(key, len(latents), None), passes)[0]


def run_all(dynamics: Any, frames: Array, actions: Array, t: Array | int, label: Array | None = None) -> Array:
    """Run whole clips of frames with their noise: the features (B, N, M) of frame t. ``label``: of its noise."""
    labels = dynamics._label(jnp.full(frames.shape[:2], dynamics.config.context_level))
    labels = labels if label is None else labels.at[:, t].set(label)
    x = dynamics._embed(frames, labels, actions, previous_frames(frames, 0)[:, :-1])
    return dynamics.transformer(x)[:, t, : dynamics.tokens]


def recipes() -> dict[str, Recipe]:
    """Return what is measured: an agent's preset, and a world that attends to all 24 frames of a rollout.

    (The world of ``toy-agent`` has no attention over time, so no past that anyone would compute again.)
    """
    square = preset("square-agent")
    net = TransformerConfig(width=128, depth=4, heads=4, hidden=512, time_every=2, window=24)
    changes = {"dynamics.objective.dynamics.transformer": net, "policy.objective.passes": 0, "policy.batch": 16}
    return {"long": config.replace(square, **changes), "square": square}


def dynamics_of(recipe: Recipe) -> Any:
    """Return the dynamics of a recipe's world, of which no weight is computed."""
    return nnx.eval_shape(lambda: untrained(recipe).dynamics)


def sides(recipe: Recipe) -> dict[str, Side]:
    """Return our update and the one that recomputes, with the same weights and clips of noise."""
    dynamics, run, spec = dynamics_of(recipe), recipe.policy, recipe.source.spec()
    assert run is not None
    latents, actions = clip(dynamics.config, dynamics.tokens, run.batch, run.length)
    rewards = jax.random.normal(jax.random.key(1), latents.shape[:2])
    batch = {"latents": latents, "actions": actions[:, 1:], "rewards": rewards}
    own = {name: getattr(run.objective, name) for name in ImaginationObjective.__dataclass_fields__}
    ours = Side(Imagination(recipe=recipe, **own), spec, batch)
    return {"imagination": ours, "recomputed": ours.beside(Recomputed(recipe=recipe, **own))}


def waits_for_host(program: str) -> list[str]:
    """Return the lines of a compiled program's text that hand something to the host, or take it from there."""
    return [line.strip() for line in program.splitlines() if HOST.search(line)]


def figures(name: str, recipe: Recipe, seconds: float) -> Iterator[Figure]:
    """Yield ms per update of both sides, the seconds of processor time that they take to compile, and the ratio."""
    both, dynamics = sides(recipe), dynamics_of(recipe)
    run: Any = recipe.policy
    objective = run.objective
    net = dynamics.config.transformer
    about = {"rows": run.batch, "context": objective.context, "horizon": objective.horizon, "tokens": dynamics.tokens}
    about |= {"passes": objective.passes or dynamics.config.passes, "width": net.width, "depth": net.depth}
    about |= {"window": net.window if net.time_every else 1}
    for kind, side in both.items():
        start = time.process_time()
        waiting = waits_for_host(side.compile())
        yield Figure(f"{kind}_compile_{name}", time.process_time() - start, "s", config=about)
        if waiting:
            raise RuntimeError(f"an update waits for the host: {waiting[0]}")
    times = interleaved(both, seconds=seconds)
    for kind, side in both.items():
        config = about | {"gflop": round(side.gflop(), 2)}
        yield Figure(f"{kind}_{name}", milliseconds(times[kind]), "ms/update", config=config)
    pair = (f"imagination_{name}", f"recomputed_{name}")
    yield Figure(
        f"imagination_vs_recomputed_{name}", ratio(times["recomputed"], times["imagination"]), "x", pair, about
    )


def measure(seconds: float = 60.0) -> Iterator[Figure]:
    """Yield the figures of every size."""
    for name, recipe in recipes().items():
        yield from figures(name, recipe, seconds)
