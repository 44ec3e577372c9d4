"""Copying episodes from stores into other stores, in a folder that survives a killed process."""

import contextlib
import hashlib
import json
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reverie import locks
from reverie.data.codecs import AUTO, PROBED, ZSTD, codec_of, probed
from reverie.data.episode import CHUNK, Spec
from reverie.data.filling import FRAMES, MANIFEST, About, Entry, Stored, copy_of, fill
from reverie.data.splits import NoSplit
from reverie.data.store import begin, finish, open_dataset, refuse_existing
from reverie.errors import ReverieError


class Recorded(NamedTuple):
    """An episode of a store, and where it goes. whose: the number of its store."""

    entry: Entry
    dataset: Any
    episode: int
    whose: int

    @property
    def origin(self) -> tuple[str, str, str]:
        """The recording it is a part of: names of files are those of their folder."""
        folder = ""
        with contextlib.suppress(ValueError, AttributeError):  # another program may have written anything
            folder = str(json.loads(self.dataset.provenance).get("path", ""))
        return self.dataset.spec.source, folder, self.entry.source

    def with_actions(self, actions: np.ndarray) -> "Recorded":
        """Return the episode with these actions (T, ...) in place of its own."""
        old = self.entry.window

        def window(start: int, stop: int) -> dict[str, np.ndarray]:
            return old(start, stop) | {"actions": actions[start:stop]}

        return self._replace(entry=replace(self.entry, window=window, stored=Entry.stored))


@dataclass(frozen=True)
class Store:
    """All splits of a store. spec, licence, provenance and notes are those of each."""

    path: Path
    splits: dict[str, Any]

    @property
    def any(self) -> Any:
        """One of its splits."""
        return next(iter(self.splits.values()))

    @property
    def codec(self) -> str:
        """What packs its frames; zstd if it is one file, or a mixture."""
        return getattr(self.any, "codec", ZSTD)

    def episodes(self, whose: int = 0) -> Iterator[Recorded]:
        """Yield every episode, each in the split that it is in."""
        for split, dataset in self.splits.items():
            for episode in range(len(dataset.lengths)):
                yield Recorded(copy_of(split, dataset, episode), dataset, episode, whose)


def opened(path: str | Path) -> Store:
    """Return all splits of a store or .npz file, "train" first; ReverieError if there is none."""
    path, names = Path(path), []
    try:
        open_dataset(path, "")  # no split has this name
    except NoSplit as error:
        names = sorted(error.known, key=lambda name: (name != "train", name))
    return Store(path, {name: open_dataset(path, name) for name in names})


class Concatenated:
    """The episodes of several datasets as one, as far as they are needed to divide them."""

    def __init__(self, parts: Sequence[Any]):
        self.spec, self.split, self.kinds, self.fingerprint = parts[0].spec, "", parts[0].kinds, ""
        if any(part.kinds != self.kinds for part in parts):
            raise ReverieError("its episodes hold different arrays: a store needs the same of each.")
        self.sources = [source for part in parts for source in part.sources]
        self.tasks = [task for part in parts for task in part.tasks]
        self.lengths = np.concatenate([part.lengths for part in parts])
        self._where = [(part, episode) for part in parts for episode in range(len(part.lengths))]

    def read(self, episode: int, start: int, length: int, names: Any = None) -> dict[str, np.ndarray]:
        """Return a window of one episode; see ``Dataset.read``."""
        part, own = self._where[episode]
        return part.read(own, start, length, names)

    def stored(self, episode: int, start: int, stop: int) -> Stored | None:
        """Return where a window lies, if it is one record; see ``filling.Entry``."""
        part, own = self._where[episode]
        return part.stored(own, start, stop)

    def entries(self, split: str) -> Iterator[Entry]:
        """Yield the entries of all episodes, to one split."""
        return (copy_of(split, self, episode) for episode in range(len(self.lengths)))


