"""A world model: tokenizer, latent actions and dynamics; a session of one player; the rollout that everything uses.

Shapes: B batch, T time, H W C image, N tokens per frame, M model width.
"""

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """What a player needs to know. ``context``: the most real frames that a rollout is conditioned on."""

    frame: tuple[int, int, int]
    actions: ActionSpace
    context: int
    fps: float = 10.0


class WorldKVCache(NamedTuple):
    """The state between two frames: that of the dynamics (transformers: a KV cache), and the tokenizer decoder's."""

    dynamics: Any
    decoder: Any


class WorldModel(nnx.Module):
    """What ``reverie.load`` returns for a world. ``lam`` is None if actions were recorded, or if there are none."""

    def __init__(self, config: WorldConfig, tokenizer: Any, lam: Any, dynamics: Any):
        self.config = config
        self.tokenizer: Any = tokenizer
        self.lam: Any = lam
        self.dynamics: Any = dynamics

    def encode(self, frames_BTHWC: Array) -> Array:
        """uint8 frames -> latents (B, T, N)."""
        return self.tokenizer.encode(frames_BTHWC)

    def actions_of(self, frames_BTHWC: Array, actions_BT: Array) -> Array:
        """The actions that condition this world, (B, T) or (B, T, A): recorded ones, or latent ones of the frames."""
        return actions_BT if self.lam is None else self.lam.infer(frames_BTHWC)

    def empty(self, batch: int) -> WorldKVCache:
        """Return the state before the first frame."""
        return WorldKVCache(self.dynamics.empty(batch), self.tokenizer.empty(batch))

    def prefill(
        self, frames_BTHWC: Array, actions_BT: Array, length: Array | int | None = None, state: Any = None
    ) -> WorldKVCache:
        """Append real frames and the actions (``actions_of``) that led to them; only the first ``length`` if given.

        ``state``: that of the dynamics before the first frame, if not the empty one. The first action led from a frame
        that is not given, so it counts as START, as in training.
        """
        return self.prefill_with_features(frames_BTHWC, actions_BT, length, state)[0]

    def prefill_with_features(
        self, frames_BTHWC: Array, actions_BT: Array, length: Array | int | None = None, state: Any = None
    ) -> tuple[WorldKVCache, Array]:
        """See ``prefill``; the second value are the features (B, N, M) of the last frame, for agents."""
        latents = self.encode(frames_BTHWC)
        actions = from_start(actions_BT, self.config.actions)

        def decode(t, cache):
            latent = jax.lax.dynamic_index_in_dim(latents, t, 1, keepdims=False)
            return self.tokenizer.decode_frame(cache, latent)[0]

        count = frames_BTHWC.shape[1] if length is None else length
        decoder = jax.lax.fori_loop(0, count, decode, self.tokenizer.empty(len(frames_BTHWC)))
        dynamics, h = prefill(self.dynamics, latents, actions, count, state)
        return WorldKVCache(dynamics, decoder), h

    def imagine(
        self, cache: WorldKVCache, actions_B: Array, key: Array, temperature: float | Array | None = None
    ) -> tuple[WorldKVCache, Array, Array, Array]:
        """Generate one frame: (cache, frames (B, H, W, C) float32 in 0..1, latents, features for agents)."""
        return self.imagine_with_uncertainty(cache, actions_B, key, temperature)[:4]

    def imagine_with_uncertainty(
        self, cache: WorldKVCache, actions_B: Array, key: Array, temperature: float | Array | None = None
    ) -> tuple[WorldKVCache, Array, Array, Array, Array]:
        """See ``imagine``; the last value is how unsure the dynamics was of each frame, (B,): see ``uncertainty``."""
        dynamics, latents, h, unsure = imagine_with_uncertainty(
            self.dynamics, cache.dynamics, actions_B, key, temperature
        )
        decoder, frames = self.tokenizer.decode_frame(cache.decoder, latents)
        return WorldKVCache(dynamics, decoder), frames, latents, h, unsure

    @property
    def uncertainty(self) -> str:
        """The unit of the uncertainty of a generated frame; "" if the dynamics does not say how unsure it is."""
        return getattr(self.dynamics, "uncertainty", "")


def imagine_with_uncertainty(
    dynamics: Any, state: Any, actions_B: Array, key: Array, temperature: float | Array | None = None
) -> tuple[Any, Array, Array, Array]:
    """Generate the next frame: (state, latents, features, uncertainty (B,)), which is NaN if the dynamics has none."""
    if getattr(dynamics, "uncertainty", ""):
        return dynamics.imagine_with_uncertainty(state, actions_B, key, temperature)
    return *dynamics.imagine(state, actions_B, key, temperature), jnp.full(len(actions_B), jnp.nan)


