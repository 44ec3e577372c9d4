"""Actions for steps that were recorded without any, inferred by a world that learned from the others.

From the recorded frames before a step, the world generates the next frame along every action. The action whose frame
is nearest to the recorded one is taken. VPT (arXiv 2206.11795) trains a network of its own for this, an inverse
dynamics model. A world that follows its actions is one already. Where several actions lead to the same frame, any of
them may be named: in the game they are the same.

Shapes: E episodes at once, A actions, T frames, H W C image.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from reverie.data.copying import Store, codec_for, made_already, made_of, notes_of, write_new
from reverie.data.episode import CHUNK
from reverie.data.filling import About
from reverie.data.splits import labelled
from reverie.errors import ReverieError
from reverie.nn.compiled import compiled
from reverie.training.log import QUIET
from reverie.training.tokens import digest_of, padded
from reverie.world import WorldKVCache, WorldModel, passes_of, with_passes

ROWS = 256  # frames that are generated at once: one for each episode and action
FRAMES = CHUNK  # frames of a chunk
PASSES = 2  # in which a frame is sampled: with 1, 2, 4 and 8, 94 % of the actions were right on the platformer
MOST = 64  # actions that are tried
CHECKED = 64  # episodes whose recorded actions are compared with the inferred ones


class Found(NamedTuple):
    """How often inferred actions are the recorded ones.

    ``chance``: of the most frequent recorded action. ``held_out``: whether the steps were held out.
    """

    steps: int
    right: float
    chance: float
    held_out: bool


class Labeller:
    """Infers the actions between frames. ReverieError unless the world has at most ``MOST`` recorded actions."""

    def __init__(self, world: WorldModel):
        space = world.config.actions
        if world.lam is not None or space.kind in ("none", "latent"):
            raise ReverieError("this world has no recorded actions, so it cannot say which one led to a frame.")
        if space.kind == "continuous" or space.count > MOST:
            raise ReverieError(
                f"this world has {'continuous' if space.kind == 'continuous' else space.count} actions; only up to "
                f"{MOST} different ones can be tried at each step."
            )
        world = with_passes(world, min(PASSES, passes_of(world) or 0))
        self._world, self._lead = world, world.tokenizer.receptive_field
        self._tried = space.nth(np.arange(space.count))
        self._together = max(1, ROWS // len(self._tried))
        self._encode = compiled(world, lambda world, frames: world.encode(frames))
        self._follow = compiled(world, self._followed, donate=(0,))

    def actions(self, dataset: Any, episodes: Sequence[int], known: bool = True) -> list[np.ndarray]:
        """Return the actions (T, ...) of episodes, the unlabelled ones inferred; all of them, unless ``known``."""
        order, found, began = sorted(episodes, key=lambda each: int(dataset.lengths[each])), {}, time.monotonic()
        together = max(1, min(self._together, len(order)))
        for first in range(0, len(order), together):
            if time.monotonic() - began > QUIET:
                print(f"actions inferred: {first / len(order):.0%}", file=sys.stderr, flush=True)
                began = time.monotonic()
            group = order[first : first + together]
            rows = group + group[:1] * (together - len(group))  # one shape, one program
            for episode, inferred in zip(group, self._group(dataset, rows, known), strict=False):
                found[episode] = inferred
        return [found[each] for each in episodes]

    def _group(self, dataset: Any, rows: list[int], known: bool) -> list[np.ndarray]:
        space, length = self._world.config.actions, max(int(dataset.lengths[each]) for each in rows)
        cache, done, parts = self._world.empty(len(rows)), 0, []
        while done < length:
            start = max(0, done - self._lead)
            stop = start + self._lead + FRAMES
            windows = [_window(dataset, each, start, stop) for each in rows]
            frames, actions = (np.stack([each[name] for each in windows]) for name in ("frames", "actions"))
            asks = space.is_unlabelled(actions) if known else ~space.is_start(actions)
            kept = slice(done - start, None)
            latents = self._encode(frames)[:, kept]
            cache, inferred = self._follow(cache, latents, actions[:, kept], asks[:, kept])
            parts.append(np.asarray(inferred))
            done = stop
        found = np.concatenate(parts, axis=1)
        return [found[row, : dataset.lengths[each]] for row, each in enumerate(rows)]

    def _followed(
        self, world: WorldModel, cache: WorldKVCache, latents_ET: Array, actions_ET: Array, asks_ET: Array
    ) -> tuple[WorldKVCache, Array]:
        """Take in recorded frames, each after the action that was recorded, or inferred where ``asks``."""
        tried_A = jnp.asarray(self._tried)

        def step(cache, frame):
            latents_E, actions_E, asks_E = frame

            def made(action: Array) -> Array:
                same_E = jnp.broadcast_to(action, (len(latents_E), *action.shape))
                return world.imagine(cache, same_E, jax.random.key(0), 0.0)[1]

            decoder, real_EHWC = world.tokenizer.decode_frame(cache.decoder, latents_E)
            error_AE = jnp.square(jax.vmap(made)(tried_A) - real_EHWC[None]).mean((2, 3, 4))
            best_E = tried_A[error_AE.argmin(0)]
            taken_E = jnp.where(asks_E.reshape(-1, *[1] * (best_E.ndim - 1)), best_E, actions_E)
            state, _ = world.dynamics.observe(cache.dynamics, latents_E, taken_E)
            return WorldKVCache(state, decoder), taken_E

        time_first = tuple(jnp.swapaxes(each, 0, 1) for each in (latents_ET, actions_ET, asks_ET))
        cache, taken = jax.lax.scan(step, cache, time_first)
        return cache, jnp.swapaxes(taken, 0, 1)


def label(store: Store, world: WorldModel, out: Path, codec: str) -> str:
    """Write a copy of a store whose unlabelled steps have the actions that a world infers, and say how good these are.

    They are checked against recorded actions, of held-out episodes if there are any.
    """
    labeller, space, chosen = Labeller(world), world.config.actions, list(store.episodes())
    if store.any.spec.actions != space or store.any.spec.frame != world.config.frame:
        raise ReverieError(f"the world has other frames or actions than '{store.path}': train one on that store.")
    how = f"actions inferred by the world {digest_of(world, ('tokenizer', 'dynamics'))}"
    about = About(store.any.licence, made_of(how, [store]), codec=codec_for(codec, [store]))
    if there := made_already(out, [one.entry for one in chosen], about):  # before minutes of work
        return there
    recorded = [one.dataset.read(one.episode, 0, one.entry.length, ("actions",))["actions"] for one in chosen]
    lacks = [bool(space.is_unlabelled(actions).any()) for actions in recorded]
    if not any(lacks):
        raise ReverieError(f"all actions of '{store.path}' are recorded: there is nothing to infer.")
    found = _checked(labeller, store)
    count = sum(int(space.is_unlabelled(actions).sum()) for actions in recorded)
    said = f"the actions of {count} steps were inferred by a world"
    if found.steps:
        which = "held-out" if found.held_out else "training"
        said += f"; it is right in {found.right:.0%} of {found.steps} recorded {which} steps"
        said += f" (most frequent: {found.chance:.0%})"
    inferred: dict[tuple[str, int], np.ndarray] = {}
    for split, dataset in store.splits.items():
        numbers = [one.episode for one, lack in zip(chosen, lacks, strict=True) if lack and one.entry.split == split]
        named = labeller.actions(dataset, numbers)
        inferred |= {(split, number): actions for number, actions in zip(numbers, named, strict=True)}
    kept = [(one, inferred.get((one.entry.split, one.episode))) for one in chosen]
    entries = [one.entry if actions is None else one.with_actions(actions).entry for one, actions in kept]
    about = replace(about, notes=[*notes_of([store]), said])
    return f"{write_new(out, store.any.spec, entries, about)}\n{said}"


def _checked(labeller: Labeller, store: Store) -> Found:
    """Compare inferred actions with recorded ones: of held-out episodes, or of others if no held-out one has any."""
    parts = sorted(store.splits.items(), key=lambda part: part[0] != "val")
    known = ((split, dataset, np.flatnonzero(labelled(dataset))[:CHECKED].tolist()) for split, dataset in parts)
    split, dataset, episodes = next((part for part in known if part[2]), ("", store.any, []))
    space, real, made = dataset.spec.actions, [], []
    for episode, inferred in zip(episodes, labeller.actions(dataset, episodes, known=False), strict=True):
        actions = dataset.read(episode, 0, len(inferred), ("actions",))["actions"]
        played = space.is_action(actions)
        real.append(actions[played])
        made.append(inferred[played])
    if not episodes:
        return Found(0, 0.0, 0.0, False)
    real, made = np.concatenate(real), np.concatenate(made)
    right = (real == made).reshape(len(real), -1).all(1).mean()
    most = np.unique(real, axis=0, return_counts=True)[1].max()
    return Found(len(real), float(right), float(most / len(real)), split == "val")


def _window(dataset: Any, episode: int, start: int, stop: int) -> dict[str, np.ndarray]:
    """Return frames and actions from ``start`` to ``stop``; behind an episode's end its last frame is repeated."""
    length = int(dataset.lengths[episode])
    at = min(start, length - 1)
    found = dataset.read(episode, at, min(stop, length) - at, ("frames", "actions"))
    return {name: padded(each, stop - start) for name, each in found.items()}