def chosen_for(codec: str, dataset: Any) -> str:
    """Return the name of the codec for a dataset: "auto" probes frames of eight episodes, and says what it found."""
    if codec != AUTO:
        codec_of(codec)
        return codec
    lengths, size = dataset.lengths, CHUNK * math.prod(dataset.spec.frame)
    count = min(8, max(1, PROBED // size))
    episodes = np.unique(np.linspace(0, len(lengths) - 1, count).astype(int)).tolist()
    first = (dataset.read(episode, 0, min(CHUNK, int(lengths[episode])), (FRAMES,)) for episode in episodes)
    name, line = probed(arrays[FRAMES] for arrays in first)
    print(line, file=sys.stderr)
    return name


def codec_for(codec: str, stores: Sequence[Store]) -> str:
    """Return the name of the codec for a store made of others: "auto" is that of all of them, or zstd."""
    if codec != AUTO:
        codec_of(codec)
        return codec
    return stores[0].codec if len({store.codec for store in stores}) == 1 else ZSTD


def packing_of(store: Store) -> str:
    """Return a line about the codec of a store and its size on disk."""
    path = store.path
    size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()) if file.is_file())
    raw = sum(int(part.lengths.sum()) for part in store.splits.values()) * math.prod(store.any.spec.frame)
    lossy = "" if codec_of(store.codec).lossless else ", which loses detail"
    ratio = raw / max(size, 1)
    return f"codec: {store.codec}{lossy}; {size / 1e6:.1f} MB on disk, {ratio:.1f} times smaller than its frames"


def write_new(out: Path, spec: Spec, entries: list[Entry], about: About) -> str:
    """Write a new store, unless it is there already."""
    if there := made_already(out, entries, about):
        return there
    count = count_of(entries)
    if out.suffix == ".npz":
        raise ReverieError(f"'{out}' is to be a folder: stores in one file are not made out of others.")
    begin(out)
    key = key_of(about.provenance, about.codec, *(f"{entry.split} {entry.source} {entry.length}" for entry in entries))
    with workplace(out, f"{key}.part") as part:
        fill(part, spec, entries, about, journal=True)
        finish(part, out)
    return f"{out}: {count}"


def made_already(out: Path, entries: list[Entry], about: About) -> str:
    """Return the line for a store that is there already, "" if nothing is; ReverieError if something else is."""
    if (out / MANIFEST).is_file() and _is_made(out, entries, about):
        return f"{out}: it is there already ({count_of(entries)})"
    refuse_existing(out)
    return ""


def count_of(entries: list[Entry]) -> str:
    """Return how much these are, for people."""
    return f"{len(entries)} episodes, {sum(entry.length for entry in entries)} frames"


def _is_made(out: Path, entries: list[Entry], about: About) -> bool:
    """Whether a store holds these episodes, of this provenance."""
    found = opened(out)
    there = [(one.entry.split, one.entry.length, one.entry.source) for one in found.episodes()]
    wanted = [(entry.split, entry.length, entry.source) for entry in entries]
    same = (found.any.provenance, found.codec) == (about.provenance, about.codec)
    return same and sorted(there) == sorted(wanted)


@contextlib.contextmanager
def workplace(path: Path, name: str) -> Iterator[Path]:
    """Yield a hidden folder beside ``path``, the same for the same work, so that a killed command resumes there."""
    part = path.parent / f".{path.name}.{name}"
    part.mkdir(exist_ok=True)
    lock = part.with_suffix(".lock")
    with lock.open("w") as file:
        try:
            locks.lock(file)
        except OSError:
            raise ReverieError(f"another process is writing '{path}'; wait for it.") from None
        try:
            yield part
        except ReverieError:  # it would fail again; what is complete goes
            shutil.rmtree(part, ignore_errors=True)
            raise
        else:
            shutil.rmtree(part, ignore_errors=True)
        finally:
            lock.unlink(missing_ok=True)


def made_of(how: str, stores: Sequence[Store]) -> str:
    """Return the provenance of a store made of others."""
    return json.dumps({"how": how, "stores": [about_of(store) for store in stores]})


def about_of(store: Store) -> dict[str, Any]:
    """Return what a store made of others keeps of one of them."""
    fingerprints = {split: dataset.fingerprint for split, dataset in store.splits.items()}
    return {"path": store.path.name, "fingerprints": fingerprints, "provenance": store.any.provenance}


def key_of(*texts: str) -> str:
    """Return a short hash."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def notes_of(stores: Sequence[Store]) -> list[str]:
    """Return the notes of several stores, each once."""
    return list(dict.fromkeys(note for store in stores for note in store.any.notes))
