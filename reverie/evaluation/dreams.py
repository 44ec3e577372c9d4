"""A world made ready for evaluation: everything it is asked to do on clips, compiled once per shape, in batches.

Two dreams asked for with the same frames and other actions see the same noise: what differs between them is due to
the actions alone, and a world that ignores its actions dreams the same bits twice.

Legend: B clips, T time, H W C image, A actions, N tokens per frame.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from reverie.nn.compiled import compiled
from reverie.nn.embed import random_actions
from reverie.nn.patch import to_uint8
from reverie.nn.transformer import apart
from reverie.training import flops
from reverie.world import Session, WorldModel, rollout

BATCH = 16  # clips at once: fills two cores already, fits in memory, and little is wasted on a batch filled up
REPORTED = 8  # clips at once in the dynamics' own report: the logits of all frames together are large
TIMED_SECONDS, TIMED_FRAMES, WARM_UP = 2.0, (10, 200), 3  # a player's frames are timed so long, at least and at most


@dataclass(frozen=True)
class Clips:
    """The held-out clips, and what the world itself makes of them."""

    frames: np.ndarray  # (B, T, H, W, C) uint8
    recorded: np.ndarray  # (B, T) actions of the dataset
    actions: np.ndarray  # (B, T) actions that the world obeys
    context: int

    @property
    def seen(self) -> np.ndarray:
        return self.frames[:, : self.context]

    @property
    def truth(self) -> np.ndarray:
        return self.frames[:, self.context :]


class Dreams:
    """What a world does with clips, uint8 (B, T, H, W, C), any number of them; numpy in, numpy out."""

    def __init__(self, world: WorldModel, *, batch: int = BATCH, seed: int = 0, temperature: float = 1.0):
        self.batch, self.seed, self.space = batch, seed, world.config.actions
        world = apart(world)  # once, for all of these
        self._actions = compiled(world, lambda world, frames, actions, key: world.actions_of(frames, actions))
        self._reconstruct = compiled(world, _reconstruct)
        self._dream = compiled(world, partial(_dream, temperature))
        self._branch = compiled(world, partial(_branch, temperature))
        self._report = compiled(world, _report)
        self._losses = compiled(world, _losses)

    def actions(self, frames_BTHWC: np.ndarray, recorded_BT: np.ndarray) -> np.ndarray:
        """Return the actions that the world obeys, (B, T): the recorded ones, or inferred codes."""
        return self._batched(self._actions, frames_BTHWC, recorded_BT)

    def reconstruct(self, frames_BTHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the frames' latents and what the tokenizer makes of them, decoded frame by frame as in play."""
        return self._batched(self._reconstruct, frames_BTHWC)

    def dream(self, seen_BTHWC: np.ndarray, actions_BT: np.ndarray) -> np.ndarray:
        """Return the dream after the frames seen, along the rest of ``actions``, which begin with those of ``seen``."""
        return self._batched(self._dream, seen_BTHWC, actions_BT)

    def branch(self, seen_BTHWC: np.ndarray, actions_BT: np.ndarray, next_BA: np.ndarray) -> np.ndarray:
        """Return one dreamed next frame for each of several actions after the same frames, (B, A, H, W, C)."""
        return self._batched(self._branch, seen_BTHWC, actions_BT, next_BA)

    def report(self, latents_BTN: np.ndarray, actions_BT: np.ndarray) -> dict[str, float]:
        """Return the scalars of the dynamics' own report, mean over groups of clips (whole groups only)."""
        size = min(REPORTED, len(latents_BTN))
        groups = [slice(start, start + size) for start in range(0, len(latents_BTN) - size + 1, size)]
        found = [self._report(latents_BTN[group], actions_BT[group], self._key(group.start)) for group in groups]
        return {name: float(np.mean([np.asarray(part[name]) for part in found])) for name in found[0]}

    def losses(self, latents_BTN: np.ndarray, actions_BT: np.ndarray, others_BT: np.ndarray) -> np.ndarray:
        """Return the dynamics' own loss of each clip along ``actions`` and along ``others``, (B, 2), by one noise."""
        return self._batched(self._losses, latents_BTN, actions_BT, others_BT)

    def _key(self, index: int) -> Array:
        return jax.random.fold_in(jax.random.key(self.seed), index)

    def _batched(self, function: Callable, *arrays: np.ndarray) -> Any:
        """Run over all clips in batches of one size; the last is filled up with its last clip, and cut again."""
        parts = []
        for index, start in enumerate(range(0, len(arrays[0]), self.batch)):
            given = [array[start : start + self.batch] for array in arrays]
            count = len(given[0])
            fill = np.minimum(np.arange(self.batch), count - 1)
            made = function(*(array[fill] for array in given), self._key(index))
            parts.append(jax.tree.map(lambda x, count=count: np.asarray(x)[:count], made))
        return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


