"""A world as a Gymnasium environment, alone (``WorldEnv``) or in rows that one program steps (``WorldVectorEnv``).

Shapes: R rows, H W C image.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reverie.actions import ActionSpace
from reverie.env import EnvOptions, ImaginedEnv, load_env
from reverie.errors import ReverieError, did_you_mean
from reverie.library import place
from reverie.nn.compiled import cache_compilations, compiled

try:
    import gymnasium
    from gymnasium.utils import seeding
    from gymnasium.vector import AutoresetMode
    from gymnasium.vector.utils import batch_space
except ImportError:
    raise ReverieError("environments need gymnasium: pip install 'reverie-worlds[gym]'") from None

METADATA = {"render_modes": ["rgb_array"], "render_fps": 10}


def make_env(run: str | Path, num_envs: int | None = None, *, render_mode: str | None = None, **options: Any) -> Any:
    """Return a run's world as a ``gymnasium.Env``, or of ``num_envs`` rows as a ``gymnasium.vector.VectorEnv``.

    ``run``: a folder, an archive or an https address, as ``reverie.load`` takes them. ``options``: the fields of
    ``EnvOptions``. Raises ReverieError if the run has no agent.
    """
    if num_envs is None:
        return WorldEnv(run, render_mode=render_mode, **options)
    return WorldVectorEnv(run, num_envs, render_mode=render_mode, **options)


def action_space(space: ActionSpace) -> gymnasium.Space:
    """Return Gymnasium's space of the same actions."""
    if space.kind == "multi":
        return gymnasium.spaces.MultiDiscrete(list(space.sizes))
    if space.kind == "binary":
        return gymnasium.spaces.MultiBinary(space.size)
    if space.kind == "continuous":
        return gymnasium.spaces.Box(np.array(space.low, np.float32), np.array(space.high, np.float32))
    return gymnasium.spaces.Discrete(space.size)


