"""What an agent does, to look at: its own world beside the real game.

Shapes: E episodes, T steps, H W C image.
"""

import contextlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange

from reverie.evaluation.environment import Act, Actor, Environment, imagined, play, played_source
from reverie.evaluation.keys import keys_of
from reverie.evaluation.video import scale_of, side_by_side
from reverie.models.agent import Agent
from reverie.nn.compiled import compiled
from reverie.nn.patch import to_uint8
from reverie.training.checkpoint import load
from reverie.training.record import read_record
from reverie.world_folder import agents_in

GAP = 2  # pixels between levels


def film(run: Path, episodes: int = 4, seed: int = 0) -> tuple[np.ndarray, float]:
    """Return a clip uint8 (T + 1, H', W', 3), a row for each of the first levels of ``judge``, and its frame rate.

    Its columns: what the world's best agent imagines after one real frame, the same actions replayed in the real game,
    and the agent in the real game, where it sees each frame. An agent that knows tasks has the first. Raises
    ReverieError if there is no game.
    """
    agent, source, spec = load(agents_in(run)[0]), played_source(run), read_record(run / "agent").spec
    if (task := agent.first_task) and hasattr(source, "for_task"):
        source = source.for_task(spec.tasks[0])
    with contextlib.closing(Environment(source).translated(keys_of(run, agent.world))) as game:
        levels, steps = game.unseen(episodes, seed), game.steps
        first = game.reset(levels)
        _, actions, latents = imagined(agent, first, steps, seed, task)
        replay = iter(actions)
        shown = {
            "imagined": np.asarray(compiled(agent, _frames)(first, latents)),
            "replayed": filmed(game, levels, steps, lambda *_: next(replay)),
            "real": filmed(game, levels, steps, Actor(agent, episodes, seed, task=task)),
        }
    below = ((0, 0), (0, 0), (0, GAP), (0, 0), (0, 0))
    columns = [(label, rearrange(np.pad(each, below), "t e h w c -> t (e h) w c")) for label, each in shown.items()]
    return side_by_side(columns, 2 * scale_of(first)), spec.fps


def filmed(environment: Environment, levels: Any, steps: int, act: Act) -> np.ndarray:
    """Play as ``play`` does: all frames (T + 1, E, H, W, C)."""
    seen = []

    def watched(frames: np.ndarray, actions: np.ndarray) -> np.ndarray:
        seen.append(frames)
        return act(frames, actions)

    play(environment, levels, steps, watched)
    return np.stack([*seen, environment.frames()])


def _frames(agent: Agent, first: Any, latents: Any) -> Any:
    """Decode the latents (T, E, ...) that follow real frames (E, H, W, C): uint8 (T + 1, E, H, W, C)."""
    known = agent.world.encode(first[:, None])
    decoded = agent.world.tokenizer.decode(jnp.concatenate([known, jnp.swapaxes(latents, 0, 1)], axis=1))
    return jnp.swapaxes(to_uint8(decoded), 0, 1)
