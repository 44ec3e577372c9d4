"""Episodes in memory, or in one .npz file; needs only NumPy.

Each array holds all episodes, concatenated along the first axis. An .npz file holds these arrays, so any program can
write one. T frames, S numbers in a simulator's state.
"""

import copy
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reverie import config
from reverie.actions import MOST, START, UNLABELLED, ActionSpace
from reverie.bounded import parse_json, read_npz
from reverie.data.columns import Column
from reverie.data.episode import Episode, Spec, with_tasks
from reverie.data.splits import Piece
from reverie.errors import ReverieError

SCHEMA = 1
HEAD, LENGTHS = "reverie", "lengths"  # entries of an .npz besides the arrays
TEXTS = "sources", "tasks"  # of each episode, in the head
FASTEST = 240  # frames per second


class ArrayDataset:
    """A Dataset over arrays (sum of lengths, ...), which may be ``Column``s; windows of others are views, not copies.

    sources, tasks: of each episode; "" or empty if unknown. The rest of what a store knows of itself is empty.
    """

    licence, provenance, notes, shard = "", "", (), None

    def __init__(
        self,
        spec: Spec,
        lengths: np.ndarray,
        arrays: Mapping[str, np.ndarray | Column],
        fingerprint: str = "",
        *,
        split: str = "",
        sources: Sequence[str] = (),
        tasks: Sequence[str] = (),
    ):
        self.spec, self.split = with_tasks(spec, tasks), split
        self.lengths = whole_lengths(lengths)
        self.arrays = dict(arrays)
        self.starts = np.cumsum(self.lengths) - self.lengths
        total = int(self.lengths.sum())
        for name, array in self.arrays.items():
            if array.shape[:1] != (total,):
                raise ReverieError(
                    f"array '{name}' has {array.shape[:1]} entries for episodes of {total} frames in all."
                )
        if "frames" in self.arrays and self.arrays["frames"].shape[1:] != tuple(spec.frame):
            raise ReverieError(f"frames have shape {self.arrays['frames'].shape[1:]}, the dataset says {spec.frame}.")
        self.sources, self.tasks = (list(texts) or [""] * len(self.lengths) for texts in (sources, tasks))
        self.fingerprint = fingerprint or _fingerprint(config.to_json(self.spec), self)

    @property
    def kinds(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """Name, dtype and shape of each array, without the time axis."""
        return [(name, array.dtype.name, array.shape[1:]) for name, array in self.arrays.items()]

    @classmethod
    def from_episodes(cls, spec: Spec, episodes: Iterable[Episode]) -> "ArrayDataset":
        """Validate and concatenate episodes, of which either all or none have simulator states."""
        episodes = list(episodes)
        if not episodes:
            raise ReverieError("there are no episodes to make a dataset of.")
        for episode in episodes:
            episode.validate(spec)
        parts = [episode.arrays() for episode in episodes]
        if len({tuple(part) for part in parts}) > 1:
            raise ReverieError("some episodes have simulator states and others do not; give all or none.")
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        lengths = np.array([len(episode.frames) for episode in episodes])
        sources, tasks = zip(*((episode.source, episode.task) for episode in episodes), strict=True)
        return cls(spec, lengths, joined, sources=sources, tasks=tasks)

    def read(
        self, episode: int, start: int, length: int, names: Collection[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Return a window of one episode, (length, ...) each; see ``Dataset.read``."""
        if not 0 <= start <= start + length <= self.lengths[episode]:
            raise IndexError(f"frames {start}..{start + length} of episode {episode} ({self.lengths[episode]} frames)")
        at = int(self.starts[episode]) + start
        return {name: array[at : at + length] for name, array in self.arrays.items() if names is None or name in names}

    def clips(
        self, episodes: np.ndarray, starts: np.ndarray, length: int, names: Collection[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Return many windows of one length at once, (R, length, ...) each: the results of ``read``, stacked."""
        if not ((starts >= 0) & (starts + length <= self.lengths[episodes])).all():
            raise IndexError(f"clips of {length} frames reach beyond their episodes")
        at = self.starts[episodes] + starts
        chosen = {name: array for name, array in self.arrays.items() if names is None or name in names}
        frames = at[:, None] + np.arange(length)
        return {n: a.clips(at.tolist(), length) if isinstance(a, Column) else a[frames] for n, a in chosen.items()}

    def part(self, pieces: Sequence[Piece], split: str) -> "ArrayDataset":
        """Return pieces of the episodes as a dataset over the same arrays, without copying."""
        part, episodes = copy.copy(self), [piece.episode for piece in pieces]
        part.lengths = np.array([piece.stop - piece.start for piece in pieces], np.int64)
        part.starts = self.starts[episodes] + [piece.start for piece in pieces]
        part.sources, part.tasks = ([texts[i] for i in episodes] for texts in (self.sources, self.tasks))
        part.split, part.fingerprint = split, f"{self.fingerprint}-{split}"
        return part

    def save(self, path: str | Path) -> Path:
        """Write one compressed .npz atomically."""
        path = Path(path)
        if path.suffix != ".npz":
            raise ReverieError(f"an array dataset is saved as one .npz file; '{path}' is not named so.")
        head = {"schema": SCHEMA, "spec": config.to_json(self.spec), "fingerprint": self.fingerprint}
        head |= {name: texts for name in TEXTS if any(texts := getattr(self, name))}
        content: dict[str, Any] = {HEAD: np.array(json.dumps(head)), LENGTHS: self.lengths, **self.arrays}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                np.savez_compressed(file, **content)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return path

    @classmethod
    def plain(cls, path: Path, arrays: Mapping[str, np.ndarray]) -> "ArrayDataset":
        """Return a dataset of arrays that another program wrote; ReverieError if they are incomplete or inconsistent.

        "frames" uint8 (sum of lengths, H, W, 3) and "lengths" (episodes,) are required. "actions" are whole numbers,
        one per frame, START first in every episode; if missing, the dataset has none. By default "rewards" and "ends"
        are 0, "fps" is 15.
        """
        if "frames" not in arrays or LENGTHS not in arrays or arrays["frames"].ndim != 4:
            raise ReverieError(
                f"'{path}' is not a dataset: it needs 'frames' (of all episodes, H, W, 3) and 'lengths' (frames of "
                f"each episode), and has {', '.join(arrays)[:80] or 'nothing'}; docs/data.md names every array."
            )
        lengths, frames = whole_lengths(arrays[LENGTHS]), arrays["frames"]
        if 0 in frames.shape or frames.shape[3] not in (1, 3):
            raise ReverieError(f"'{path}' has frames {frames.shape}; it needs (frames, H, W, 3), colours last.")
        actions = arrays.get("actions", np.full(len(frames), UNLABELLED))
        ends = np.cumsum(lengths)
        if actions.dtype.kind not in "iu" or not actions.shape == frames.shape[:1] == (int(lengths.sum()),):
            raise ReverieError(
                f"'{path}' has {len(frames)} frames and actions {actions.dtype} {actions.shape} for episodes of "
                f"{int(lengths.sum())} frames in all; it needs one whole number for each."
            )
        if "actions" not in arrays:
            actions[ends - lengths] = START
        least, largest = int(actions.min()), int(actions.max())
        if least < UNLABELLED or largest >= MOST:
            raise ReverieError(f"'{path}' has actions {least} to {largest}; they must be {UNLABELLED} to {MOST - 1}.")
        space = ActionSpace("discrete", largest + 1) if largest >= 0 else ActionSpace()
        fps = _number(path, "fps", arrays.get("fps", np.array(15.0)))
        spec = Spec(frames.shape[1:], space, fps, path.stem)
        rewards, over = (_numbers(path, name, arrays.get(name, np.zeros(len(frames)))) for name in ("rewards", "ends"))
        named = [frames, actions.astype(np.int32), rewards.astype(np.float32), over.astype(np.bool_)]
        parts = zip(*(np.split(array, ends[:-1]) for array in named), strict=True)
        return cls.from_episodes(spec, (Episode(*part, source=f"{path.name}, {i}") for i, part in enumerate(parts)))

    @classmethod
    def load(cls, path: str | Path, limit: int | None = None) -> "ArrayDataset":
        """Return the dataset in a file of ``save``, or of another program (``plain``); ReverieError if it is neither.

        ``limit``: the most bytes of memory for its arrays (see ``bounded.read_npz``).
        """
        path = Path(path)
        try:
            arrays = read_npz(path, limit)
            if HEAD not in arrays:
                return cls.plain(path, arrays)
            head, lengths = parse_json(str(arrays.pop(HEAD)), f"the head of '{path}'"), arrays.pop(LENGTHS)
        except FileNotFoundError:
            raise ReverieError(f"there is no file '{path}'.") from None
        except KeyError:
            raise ReverieError(f"'{path}' is not a dataset that Reverie wrote: it has no {LENGTHS}.") from None
        if not isinstance(head, dict) or not isinstance(head.get("schema"), int):
            raise ReverieError(f"'{path}' is not a dataset that Reverie wrote.")
        if head["schema"] > SCHEMA:
            raise ReverieError(f"'{path}' was written by a newer Reverie (data format {head['schema']}); update first.")
        spec = config.from_json(head.get("spec"))
        if not isinstance(spec, Spec):
            raise ReverieError(f"'{path}' is not a dataset that Reverie wrote: it has no spec.")
        texts: dict[str, Any] = {name: head.get(name) or [""] * len(lengths) for name in TEXTS}
        for name, each in texts.items():
            if not isinstance(each, list) or list(map(type, each)) != [str] * len(lengths):
                raise ReverieError(f"'{path}' is damaged: its {name} are not those of {len(lengths)} episodes.")
        dataset = cls(spec, lengths, arrays, fingerprint=str(head.get("fingerprint")), **texts)
        for name, kind in (("frames", np.uint8), ("actions", spec.actions.dtype)):
            if name not in arrays or arrays[name].dtype != kind:
                raise ReverieError(f"'{path}' has no array '{name}' of {np.dtype(kind).name}.")
        if dataset.fingerprint != _fingerprint(head["spec"], dataset):
            raise ReverieError(f"'{path}' is damaged: its content does not match its own fingerprint; write it again.")
        return dataset


def _numbers(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "biuf" or array.ndim != 1 or not np.isfinite(array).all():
        raise ReverieError(
            f"'{path}' has {name} {array.dtype} {array.shape}; it needs one finite number for each frame."
        )
    return array


def _number(path: Path, name: str, array: np.ndarray) -> float:
    if array.dtype.kind not in "iuf" or array.shape not in ((), (1,)) or not 0 < array.item() <= FASTEST:
        raise ReverieError(f"'{path}' has {name} {str(array)[:40]}; it needs one number above 0, {FASTEST} at most.")
    return float(array.item())


def whole_lengths(lengths: Any) -> np.ndarray:
    """Return episodes' lengths as an int64 array; ReverieError unless they are whole numbers of frames."""
    found = np.asarray(lengths)
    if not len(found.shape) == 1 or (len(found) and found.dtype.kind not in "iu"):
        raise ReverieError(f"episodes' lengths are whole numbers of frames, not {found.dtype} {found.shape}.")
    if len(found) and not 0 < found.min() <= found.max() < 2**31:
        raise ReverieError(f"episodes have at least 1 frame; these have {found.min()} to {found.max()}.")
    return found.astype(np.int64)


def _fingerprint(spec: dict, dataset: ArrayDataset) -> str:
    """``spec`` is JSON as stored: specs of older versions lack newer fields."""
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode())
    digest.update(dataset.lengths.tobytes())
    for name, array in sorted(dataset.arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        for at in range(0, len(array), 4096):  # in pieces, since a memory-mapped array may be larger than memory
            digest.update(np.ascontiguousarray(array[at : at + 4096]).tobytes())
    return digest.hexdigest()[:16]