def even_batch(clips: int) -> int:
    """Return the size of as few batches as ``clips`` need, all alike, so that little is wasted on the last."""
    return -(-clips // -(-clips // BATCH))


def played(world: WorldModel, seen_THWC: np.ndarray, actions_T: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return the seconds that each of many frames of one player took, decoded and copied to the host."""
    session = Session(world, seed=seed)
    session.reset(seen_THWC, actions_T)
    space = world.config.actions
    actions = np.asarray(random_actions(space, jax.random.key(seed), (TIMED_FRAMES[1] + WARM_UP,)))
    return _timed(lambda i: session.step(actions[i] if space.size else 0))


def played_uncached(world: WorldModel, seen_THWC: np.ndarray, actions_T: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return the seconds that a frame takes the same model and sampler when they remember nothing between frames.

    Every refinement pass runs all frames of the context, and so does the decoder; their latents are kept.
    """
    step = compiled(world, _uncached)
    begin = compiled(world, lambda world, *given: (world.encode(given[0]), world.actions_of(*given)))
    latents, actions = begin(seen_THWC[None], jnp.asarray(actions_T)[None])
    actions = jnp.concatenate([actions, jnp.asarray(world.config.actions.nth([0]))[None]], axis=1)

    def frame(i):
        nonlocal latents
        latents, picture = step(latents, actions, jax.random.fold_in(jax.random.key(seed), i))
        return np.asarray(picture)

    return _timed(frame)


def cost(world: WorldModel) -> dict[str, int]:
    """Return the dynamics' "parameters", and "flop_per_frame" of a played frame: remembering, decoded, one player."""
    frame = compiled(world, lambda world, memory, actions, key: world.imagine(memory, actions, key, jnp.float32(0)))
    program = frame.traced(world.empty(1), jnp.asarray(world.config.actions.nth([0])), jax.random.key(0))
    weights = jax.tree.leaves(nnx.state(world.dynamics, nnx.Param))
    return {"parameters": sum(leaf.size for leaf in weights), "flop_per_frame": int(flops.count(program))}


def _timed(frame: Callable[[int], np.ndarray]) -> np.ndarray:
    for i in range(WARM_UP):
        frame(i)
    seconds, (least, most) = [], TIMED_FRAMES
    while len(seconds) < least or (len(seconds) < most and sum(seconds) < TIMED_SECONDS):
        start = time.perf_counter()
        frame(WARM_UP + len(seconds))
        seconds.append(time.perf_counter() - start)
    return np.array(seconds)


def _reconstruct(world: WorldModel, frames_BTHWC: Array, key: Array) -> tuple[Array, Array]:
    latents = world.encode(frames_BTHWC)
    return latents, _decoded(world, world.tokenizer.empty(len(frames_BTHWC)), jnp.moveaxis(latents, 1, 0))


def _dream(temperature: float, world: WorldModel, seen_BTHWC: Array, actions_BT: Array, key: Array) -> Array:
    count, length = seen_BTHWC.shape[1], actions_BT.shape[1]
    memory = world.prefill(seen_BTHWC, actions_BT[:, :count])
    _, steps = rollout(world.dynamics, memory.dynamics, None, actions_BT[:, count:], key, length - count, temperature)
    return _decoded(world, memory.decoder, steps.latents)


def _branch(
    temperature: float, world: WorldModel, seen_BTHWC: Array, actions_BT: Array, next_BA: Array, key: Array
) -> Array:
    memory = world.prefill(seen_BTHWC, actions_BT)
    frames = jax.lax.map(
        lambda actions_B: to_uint8(world.imagine(memory, actions_B, key, temperature)[1]), jnp.swapaxes(next_BA, 0, 1)
    )
    return jnp.moveaxis(frames, 0, 1)


def _report(world: WorldModel, latents_BTN: Array, actions_BT: Array, key: Array) -> dict[str, Array]:
    found = world.dynamics.report(latents_BTN, actions_BT, key)
    return {name: value for name, value in found.items() if value.ndim == 0}


def _losses(world: WorldModel, latents_BTN: Array, actions_BT: Array, others_BT: Array, key: Array) -> Array:
    def of_clip(clip):  # one by one: what a model does to some rows of a batch only, and the mean over it, stay out
        index, latents, *both = clip
        own = jax.random.fold_in(key, index)
        return jnp.stack([world.dynamics.loss(latents[None], actions[None], own)[0] for actions in both])

    return jax.lax.map(of_clip, (jnp.arange(len(latents_BTN)), latents_BTN, actions_BT, others_BT))


def _uncached(world: WorldModel, latents_1TN: Array, actions_1T: Array, key: Array) -> tuple[Array, Array]:
    new = world.dynamics.imagine_uncached(latents_1TN, actions_1T, key)
    latents = jnp.concatenate([latents_1TN, new[:, None]], axis=1)
    return latents[:, 1:], to_uint8(world.tokenizer.decode(latents)[0, -1])


def _decoded(world: WorldModel, memory: Any, latents_TBN: Array) -> Array:
    """Latents, time first -> uint8 frames (B, T, H, W, C), one frame at a time as a player gets them."""

    def step(memory, latents):
        memory, frames = world.tokenizer.decode_frame(memory, latents)
        return memory, to_uint8(frames)

    return jnp.moveaxis(jax.lax.scan(step, memory, latents_TBN)[1], 0, 1)