class Rows:
    """Episodes of an imagined environment in step, NumPy arrays in and out. Each row has a seed of its own."""

    def __init__(self, run: str | Path, rows: int, options: dict[str, Any]):
        known = EnvOptions.__dataclass_fields__
        if wrong := [name for name in options if name not in known]:
            raise ReverieError(f"an environment has no option '{wrong[0]}'.{did_you_mean(wrong[0], known)}")
        if rows < 1:
            raise ReverieError(f"a vector environment has at least 1 row, not {rows}.")
        cache_compilations()
        self.env, self.rows = load_env(place(run), EnvOptions(**options)), rows
        env, starts, self._state = self.env, jax.device_put(self.env.starts), None

        def begin(agent, starts, seeds):
            return jax.vmap(lambda seed: env.reset_with(agent, starts, jax.random.key(seed)))(seeds)

        def take(agent, state, actions):
            return jax.vmap(lambda state, action: env.step_with(agent, state, action))(state, actions)

        def begin_some(agent, starts, seeds, which, state):
            fresh, frames = begin(agent, starts, seeds)
            return jax.tree.map(lambda new, old: jnp.where(_rows(which, new), new, old), fresh, state), frames

        begin_all = compiled(env.agent, begin)
        self._begin = lambda seeds: begin_all(starts, seeds)
        begin_few = compiled(env.agent, begin_some)
        self._begin_some = lambda *inputs: begin_few(starts, *inputs)
        self._take = compiled(env.agent, take, donate=(0,), few_rows=rows == 1)
        self.observations = gymnasium.spaces.Box(0, 255, env.frame, np.uint8)
        self.actions = action_space(env.actions)

    def reset(self, seeds: Sequence[int], which: np.ndarray | None = None) -> np.ndarray:
        """Begin episodes in all rows, or in those of ``which`` (R,): their first frames (R, H, W, C)."""
        drawn = np.asarray(seeds, np.uint32)
        if which is None:
            self._state, frames = self._begin(drawn)
        else:
            self._state, frames = self._begin_some(drawn, which, self._state)
        return np.array(frames)

    def step(self, actions: Any) -> tuple[np.ndarray, ...]:
        """Take an action in each row: frames (R, H, W, C), rewards, which are terminated, which are truncated."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset() before step(action)")
        taken = np.stack([self.env.actions.taken(action) for action in actions])
        self._state, found = self._take(self._state, taken)
        return tuple(np.array(each) for each in found)


def _rows(which: Any, like: Any) -> Any:
    return which.reshape((-1,) + (1,) * (like.ndim - 1))


class WorldEnv(gymnasium.Env):
    """One episode at a time. Observations are frames uint8 (H, W, C); options are the fields of ``EnvOptions``."""

    metadata = METADATA

    def __init__(self, run: str | Path, render_mode: str | None = None, **options: Any):
        self._rows, self.render_mode = Rows(run, 1, options), _known(render_mode)
        self.metadata = METADATA | {"render_fps": self._rows.env.agent.world.config.fps}
        self.observation_space, self.action_space = self._rows.observations, self._rows.actions
        self._frame: Any = None

    @property
    def functional(self) -> ImaginedEnv:
        """The same environment as pure functions on pytrees."""
        return self._rows.env

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode; the same seed begins the same one."""
        super().reset(seed=seed)
        self._frame = self._rows.reset([_drawn(self.np_random)])[0]
        return self._frame.copy(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Return the frame that an action leads to, its predicted reward, and whether the episode is over."""
        frames, rewards, terminated, truncated = self._rows.step([action])
        self._frame = frames[0]
        return frames[0].copy(), float(rewards[0]), bool(terminated[0]), bool(truncated[0]), {}

    def render(self) -> Any:
        """Return the current frame if the render mode is "rgb_array"."""
        return None if self.render_mode is None or self._frame is None else self._frame.copy()


class WorldVectorEnv(gymnasium.vector.VectorEnv):
    """Rows of episodes, stepped by one program. A row that is over begins again at the next step ("NextStep").

    Row i of seed s plays the episodes of a ``WorldEnv`` of seed s + i.
    """

    metadata = METADATA | {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, run: str | Path, num_envs: int = 1, render_mode: str | None = None, **options: Any):
        self._rows, self.num_envs, self.render_mode = Rows(run, num_envs, options), num_envs, _known(render_mode)
        self.metadata = type(self).metadata | {"render_fps": self._rows.env.agent.world.config.fps}
        self.single_observation_space, self.single_action_space = self._rows.observations, self._rows.actions
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators = [seeding.np_random()[0] for _ in range(num_envs)]
        self._over, self._frames = np.zeros(num_envs, bool), np.zeros(0)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        """Begin an episode in every row. ``seed``: of the first row, the others have the next ones; or one for each."""
        if seed is not None:
            super().reset(seed=seed if isinstance(seed, int) else None)
            seeds = [seed + row for row in range(self.num_envs)] if isinstance(seed, int) else list(seed)
            self._generators = [
                old if each is None else seeding.np_random(each)[0]
                for each, old in zip(seeds, self._generators, strict=True)
            ]
        self._over = np.zeros(self.num_envs, bool)
        self._frames = self._rows.reset([_drawn(each) for each in self._generators])
        return self._frames.copy(), {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Take an action in each row; in a row that was over, begin the next episode instead, with a reward of 0."""
        begun, choices = self._over, np.asarray(actions)
        frames, rewards, terminated, truncated = self._rows.step(choices)
        if begun.any():
            drawn = [_drawn(each) if new else 0 for each, new in zip(self._generators, begun, strict=True)]
            frames = np.where(_rows(begun, frames), self._rows.reset(drawn, begun), frames)
            rewards = np.where(begun, 0, rewards).astype(np.float32)
            terminated, truncated = terminated & ~begun, truncated & ~begun
        self._over, self._frames = terminated | truncated, frames
        return frames.copy(), rewards, terminated, truncated, {}

    def render(self) -> Any:
        """Return the current frame of every row if the render mode is "rgb_array"."""
        return None if self.render_mode is None else tuple(frame.copy() for frame in self._frames)


def _drawn(generator: np.random.Generator) -> int:
    return int(generator.integers(2**32))


def _known(render_mode: str | None) -> str | None:
    if render_mode not in (None, *METADATA["render_modes"]):
        raise ReverieError(f"there is no render mode '{render_mode}': {METADATA['render_modes']}.")
    return render_mode
