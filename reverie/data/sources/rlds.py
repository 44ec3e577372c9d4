"""RLDS: episodes that TensorFlow Datasets wrote, as TFRecord or ArrayRecord files beside features.json.

A record is an episode. Action and reward of a row are of the step taken *at* its observation, and mean nothing in the
last row; is_terminal is of the observation itself.
"""

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from reverie import bounded
from reverie.data.records import Records
from reverie.data.sources import files, roles
from reverie.data.sources.examples import example, read_record, tfrecords
from reverie.data.sources.pictures import decoded_each, is_encoded, is_picture, rgb, side_by_side
from reverie.data.sources.recordings import UNREADABLE, FileSource, Found, Recording, at, to
from reverie.data.sources.spaces import one_vector
from reverie.errors import ReverieError, first_line

FEATURES = "features.json"
STEPS, METADATA = "steps/", "episode_metadata/"


@dataclass(frozen=True, kw_only=True)
class RLDSConfig(FileSource):
    """RLDS datasets (TensorFlow Datasets), without TensorFlow."""

    camera: str = ""  # the pictures in an observation; several, joined by commas, are put side by side
    actions: str = ""  # the feature of the actions; empty takes "action", or all its parts

    @classmethod
    def of(cls, path: Path, inside: list[Path]) -> Self | None:
        """Return this source of ``path`` if it holds a dataset of TensorFlow Datasets."""
        shards = [file for file in inside if ".tfrecord" in file.name]
        shards += [f for f in inside if ".array_record" in f.name and (f.parent / FEATURES).is_file()]
        return cls(path=str(path)) if shards else None

    def look(self, inside: list[Path]) -> Found:
        """Return one recording for each record, in the order of the files' names."""
        found, root = Found(), Path(self.path)
        shards = [file for file in inside if ".tfrecord" in file.name or ".array_record" in file.name]
        folder = self.one_of(file.parent for file in shards)
        layout = _layout(folder / FEATURES, found) if folder else _Layout({}, {})
        lost = 0
        for file in sorted(shards, key=files.natural):
            name = files.name_of(file, root)
            try:
                for place, data in enumerate(_records(file)):
                    try:
                        lost += self._add(found, f"{name}, record {place}", data, layout)
                    except UNREADABLE as error:
                        found.skip(f"{name}, record {place}", error)
            except UNREADABLE as error:
                found.skip(f"the rest of {name}", error)
        if lost:
            found.say(f"{lost} recordings have no last row that stands for the end: its action and reward are left out")
        return found

    def _add(self, found: Found, name: str, data: "_Record", layout: "_Layout") -> bool:
        features, shapes = _features(data.read(), layout), layout.shapes
        of_steps = {key: value for key, value in features.items() if key.startswith(STEPS)}
        options = [k.removeprefix(STEPS) for k, value in of_steps.items() if _are_pictures(k, value, shapes.get(k))]
        if not options:
            raise ReverieError(f"it holds no pictures (it has {', '.join(features)[:200]})")
        cameras = roles.cameras(self.camera, roles.by_likeness(options), found.say)
        keys = [STEPS + camera for camera in cameras]
        length = len(features[keys[0]]) // _numbers_of(features[keys[0]], shapes.get(keys[0]))
        rows = {key.removeprefix(STEPS): _rows(value, length, shapes.get(key)) for key, value in features.items()}
        steps = {key: array for key, array in rows.items() if array is not None}
        last = steps.get("is_last")
        text = next((features[k] for k in features if k.startswith(STEPS) and roles.last(k) in roles.TASKS), None)
        reward = roles.find(steps, roles.REWARDS)
        found.recordings.append(
            Recording(
                name=name,
                length=length,
                frames=partial(_frames, data, keys, layout),
                actions=at(_actions(steps, self.actions, found), length),
                rewards=None if reward is None else at(steps[reward], length),
                ends=to(steps.get("is_terminal"), length),
                task=bytes(text[0]).decode(errors="replace") if isinstance(text, list) and text else "",
                source=_origin(features) or name,
            )
        )
        return last is not None and not bool(last[-1])