def prefill(
    dynamics: Any, latents: Array, actions: Array, length: Array | int | None = None, state: Any = None
) -> tuple[Any, Array]:
    """Take in the first ``length`` frames of clips (all if None): (state, features (B, N, M) of the last one).

    ``latents`` (B, T, ...); ``actions`` (B, T, ...) led to them. ``state``: the one before, if not the empty one.
    """

    def take_in(t, carry):
        return dynamics.observe(carry[0], *(jax.lax.dynamic_index_in_dim(x, t, 1, keepdims=False) for x in inputs))

    inputs, state = (latents, actions), dynamics.empty(len(latents)) if state is None else state
    h = jax.eval_shape(lambda: dynamics.observe(state, latents[:, 0], actions[:, 0])[1])
    count = latents.shape[1] if length is None else length
    return jax.lax.fori_loop(
        0, count, take_in, (state, jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), h))
    )


def features(dynamics: Any, latents: Array, actions: Array, state: Any = None) -> Array:
    """Return what agents read of recorded clips, (B, T, N, M): the features of each frame as it is observed in play.

    ``state``: the one before, if not the empty one.
    """

    def take_in(state, frame):
        return dynamics.observe(state, *frame)

    time_first = jnp.swapaxes(latents, 0, 1), jnp.swapaxes(actions, 0, 1)
    state = dynamics.empty(len(latents)) if state is None else state
    return jnp.swapaxes(jax.lax.scan(take_in, state, time_first)[1], 0, 1)


class Step(NamedTuple):
    """Generated frames of a rollout, time first: latents and actions (length, B, ...), features after each frame.

    ``uncertainty``: of each frame, (length, B).
    """

    latents: Array
    actions: Array
    h: Array
    uncertainty: Array


def rollout(
    dynamics: Any,
    state: Any,
    h: Array | None,
    act: Callable | Array,
    key: Array,
    length: int,
    temperature: float | None = None,
) -> tuple[Any, Step]:
    """Generate ``length`` frames from a state of the dynamics: (state, Step).

    ``act`` is a policy ``(h, key) -> actions (B,)``, or the actions themselves, (B, length, ...). Evaluation, learning
    in imagination and video all run this one function.
    """

    def step(carry, i):
        state, h = carry
        key_act, key_frame = jax.random.split(jax.random.fold_in(key, i))
        actions = act(h, key_act) if callable(act) else act[:, i]
        state, latents, h_next, unsure = imagine_with_uncertainty(dynamics, state, actions, key_frame, temperature)
        return (state, h_next if callable(act) else h), Step(latents, actions, h_next, unsure)

    (state, _), steps = jax.lax.scan(step, (state, h), jnp.arange(length))
    return state, steps


# Compiled once for all sessions of a world: world -> kind of session -> programs.
_players: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def passes_of(world: WorldModel) -> int | None:
    """Return in how many passes a world samples a frame; None if its dynamics has no such number."""
    return getattr(getattr(world.dynamics, "config", None), "passes", None)


def with_passes(world: WorldModel, passes: int) -> WorldModel:
    """Return a world that samples a frame in this many passes, a copy with the same weights; 0: the world as it is.

    Raises ReverieError if its dynamics cannot.
    """
    if not passes:
        return world
    if passes < 0 or passes_of(world) is None:
        raise ReverieError(f"{type(world.dynamics).__name__} dynamics cannot sample a frame in {passes} passes.")
    config: Any = replace(world.dynamics.config, passes=passes)
    try:
        nnx.eval_shape(lambda: config.make(nnx.Rngs(0)))  # which checks it
    except ValueError as error:
        raise ReverieError(str(error)) from None
    world = nnx.merge(*nnx.split(world))  # what was loaded cannot be changed while a program is traced
    world.dynamics.config = config
    return world


def temperature_of(world: WorldModel, chosen: float | None) -> float:
    """Return a temperature to sample at, the world's own for None; ReverieError unless it is finite and at least 0."""
    temperature: float = world.dynamics.temperature if chosen is None else chosen
    if not 0 <= temperature < math.inf:
        raise ReverieError(f"a sampling temperature is a number from 0 on, not {temperature:g}.")
    return temperature


