"""Worlds that are not trained but planted: a tokenizer without loss, and dynamics that ask the simulator."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from reverie.data.arrays import ArrayDataset
from reverie.data.sources.platformer import PlatformerConfig
from reverie.nn.batch import Loss, mean

PLATFORMER = PlatformerConfig(tiles=6, tile=4, count=12, frames=24)
STATES: dict[bytes, np.ndarray] = {}  # picture -> a state that looks so; nothing in the platformer is hidden


def recorded() -> ArrayDataset:
    """Return episodes of the platformer, whose states planted dynamics know by their pictures."""
    dataset = ArrayDataset.from_episodes(PLATFORMER.spec(), PLATFORMER.episodes())
    for frame, state in zip(dataset.arrays["frames"], dataset.arrays["states"], strict=True):
        STATES[frame.tobytes()] = state
    return dataset


class Pixels(nnx.Module):
    """A tokenizer without loss: a token is a byte of the picture."""

    codes = 256

    def encode(self, frames):
        return rearrange(frames, "b t h w c -> b t (h w c)").astype(jnp.int32)

    def decode(self, latents):
        height, width, _ = PLATFORMER.spec().frame
        return rearrange(latents, "b t (h w c) -> b t h w c", h=height, w=width).astype(jnp.float32) / 255

    def empty(self, batch):
        return jnp.zeros((batch,))

    def decode_frame(self, state, latents):
        return state, self.decode(latents[:, None])[:, 0]


class Planted(nnx.Module):
    """Dynamics that look up where they are and ask the simulator, with the player's actions replaced by ``obey``."""

    temperature = 0.0

    def __init__(self, obey):
        self.obey = obey

    def empty(self, batch):
        return jnp.zeros((batch, 10), jnp.int32)

    def observe(self, state, latents, actions):
        state = jax.ShapeDtypeStruct((len(latents), 10), jnp.int32)
        return jax.pure_callback(_recognise, state, latents), None

    def imagine(self, state, actions, key, temperature):
        like = jax.ShapeDtypeStruct((len(actions), math.prod(PLATFORMER.spec().frame)), jnp.int32)
        state, latents = jax.pure_callback(_simulate, (state, like), state, self.obey(actions))
        return state, latents, jnp.zeros((len(actions), 1))

    def loss(self, latents, actions, key):
        """How much of a frame is not what it expects, and a little for surprise at all."""
        time_first = jnp.moveaxis(latents, 1, 0), self.obey(actions.T)
        wrong = jax.lax.map(lambda pair: self._wrong(*pair), (time_first[0][:-1], time_first[0][1:], time_first[1][1:]))
        return Loss((mean(0.01 + wrong),), {})

    def _wrong(self, seen, following, actions):
        state, _ = self.observe(None, seen, None)
        return jnp.mean((self.imagine(state, actions, None, None)[1] != following).astype(jnp.float32))

    def report(self, latents, actions, key):
        return {"seen": latents[0, 0, 0].astype(jnp.float32), "picture": latents}


def _recognise(latents):
    rows = [STATES.get(np.asarray(row, np.uint8).tobytes()) for row in np.asarray(latents)]
    return np.stack([np.zeros(10, np.int32) if row is None else row for row in rows])


def _simulate(state, actions):
    simulator = PLATFORMER.make()
    states = [simulator.step(state, int(action))[0] for state, action in zip(state, actions, strict=True)]
    pictures = np.stack([simulator.render(state) for state in states], dtype=np.int32)
    return np.stack(states), pictures.reshape(len(states), -1)


class Fading(Pixels):
    """Every generated frame is nearer to grey than the one before: the decoder's state counts them."""

    def decode_frame(self, state, latents):
        share = jnp.exp2(-state / 4).reshape(-1, 1, 1, 1)
        return state + 1, share * self.decode(latents[:, None])[:, 0] + (1 - share) / 2


def obedient(actions):
    return actions


def blind(actions):
    return jnp.zeros_like(actions)


def mixed_up(actions):
    """Obeys the player of another clip."""
    return jnp.roll(actions, 1)
