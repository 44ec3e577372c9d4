"""A world: tokenizer, actions and dynamics together; one player in it; and the one rollout that everything uses.

Shapes: B batch, T time, H W C image, N tokens per frame, M model width.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from reverie.actions import ActionSpace
from reverie.errors import ReverieError
from reverie.nn.compiled import compiled
from reverie.nn.embed import from_start
from reverie.nn.patch import to_uint8
from reverie.nn.transformer import unstack_layers


@dataclass(frozen=True)
class WorldConfig:
    """What a player needs to know. ``context``: how many real frames a dream begins with, at most."""

    frame: tuple[int, int, int]
    actions: ActionSpace
    context: int
    fps: float = 10.0


class WorldMemory(NamedTuple):
    """All that one dream remembers: the dynamics' past, and the tokenizer decoder's."""

    dynamics: Any
    decoder: Any


class WorldModel(nnx.Module):
    """What ``reverie.load`` returns for a world. ``lam`` is None where actions were recorded (or there are none)."""

    def __init__(self, config: WorldConfig, tokenizer: Any, lam: Any, dynamics: Any):
        self.config = config
        self.tokenizer: Any = tokenizer
        self.lam: Any = lam
        self.dynamics: Any = dynamics

    def encode(self, frames_BTHWC: Array) -> Array:
        """uint8 frames -> latents (B, T, N)."""
        return self.tokenizer.encode(frames_BTHWC)

    def actions_of(self, frames_BTHWC: Array, actions_BT: Array) -> Array:
        """The actions this world obeys, (B, T) or (B, T, A): recorded ones as they are, latent ones off the frames."""
        return actions_BT if self.lam is None else self.lam.infer(frames_BTHWC)

    def empty(self, batch: int) -> WorldMemory:
        """Return the memory of a dream that has not begun."""
        return WorldMemory(self.dynamics.empty(batch), self.tokenizer.empty(batch))

    def prefill(self, frames_BTHWC: Array, actions_BT: Array, length: Array | int | None = None) -> WorldMemory:
        """Take in real frames and the actions (``actions_of``) that led to them; only the first ``length`` if given.

        Whatever led to the first of them is before the dream's time, so that action counts as START, as in training.
        """
        latents = self.encode(frames_BTHWC)
        actions = from_start(actions_BT, self.config.actions)

        def take_in(t, memory):
            latent, action = (jax.lax.dynamic_index_in_dim(x, t, 1, keepdims=False) for x in (latents, actions))
            dynamics, _ = self.dynamics.observe(memory.dynamics, latent, action)
            return WorldMemory(dynamics, self.tokenizer.decode_frame(memory.decoder, latent)[0])

        count = frames_BTHWC.shape[1] if length is None else length
        return jax.lax.fori_loop(0, count, take_in, self.empty(len(frames_BTHWC)))

    def imagine(
        self, memory: WorldMemory, actions_B: Array, key: Array, temperature: float | Array | None = None
    ) -> tuple[WorldMemory, Array, Array, Array]:
        """Dream one frame: (memory, frames (B, H, W, C) float32 in 0..1, latents, features the agents read)."""
        dynamics, latents, h = self.dynamics.imagine(memory.dynamics, actions_B, key, temperature)
        decoder, frames = self.tokenizer.decode_frame(memory.decoder, latents)
        return WorldMemory(dynamics, decoder), frames, latents, h


class Step(NamedTuple):
    """What a rollout yields, time first: latents and actions (length, B, ...), features after each frame."""

    latents: Array
    actions: Array
    h: Array


def rollout(
    dynamics: Any,
    memory: Any,
    h: Array | None,
    act: Callable | Array,
    key: Array,
    length: int,
    temperature: float | None = None,
) -> tuple[Any, Step]:
    """Dream ``length`` frames: (memory, Step).

    ``act`` is a policy ``(h, key) -> actions (B,)``, or actions given beforehand, (B, length, ...). Evaluation,
    learning in imagination and video all run this one function.
    """

    def step(carry, i):
        memory, h = carry
        key_act, key_dream = jax.random.split(jax.random.fold_in(key, i))
        actions = act(h, key_act) if callable(act) else act[:, i]
        memory, latents, h_next = dynamics.imagine(memory, actions, key_dream, temperature)
        return (memory, h_next if callable(act) else h), Step(latents, actions, h_next)

    (memory, _), steps = jax.lax.scan(step, (memory, h), jnp.arange(length))
    return memory, steps


_players: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # compiled once for a world, shared by its sessions


class Session:
    """One player in a world. The same seed, start, actions and temperature give the same frames, bit for bit.

    ``temperature``: of sampling, 0 is deterministic; None for the model's own.
    """

    def __init__(self, world: WorldModel, seed: int = 0, temperature: float | None = None):
        if not isinstance(world, WorldModel):
            raise ReverieError(
                f"only a world can be played, and this is a {type(world).__name__}: load a world's folder."
            )
        self.world, self.seed = world, seed
        self.temperature = world.dynamics.temperature if temperature is None else temperature
        self.actions = world.config.actions
        if world not in _players:
            player = unstack_layers(world)
            _players[world] = compiled(player, _begin), compiled(player, _continue, donate=(0,), few_rows=True)
        self._begin, self._continue = _players[world]
        self._memory = None
        self._time = 0
        blank = np.zeros((1, *world.config.frame), np.uint8)
        self.reset(blank, None)  # both programs are compiled now, before a player waits for them
        self.step(self.actions.nth(0) if self.actions.size else 0)
        self._memory = None

    @property
    def compilations(self) -> int:
        """How many programs this world's players have compiled: two, however long anyone plays."""
        return self._begin.compilations + self._continue.compilations

    def reset(self, frames: np.ndarray, actions: np.ndarray | None = None) -> np.ndarray:
        """Begin from real frames (T, H, W, C) uint8 and return the last, as the world sees it.

        ``actions`` (T, ...) led to the frames; without them they are unlabelled (a world of latent actions reads them
        off the frames itself). Only the last ``config.context`` frames count.
        """
        c = self.world.config
        frames = np.asarray(frames)
        if frames.ndim != 4 or frames.shape[1:] != tuple(c.frame) or frames.dtype != np.uint8 or not len(frames):
            raise ReverieError(
                f"a dream begins with uint8 frames (T, {', '.join(map(str, c.frame))}), "
                f"not {frames.dtype} {frames.shape}."
            )
        space = self.actions
        if actions is None or self.world.lam is not None:
            actions = space.unlabelled((len(frames),))
        actions = space.array(actions)
        if actions.shape[:1] != (len(frames),):
            raise ReverieError(f"{len(frames)} frames need as many actions, not {actions.shape}.")
        space.refuse(actions, "a start")
        frames, actions = frames[-c.context :], actions[-c.context :]
        length = len(frames)
        spare = c.context - length
        # Padded at the end to one shape, so that a start of any length runs the same compiled program.
        frames = np.pad(frames, ((0, spare), (0, 0), (0, 0), (0, 0)), mode="edge")
        actions = np.concatenate([actions, space.unlabelled((spare,))])
        self._memory, picture = self._begin(frames[None], actions[None], np.int32(length))
        self._time = 0
        return np.asarray(picture)

    def step(self, action: Any) -> np.ndarray:
        """Take an action (0 in a world without actions) and return the frame it leads to, uint8 (H, W, C)."""
        action = self.actions.taken(action)
        if self._memory is None:
            raise ReverieError("a session begins with reset(frames): the world needs at least one frame to go on from.")
        clock = np.array([self.seed % 2**32, self._time % 2**32], np.uint32)
        self._memory, frame = self._continue(self._memory, action, clock, np.float32(self.temperature))
        self._time += 1
        return np.asarray(frame)


def _begin(world: WorldModel, frames_1THWC, actions_1T, length):
    memory = world.prefill(frames_1THWC, world.actions_of(frames_1THWC, actions_1T), length)
    seen = world.tokenizer.decode(world.encode(frames_1THWC))
    return memory, to_uint8(jax.lax.dynamic_index_in_dim(seen[0], length - 1, keepdims=False))


def _continue(world: WorldModel, memory, action, clock, temperature):
    key = jax.random.fold_in(jax.random.key(clock[0]), clock[1])
    memory, frames, _, _ = world.imagine(memory, action[None], key, temperature)
    return memory, to_uint8(frames[0])