class Session:
    """One player in a world. The same seed, initial frames, actions and temperature give the same frames, bit for bit.

    ``temperature``: of sampling; 0 is deterministic, None the model's own. ``uncertainty``: how unsure the model was of
    the last frame that it generated, in ``world.uncertainty``; None before the first, or if it does not say.
    """

    uncertainty: float | None = None

    def __init__(self, world: WorldModel, seed: int = 0, temperature: float | None = None):
        if not isinstance(world, WorldModel):
            raise ReverieError(
                f"only a world can be played, and this is a {type(world).__name__}: load a world's folder."
            )
        self.world, self.seed = world, seed
        self.temperature = temperature_of(world, temperature)
        self.actions = world.config.actions
        programs = _players.setdefault(world, {})
        if type(self) not in programs:
            programs[type(self)] = self._compiled()
        self._begin, self._continue = programs[type(self)]
        self._cache = None
        self._time = 0
        blank = np.zeros((1, *world.config.frame), np.uint8)
        self.reset(blank, None)  # compiles both programs before a player waits for them
        self.step(self.actions.nth(0) if self.actions.size else 0)
        self._cache = None

    @property
    def compilations(self) -> int:
        """How many programs the sessions of this world have compiled: two, however long they last."""
        return self._begin.compilations + self._continue.compilations

    def reset(self, frames: np.ndarray, actions: np.ndarray | None = None) -> np.ndarray:
        """Begin from real frames (T, H, W, C) uint8 and return the tokenizer's reconstruction of the last.

        ``actions`` (T, ...) led to the frames; None: they are unlabelled. A world of latent actions infers its own.
        Only the last ``config.context`` frames are used. Raises ReverieError for frames or actions of another shape.
        """
        self._cache, *found = self._begin(*initial(self.world, frames, actions))
        self._time, self.uncertainty = 0, None
        return self._shown(*found)

    def step(self, action: Any) -> np.ndarray:
        """Return the frame that an action leads to, uint8 (H, W, C); the action is 0 in a world without actions."""
        action = self.actions.taken(action)
        if self._cache is None:
            raise ReverieError("call reset(frames) before step(action): a session needs at least one initial frame.")
        clock = np.array([self.seed % 2**32, self._time % 2**32], np.uint32)
        self._cache, frame, unsure, *found = self._continue(self._cache, action, clock, np.float32(self.temperature))
        self._time += 1
        shown = self._shown(frame, *found)
        self.uncertainty = float(unsure) if self.world.uncertainty else None
        return shown

    def _compiled(self) -> tuple[compiled, compiled]:
        """Return the programs of ``reset`` and ``step``."""
        player = unstack_layers(self.world)
        return compiled(player, begin), compiled(player, advance, donate=(0,), few_rows=True)

    def _shown(self, frame: Array) -> np.ndarray:
        """Take in what a program returned beside the cache, and return the frame."""
        return np.asarray(frame)


def initial(
    world: WorldModel, frames: np.ndarray, actions: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.int32]:
    """Return initial frames and actions, as ``Session.reset`` takes them, as inputs of ``begin``.

    They are padded at the end to one shape, so that a start of any length runs the same compiled program.
    """
    c, space = world.config, world.config.actions
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[1:] != tuple(c.frame) or frames.dtype != np.uint8 or not len(frames):
        raise ReverieError(
            f"a session begins from uint8 frames (T, {', '.join(map(str, c.frame))}), "
            f"not {frames.dtype} {frames.shape}."
        )
    if actions is None or world.lam is not None:
        actions = space.unlabelled((len(frames),))
    actions = space.array(actions)
    if actions.shape[:1] != (len(frames),):
        raise ReverieError(f"{len(frames)} frames need as many actions, not {actions.shape}.")
    space.refuse(actions, "a start")
    frames, actions = frames[-c.context :], actions[-c.context :]
    length = len(frames)
    spare = c.context - length
    frames = np.pad(frames, ((0, spare), (0, 0), (0, 0), (0, 0)), mode="edge")
    return frames[None], np.concatenate([actions, space.unlabelled((spare,))])[None], np.int32(length)


def begin(
    world: WorldModel, frames_1THWC: Array, actions_1T: Array, length: Array | int, state: Any = None
) -> tuple[WorldKVCache, Array]:
    """Take in the first ``length`` real frames of one row: (cache, the reconstruction uint8 (H, W, C) of the last).

    ``state``: that of the dynamics before the first frame, if not the empty one.
    """
    return begin_with_features(world, frames_1THWC, actions_1T, length, state)[:2]


def begin_with_features(
    world: WorldModel, frames_1THWC: Array, actions_1T: Array, length: Array | int, state: Any = None
) -> tuple[WorldKVCache, Array, Array]:
    """See ``begin``; the third value is the features (1, N, M) of the last frame, for agents."""
    actions = world.actions_of(frames_1THWC, actions_1T)
    cache, h = world.prefill_with_features(frames_1THWC, actions, length, state)
    seen = world.tokenizer.decode(world.encode(frames_1THWC))
    return cache, to_uint8(jax.lax.dynamic_index_in_dim(seen[0], length - 1, keepdims=False)), h


def advance(world: WorldModel, cache: WorldKVCache, action: Array, clock: Array, temperature: Array | float) -> Any:
    """Generate one frame: (cache, frame uint8 (H, W, C), its uncertainty ()).

    ``clock`` is (seed, frames since the start), uint32.
    """
    return advance_with_features(world, cache, action, clock, temperature)[:3]


def advance_with_features(
    world: WorldModel, cache: WorldKVCache, action: Array, clock: Array, temperature: Array | float
) -> tuple[WorldKVCache, Array, Array, Array]:
    """See ``advance``; the fourth value is the features (1, N, M) of the frame, for agents."""
    key = jax.random.fold_in(jax.random.key(clock[0]), clock[1])
    cache, frames, _, h, unsure = world.imagine_with_uncertainty(cache, action[None], key, temperature)
    return cache, to_uint8(frames[0]), unsure[0], h
