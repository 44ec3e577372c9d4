"""The interfaces of data: the Spec that all episodes share, Episode, Dataset, Source and Simulator.

T frames, H height, W width, C channels, S numbers in a simulator's state. ``actions[t]``, ``rewards[t]`` and
``ends[t]`` belong to the step that led *to* frame ``t`` (see ``reverie.actions``), so ``rewards[0]`` is 0.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from reverie import config
from reverie.actions import START, ActionSpace
from reverie.errors import ReverieError

Action = Any  # an int, or a vector: one entry of an array of actions
Policy = Callable[[np.ndarray, np.random.Generator, Action], Action]  # (state, rng, last action) -> action


RECORDED = ("count", "frames", "seed", "play")  # of a simulator's config: what was recorded, not which game it is
MOST_TASKS = 1000  # different texts; more are instructions, each for an episode of its own
CHUNK = 16  # frames of a record: a window of 2 to 16 reads one or two, and decompresses little it does not need


class Simulator(Protocol):
    """A simulator whose state can be set: the state determines everything, so any moment can be replayed.

    A simulator may also have ``visible(frames (..., H, W, C)) -> bool (...)``, which detects its player in a frame,
    also in a generated one. Evaluation then reports how often the player is missing. It may have ``best(state) ->
    action``, the best policy known: an upper bound for agents, and of use in ``data.mixed``. If it has a task, it has
    ``solved(state) -> bool``.
    """

    actions: ActionSpace

    def reset(self, seed: int) -> np.ndarray:
        """Return the first state (S,) int32 of the level ``seed``."""
        ...

    def step(self, state: np.ndarray, action: Action) -> tuple[np.ndarray, float, bool]:
        """Return the next state, its reward and whether the episode ends there; ``state`` is not changed."""
        ...

    def render(self, state: np.ndarray) -> np.ndarray:
        """Return the frame (H, W, C) uint8 of a state."""
        ...

    def policy(self, state: np.ndarray, rng: np.random.Generator, last_action: Action) -> Action:
        """Return the next action of the policy that records data."""
        ...


class Source(Protocol):
    """A source of episodes: a frozen dataclass of plain values."""

    def spec(self) -> "Spec":
        """Return the spec of its episodes."""
        ...

    def episodes(self) -> Iterator["Episode"]:
        """Yield the episodes one by one; every call yields the same ones.

        A source that can be divided among the parts of an array job takes ``shard``, a ``Share`` or (i, n), and draws
        each of its things without regard to the others. A source of files has ``stamps()``, which differ when they do.
        """
        ...


class SimulatorSource(Source, Protocol):
    """A source that records its episodes from a simulator.

    If its episodes have tasks, it has ``for_task(name)``, which returns it with this task alone.
    """

    def make(self) -> Simulator:
        """Return the simulator."""
        ...


@dataclass(frozen=True)
class Spec:
    """What every episode of a dataset has in common. JSON round trip by ``reverie.config``.

    frame: (H, W, C). fps: frames per second of play. source: "platformer", "videos", ... simulator: the config of the
    simulator that the episodes came from, so that evaluation can rebuild it with ``spec.simulator.make()``; None for
    videos. tasks: what its episodes may be for; a task's id is its place here, counted from 1, and 0 is none.
    """

    frame: tuple[int, int, int]
    actions: ActionSpace
    fps: float
    source: str
    simulator: SimulatorSource | None = None
    tasks: tuple[str, ...] = ()

    def __post_init__(self):
        frame = tuple(self.frame)
        if len(frame) != 3 or min(frame) < 1 or frame[2] not in (1, 3) or not 0 < self.fps < float("inf"):
            raise ReverieError(
                f"frames are (H, W, 3) or (H, W, 1), more than 0 of them per second, not {frame} at {self.fps}."
            )


def with_tasks(spec: Spec, tasks: Iterable[str]) -> Spec:
    """Return a spec that knows these tasks of episodes; none if these are more than ``MOST_TASKS``."""
    known = dict.fromkeys([*spec.tasks, *sorted({task for task in tasks if task})])
    return replace(spec, tasks=tuple(known) if len(known) <= MOST_TASKS else ())


@dataclass
class Episode:
    """One recording without a cut. source: the recording that it is a part of (a file name, a level).

    Episodes of one source are nearly alike, so they are never split between training and evaluation (``data.splits``).

    frames uint8 (T,H,W,C); actions (T,) or (T,A), int32 or float32 as their space says, START first; rewards float32
    (T,); ends bool (T,), true if the world itself ended there. states: int32 (T,S), or None without a simulator. task:
    the instruction, in words; "" if unknown.
    """

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    ends: np.ndarray
    states: np.ndarray | None = None
    fps: float = 0.0
    source: str = ""
    task: str = ""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays with one entry per frame, by their names in ``Dataset.read``."""
        arrays = {"frames": self.frames, "actions": self.actions, "rewards": self.rewards, "ends": self.ends}
        return arrays if self.states is None else arrays | {"states": self.states}

    def validate(self, spec: Spec) -> None:
        """Raise ReverieError unless every array has the right type and length, and actions keep the convention."""
        where = f"episode '{self.source}'" if self.source else "an episode"
        length = len(self.frames)
        if self.frames.dtype != np.uint8 or self.frames.shape[1:] != tuple(spec.frame) or not length:
            raise ReverieError(
                f"{where} has frames {self.frames.dtype} {self.frames.shape}; this dataset needs uint8 (T, "
                f"{', '.join(map(str, spec.frame))}) with at least one frame."
            )
        kinds = {"actions": spec.actions.dtype, "rewards": np.float32, "ends": np.bool_, "states": np.int32}
        for name, array in self.arrays().items():
            if name in kinds and (array.dtype != kinds[name] or array.shape[:1] != (length,)):
                raise ReverieError(
                    f"{where} has {name} {array.dtype} {array.shape}; "
                    f"it needs one {np.dtype(kinds[name])} for each of its {length} frames."
                )
        spec.actions.refuse(self.actions, where)
        begins = spec.actions.is_start(self.actions)
        if not begins[0] or begins[1:].any():
            raise ReverieError(f"{where} must begin with action START ({START}): nothing led to its first frame.")


