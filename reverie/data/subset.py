"""A part of a store as a store of its own."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reverie.data.codecs import AUTO
from reverie.data.copying import Recorded, codec_for, made_of, notes_of, opened, write_new
from reverie.data.filling import About
from reverie.data.order import shuffled
from reverie.errors import ReverieError


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which episodes of a store are wanted."""

    split: str = ""  # only this split
    episodes: str = ""  # numbers of episodes, counted from 0 within each split: 0:100,105
    every: int = 1  # every n-th of the episodes that are left
    source: str = ""  # only episodes whose recording has this text in its name
    task: str = ""  # only episodes with this text in their task
    shortest: int = 1  # fewest frames of an episode
    best: float = 1.0  # share of the episodes of each split to keep, those with the highest return
    labels: float = 1.0  # share of the episodes of "train" whose actions are kept; the others become unlabelled

    def __post_init__(self):
        if self.every < 1 or not 0 < self.best <= 1 or not 0 <= self.labels <= 1:
            raise ReverieError("a subset needs every >= 1, 0 < best <= 1 and 0 <= labels <= 1.")
        _numbers(self.episodes)

    def of(self, recorded: list[Recorded]) -> Iterator[Recorded]:
        """Yield the episodes that are wanted."""
        ranges = _numbers(self.episodes)
        for split in dict.fromkeys(one.entry.split for one in recorded):
            if self.split and split != self.split:
                continue
            part = [
                one
                for one in recorded
                if one.entry.split == split
                and (not ranges or any(one.episode in numbers for numbers in ranges))
                and self.source in one.entry.source
                and self.task in one.entry.task
                and one.entry.length >= self.shortest
            ][:: self.every]
            if self.best < 1:
                returns = np.array([_return(one) for one in part])
                kept = np.argsort(-returns, kind="stable")[: max(1, round(self.best * len(part)))]
                part = [part[index] for index in sorted(kept)]
            if self.labels < 1 and split == "train":  # held-out actions are what a world is evaluated with
                rank = [shuffled(place, len(part), 0) for place in range(len(part))]
                known = round(self.labels * len(part))  # episodes known at a small share are known at larger ones
                part = [one if at < known else _unlabelled(one) for one, at in zip(part, rank, strict=True)]
            yield from part


def subset(path: Path, out: Path, wanted: Wanted, codec: str = AUTO) -> str:
    """Write a part of a store to a new one; splits stay what they are, and the codec if it is "auto"."""
    store = opened(path)
    if store.any.shard:
        raise ReverieError(f"'{path}' is part of an array job: merge the parts first.")
    chosen = list(wanted.of(list(store.episodes())))
    if not chosen:
        raise ReverieError(f"no episode of '{path}' is so; 'reverie data show {path}' says what there is.")
    about = About(store.any.licence, made_of(repr(wanted), [store]), notes_of([store]), codec=codec_for(codec, [store]))
    return write_new(out, store.any.spec, [one.entry for one in chosen], about)


def _numbers(text: str) -> list[range]:
    """Return the ranges that a text such as "0:100,105" names."""
    try:
        pairs = [[int(number) for number in part.split(":")] for part in text.split(",") if part.strip()]
        return [range(pair[0], pair[-1] + (len(pair) == 1)) for pair in pairs if pair[:2] == pair]
    except ValueError:
        raise ReverieError(f"'{text}' names no episodes; write numbers and ranges such as 0:100,105.") from None


def _unlabelled(one: Recorded) -> Recorded:
    """Return an episode without its actions."""
    space = one.dataset.spec.actions
    actions = space.unlabelled((one.entry.length,))
    actions[0] = space.start()
    return one.with_actions(actions)


def _return(one: Recorded) -> float:
    return float(one.dataset.read(one.episode, 0, one.entry.length, ("rewards",))["rewards"].sum())