@dataclass(frozen=True)
class _Record:
    """Where one record lies: ``offset`` bytes into a TFRecord file, or by number in an ArrayRecord."""

    file: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Return its bytes; Damaged if some of them have changed."""
        if ".tfrecord" not in self.file.name:
            return Records(self.file)[self.offset]
        return read_record(self.file, self.offset, self.size)


@dataclass(frozen=True)
class _Layout:
    """What is declared of features, by their names in the records: the shape of one step's entry, in order.

    packed: the type of those whose entries are bytes of numbers, and whether these are compressed.
    """

    shapes: dict[str, tuple[int, ...]]
    packed: dict[str, tuple[np.dtype, bool]]


def _features(data: bytes, layout: _Layout) -> dict[str, np.ndarray | list[memoryview]]:
    """Return the features of a record as declared, else by name: in the records their order is an accident."""
    features = example(data)
    for name, (kind, zipped) in layout.packed.items():
        if isinstance(value := features.get(name), list):
            size = math.prod(layout.shapes[name]) * kind.itemsize
            parts = [zlib.decompressobj().decompress(part, size) if zipped else bytes(part) for part in value]
            features[name] = np.frombuffer(b"".join(parts), kind)
    return {key: features[key] for key in dict.fromkeys([*layout.shapes, *sorted(features)]) if key in features}


def _records(file: Path) -> Iterator[_Record]:
    if ".tfrecord" in file.name:
        yield from (_Record(file, offset, size) for offset, size in tfrecords(file))
    else:
        yield from (_Record(file, place, 0) for place in range(len(Records(file))))


def _frames(record: _Record, cameras: Sequence[str], layout: _Layout) -> Iterator[np.ndarray | None]:
    features = _features(record.read(), layout)
    return side_by_side([_view(features[camera], layout.shapes.get(camera)) for camera in cameras])


def _view(value: np.ndarray | list[memoryview], shape: tuple[int, ...] | None) -> Iterator[np.ndarray | None]:
    return iter(rgb(value.reshape(-1, *(shape or ())))) if isinstance(value, np.ndarray) else decoded_each(value)


def _are_pictures(name: str, value: np.ndarray | list[memoryview], shape: tuple[int, ...] | None) -> bool:
    """Whether a feature of steps is encoded pictures, or numbers of a picture's declared shape."""
    if isinstance(value, list):
        return len(value) > 0 and is_encoded(bytes(value[0][:8]))
    whole = len(value) > 0 and is_picture((1, *(shape or ())), "u1", named=roles.shows(name))
    if value.dtype.kind == "f":
        return whole and roles.shows(name)
    return whole and value.dtype.kind in "iu" and 0 <= value.min() <= value.max() <= 255


def _numbers_of(value: np.ndarray | list[memoryview], shape: tuple[int, ...] | None) -> int:
    """Return how many entries of a feature belong to one step."""
    return math.prod(shape or ()) if isinstance(value, np.ndarray) else 1


def _rows(value: np.ndarray | list[memoryview], length: int, shape: tuple[int, ...] | None) -> np.ndarray | None:
    """Return a feature of steps as an array with a row for each; None if it has another length."""
    if isinstance(value, list) or not len(value) or len(value) % length:
        return None
    own = shape if shape is not None and math.prod(shape) * length == len(value) else None
    if own is None:
        own = () if len(value) == length else (-1,)
    return value.reshape(length, *own)


def _actions(steps: dict[str, np.ndarray], key: str, found: Found) -> np.ndarray | None:
    others = roles.KNOWN - {*roles.ACTIONS}
    names = [name for name in steps if key or roles.last(name) not in others]
    return one_vector([steps[name] for name in roles.acting(key, names, found.say)])


def _origin(features: dict[str, np.ndarray | list[memoryview]]) -> str:
    """Return the file that an episode came from, where its metadata say so."""
    value = features.get(f"{METADATA}file_path")
    return bytes(value[0]).decode(errors="replace") if isinstance(value, list) and value else ""


def _layout(path: Path, found: Found) -> _Layout:
    """Return what a file declares of features; nothing if there is none."""
    shapes, packed = {}, {}
    try:
        for name, about in _leaves(bounded.read_json(path), "") if path.is_file() else ():
            shapes[name] = tuple(int(size) for size in about.get("shape", {}).get("dimensions", ()))
            if (coding := about.get("encoding")) in ("bytes", "zlib"):
                packed[name] = np.dtype(str(about["dtype"])), coding == "zlib"
    except UNREADABLE as error:
        found.say(f"{path.name} cannot be read ({first_line(error)}): shapes are taken from the records")
        return _Layout({}, {})
    return _Layout(shapes, packed)


def _leaves(feature: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    inner = feature.get("featuresDict", {}).get("features", {})
    for name, part in inner.items():
        yield from _leaves(part, f"{path}/{name}" if path else name)
    if "sequence" in feature:
        yield from _leaves(feature["sequence"]["feature"], path)
    for kind in ("tensor", "image", "text"):
        if kind in feature:
            yield path, feature[kind]