class Dataset(Protocol):
    """Episodes that can be read by windows. ``read`` may be called from several threads at once.

    lengths: frames per episode, int64. fingerprint: a short hash of the content, stored in checkpoints. split: "train",
    "val", another name, or "" for episodes without splits.
    """

    spec: Spec
    split: str
    lengths: np.ndarray
    fingerprint: str

    def read(
        self, episode: int, start: int, length: int, names: Collection[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Return frames ``start .. start + length`` of an episode and the other arrays, (length, ...) each.

        Keys: "frames", "actions", "rewards", "ends", and if they exist "states" or others ("latents" of a cache).
        ``names``: return only these, and read no others from disk.
        """
        ...


def game_of(simulator: Any) -> str:
    """Return a text that is the same for configs of the same game, however it was recorded."""
    values = config.to_json(simulator) or {}
    return json.dumps({name: value for name, value in values.items() if name not in RECORDED}, sort_keys=True)


def numbers_of(shard: tuple[int, int], count: int) -> range:
    """Return which of ``count`` things belong to part i of n: (i, n). All parts in order are all things in order."""
    part, parts = shard
    return range(part * count // parts, (part + 1) * count // parts)


@dataclass
class Share:
    """Part i of n of a source's things (recordings, levels), and how far its episodes have been drawn.

    number: things of the part that are complete; drawing begins behind them, so that a killed import can go on. counts:
    what a source counts over all its things. begun: these, when the thing that is being drawn was begun.
    """

    part: int = 0
    parts: int = 1
    number: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    begun: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[int]:  # so that it is the (i, n) that ``numbers_of`` takes
        return iter((self.part, self.parts))

    def of(self, count: int) -> Iterator[int]:
        """Yield which of ``count`` things are left to draw."""
        for index in numbers_of((self.part, self.parts), count)[self.number :]:
            self.begun = self.counts.copy()
            yield index
            self.number += 1


def share_of(shard: Share | tuple[int, int]) -> Share:
    """Return the ``shard`` argument of a source's ``episodes`` as a Share."""
    return shard if isinstance(shard, Share) else Share(*shard)


def windows(length: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of consecutive windows of at most ``size`` frames."""
    for start in range(0, length, size):
        yield start, min(start + size, length)


def record(
    simulator: Simulator,
    *,
    seed: int,
    frames: int,
    rng: np.random.Generator,
    fps: float,
    policy: Policy | None = None,
    kind: str = "",
    task: str = "",
) -> Episode:
    """Return one episode of at most ``frames`` frames of level ``seed``, played by ``policy``.

    ``policy``: None for the simulator's own. ``kind``: a note in the episode's source. ``task``: what the
    simulator rewards.
    """
    policy = policy or simulator.policy
    state, action = simulator.reset(seed), simulator.actions.start()
    steps = [(simulator.render(state), action, 0.0, False, state)]
    while len(steps) < frames and not steps[-1][3]:
        action = policy(state, rng, action)
        state, reward, end = simulator.step(state, action)
        steps.append((simulator.render(state), action, reward, end, state))
    pictures, actions, rewards, ends, states = zip(*steps, strict=True)
    return Episode(
        frames=np.stack(pictures),
        actions=np.array(actions, simulator.actions.dtype),
        rewards=np.array(rewards, np.float32),
        ends=np.array(ends, np.bool_),
        states=np.stack(states),
        fps=fps,
        source=f"level {seed}" + (f", {kind}" if kind else ""),
        task=task,
    )
