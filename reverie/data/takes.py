"""Games that people play for a dataset, and what is kept of their play: takes on disk, and the store made of them.

A take is one episode, a file of its own in ``OUT-takes``, written as soon as it is kept. The store ``OUT`` is made of
all takes when recording ends, so an interrupted recording loses nothing, and a deleted file is a deleted take.

Legend: H W C image, S numbers in a simulator's state.
"""

import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from reverie import config
from reverie.data.arrays import ArrayDataset
from reverie.data.episode import Action, Episode, Spec
from reverie.data.store import VAL, write_store
from reverie.errors import ReverieError

TAKE, TAKE_BYTES = "take-{:05d}.npz", 2**31
LONGEST = 2**29  # bytes of the frames of one take
JUDGED = 2**30  # seeds and levels from here on are those that agents are judged in; some engines count with 31 bits


class Moment(NamedTuple):
    """What a game shows after a reset or a step. ``end``: the game itself ended. ``over``: no step can follow."""

    frame: np.ndarray
    reward: float = 0.0
    end: bool = False
    over: bool = False
    state: np.ndarray | None = None


class Game(Protocol):
    """A real environment that is played step by step. A source that has one returns it from ``as_game()``.

    ``unseen``: the first of the seeds that recording does not use, so that agents are judged in levels of their own.
    """

    spec: Spec
    unseen: int

    def reset(self, seed: int) -> Moment:
        """Begin level ``seed``."""
        ...

    def step(self, action: Action) -> Moment:
        """Play one step."""
        ...

    def close(self) -> None:
        """Close the environment."""
        ...


class SimulatorGame:
    """The game of a source with a simulator (``reverie.data.episode.Simulator``)."""

    unseen = 2**31

    def __init__(self, source: Any):
        self.spec, self.simulator = source.spec(), source.make()

    def reset(self, seed: int) -> Moment:
        """Begin level ``seed``."""
        self.state = self.simulator.reset(seed)
        return Moment(self.simulator.render(self.state), state=self.state)

    def step(self, action: Action) -> Moment:
        """Play one step."""
        action = action if self.spec.actions.shape else int(action)
        self.state, reward, end = self.simulator.step(self.state, action)
        return Moment(self.simulator.render(self.state), float(reward), bool(end), bool(end), self.state)

    def close(self) -> None:
        """Nothing is held."""


def game_of(source: Any) -> Game:
    """Return the game of a source; ReverieError if it has none."""
    if hasattr(source, "as_game"):
        return source.as_game()
    if hasattr(source, "make"):
        return SimulatorGame(source)
    raise ReverieError(f"'{type(source).__name__}' reads recordings: there is no game to play.")


def refuse_judged(stop: int) -> None:
    """Raise ReverieError if a recording of seeds or levels below ``stop`` has some in which agents are judged."""
    if stop > JUDGED:
        raise ReverieError(f"agents are judged in seeds and levels from {JUDGED} on: record lower ones.")


class Take:
    """An episode that is being played. ``where``: a note about it; "" for its level, ``seed``."""

    def __init__(self, spec: Spec, seed: int, first: Moment, where: str = ""):
        self.spec, self.where = spec, where or f"level {seed}"
        self.moments = [(spec.actions.start(), first)]
        self.reward = first.reward  # of all moments

    def add(self, action: Action, moment: Moment) -> None:
        """Add a step and the action that led to it."""
        self.moments.append((np.asarray(action, self.spec.actions.dtype), moment))
        self.reward += moment.reward

    @property
    def full(self) -> bool:
        """Whether it is as long as a take may be."""
        return (len(self.moments) + 1) * self.moments[0][1].frame.nbytes > LONGEST

    def episode(self, name: str) -> Episode:
        """Return it as an episode; ``name`` is noted as its source."""
        actions, moments = zip(*self.moments, strict=True)
        states = [moment.state for moment in moments]
        return Episode(
            frames=np.stack([moment.frame for moment in moments]),
            actions=np.stack(actions),
            rewards=np.array([moment.reward for moment in moments], np.float32),
            ends=np.array([moment.end for moment in moments], np.bool_),
            states=None if states[0] is None else np.stack(states),  # pyright: ignore[reportArgumentType]
            fps=self.spec.fps,
            source=f"{name}, {self.where}",
        )


class Takes:
    """The takes beside the store ``out``, which they make. ReverieError if old ones are of another game."""

    def __init__(self, spec: Spec, out: Path):
        self.spec, self.out = spec, Path(out).absolute()
        self.folder = self.out.with_name(f"{self.out.name}-takes")
        if self.out.exists() and not self.folder.exists():
            raise ReverieError(f"'{out}' exists and was not recorded by playing: choose another name.")
        for file in self.files():
            if config.to_json(ArrayDataset.load(file, TAKE_BYTES).spec) != config.to_json(spec):
                raise ReverieError(f"'{file}' is of another game: choose another name for this one.")

    def files(self) -> list[Path]:
        """Return the kept takes, oldest first."""
        named = re.compile(r"take-\d{5,9}\.npz")
        return sorted(file for file in self.folder.glob("*.npz") if named.fullmatch(file.name))

    def keep(self, take: Take) -> Path:
        """Write a take to a file of its own; ReverieError if it has a single frame."""
        if len(take.moments) < 2:
            raise ReverieError("Nothing was played yet: a take has two frames or more.")
        number = max((int(file.stem.partition("-")[2]) for file in self.files()), default=-1) + 1
        episode = take.episode(f"take {number}")
        return ArrayDataset.from_episodes(self.spec, [episode]).save(self.folder / TAKE.format(number))

    def write(self, val: float = VAL, licence: str = "") -> Path:
        """Write the store of all takes again, and return its path; ReverieError if there are none."""
        files = self.files()
        if not files:
            raise ReverieError(f"no take was kept: '{self.out}' is not written.")
        new = self.out.with_name(f".{self.out.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        note = f"{len(files)} episodes that people played"
        write_store(new, self.spec, map(self._read, files), val=val, licence=licence, notes=[note])
        shutil.rmtree(self.out, ignore_errors=True)
        new.replace(self.out)
        return self.out

    def _read(self, file: Path) -> Episode:
        dataset = ArrayDataset.load(file, TAKE_BYTES)
        arrays: dict[str, Any] = dataset.read(0, 0, int(dataset.lengths[0]))
        return Episode(**arrays, fps=self.spec.fps, source=dataset.sources[0])
