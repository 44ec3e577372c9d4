"""LeRobot's datasets, v2 (one file per episode) and v3 (files shared by episodes): tables beside videos or pictures.

A row holds what was seen at a frame, the action commanded *at* it, and the reward of the step after it ("next.reward").
Frames are found by time: each row's timestamp, after the moment at which its episode begins in the video.
"""

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from reverie import bounded
from reverie.data.sources import clips, roles
from reverie.data.sources.parquet import numbers, pyarrow, table_of
from reverie.data.sources.pictures import decoded, rgb, side_by_side
from reverie.data.sources.recordings import UNREADABLE, FileSource, Found, Recording, at
from reverie.data.sources.spaces import Declared, one_vector
from reverie.errors import Damaged, ReverieError

INFO = "meta/info.json"
BYTES = 2**28  # of a list of episodes
OWN = ("timestamp", "episode_index", "task_index")
COUNTED = (*OWN, "frame_index", "index")  # features that number rows
log = logging.getLogger(__name__)
REWARDS, DONES = ("next.reward", "reward"), ("next.done", "done")


@dataclass(frozen=True, kw_only=True)
class LeRobotConfig(FileSource):
    """LeRobot datasets, v2.0, v2.1 and v3.0."""

    camera: str = ""  # the camera, or the end of its name; several, joined by commas, are put side by side
    actions: str = ""  # the column of the actions, or several; empty takes the one named so

    @classmethod
    def of(cls, path: Path, inside: list[Path]) -> Self | None:
        """Return this source of ``path`` if it holds a LeRobot dataset."""
        infos = [file.parents[1] for file in inside if file.as_posix().endswith(f"/{INFO}")]
        return cls(path=str(path)) if any((root / "data").is_dir() for root in infos) else None

    def look(self, inside: list[Path]) -> Found:
        """Return the recordings of the dataset, in the order of their numbers."""
        pyarrow()  # if it is missing, that is one line, not one for each file
        root = self.one_of(file.parents[1] for file in inside if file.as_posix().endswith(f"/{INFO}"))
        return Found() if root is None else _Set(root, self).found()


class _Set:
    """One dataset. info: of its features; reels: the videos in use, by camera."""

    def __init__(self, root: Path, config: LeRobotConfig):
        self.root, self.config = root, config
        self.info = _json(root / INFO)
        features = self.info.get("features")
        if not isinstance(features, dict) or not all(isinstance(value, dict) for value in features.values()):
            raise ReverieError(f"'{root / INFO}' names no features.")
        self.features: dict[str, dict[str, Any]] = features
        self.reels: dict[str, tuple[Path, clips.Reel]] = {}

    def found(self) -> Found:
        """Return what is in the dataset."""
        found = Found(fps=float(self.info.get("fps") or 0))
        options = [key for key, value in self.features.items() if value.get("dtype") in ("video", "image")]
        options.sort(key=self._is_depth)
        if not options:
            raise ReverieError(f"'{self.root}' has no cameras: its features are {', '.join(self.features)[:200]}.")
        cameras = roles.cameras(self.config.camera, options, found.say)
        numeric = [k for k, v in self.features.items() if v.get("dtype") not in ("video", "image", "string")]
        keys = roles.acting(self.config.actions, [key for key in numeric if key not in COUNTED], found.say)
        names = [_names(self.features[key].get("names")) for key in keys]
        found.declared = Declared(names=sum(names, ()) if all(names) else ())
        tasks, lost, made = self._tasks(found), 0, {}
        for episode, rows in self._episodes(keys, found):
            number = int(episode["episode_index"])
            try:
                recording = self._recording(number, episode, rows, keys, cameras, tasks)
            except UNREADABLE as error:
                found.skip(f"episode {number}", error)
                continue
            lost += any(_last(rows.get(name)) for name in REWARDS + DONES)
            made[number] = recording
        found.recordings = [made[number] for number in sorted(made)]
        if lost:
            found.say(f"the last reward or end of {lost} recordings led to a frame that is not in the files: left out")
        return found

    def _recording(
        self,
        number: int,
        episode: dict[str, Any],
        rows: dict[str, np.ndarray],
        keys: list[str],
        cameras: tuple[str, ...],
        tasks: dict[int, str],
    ) -> Recording:
        length = len(rows["timestamp"])
        declared = episode.get("length")
        if declared is not None and int(declared) != length:
            raise ReverieError(f"its table has {length} rows, its metadata say {declared}")
        reward = next((rows[name] for name in REWARDS if name in rows), None)
        done = next((rows[name] for name in DONES if name in rows), None)
        tasks_here = episode.get("tasks")
        own = tasks.get(int(rows["task_index"][0])) if "task_index" in rows and length else None
        named = tasks_here[0] if isinstance(tasks_here, list) and tasks_here else ""
        return Recording(
            name=f"episode {number}",
            length=length,
            frames=partial(self._frames, number, episode, rows["timestamp"], cameras),
            actions=at(one_vector([rows[key] for key in keys if key in rows]), length),
            rewards=None if reward is None else at(reward.reshape(-1), length),
            ends=None if done is None else at(roles.is_set(done.reshape(-1)), length),
            task=own or str(named),
        )

    def _is_depth(self, camera: str) -> bool:
        about = self.features[camera].get("info")
        marked = isinstance(about, dict) and bool(about.get("video.is_depth_map") or about.get("is_depth_map"))
        return marked or "depth" in camera

    # -- tables ------------------------------------------------------------------------------------------------------

    def _episodes(self, keys: list[str], found: Found) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
        """Yield the metadata and the rows of each episode; files that cannot be read are skipped."""
        wanted = [*OWN, "frame_index", *REWARDS, *DONES, *keys]
        known, done, count, untimed = self._metadata(found), set(), 0, 0
        for path in sorted((self.root / "data").rglob("*.parquet")):
            try:
                table = table_of([path], wanted)
                index = numbers(table["episode_index"]).reshape(-1)
                columns = {name: numbers(table[name]) for name in table.column_names}
                if "timestamp" not in columns:
                    untimed += 1
                    columns["timestamp"] = _times(columns, index, found.fps)
            except UNREADABLE as error:
                found.skip(path.name, error)
                continue
            for number in dict.fromkeys(index.tolist()):  # in the order they come in
                rows = np.flatnonzero(index == number)
                rows = rows[np.argsort(columns["timestamp"][rows].reshape(-1), kind="stable")]
                episode = known.get(number, {"episode_index": number}) | {"_table": path}
                done.add(number)
                count += 1
                yield episode, {name: column[rows] for name, column in columns.items()}
        if untimed:
            found.say(f"{untimed} tables have no column 'timestamp': their rows count at {found.fps:g} per second")
        missing = sorted(set(known) - done)
        if missing:
            some = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
            found.skip(f"episode {some}", "its rows are missing")

    def _metadata(self, found: Found) -> dict[int, dict[str, Any]]:
        """Return the metadata of each episode by its number."""
        old = self.root / "meta" / "episodes.jsonl"
        try:
            if old.is_file():
                rows = bounded.read_json_lines(old, BYTES)
            else:
                paths = sorted((self.root / "meta" / "episodes").rglob("*.parquet"))
                rows = table_of(paths, _columns(paths)).to_pylist() if paths else []
            return {int(row["episode_index"]): row for row in rows}
        except UNREADABLE as error:
            found.say(f"the metadata of episodes cannot be read ({error}): tables alone say where they end")
            return {}

    def _tasks(self, found: Found) -> dict[int, str]:
        """Return the texts of tasks by number; in newer files the text is the index of the table."""
        try:
            old, new = self.root / "meta" / "tasks.jsonl", self.root / "meta" / "tasks.parquet"
            if old.is_file():
                rows = bounded.read_json_lines(old, BYTES)
            else:
                rows = table_of([new]).to_pylist() if new.is_file() else []
            texts = ("task", "__index_level_0__")
            found_texts = ((row["task_index"], next((row[k] for k in texts if k in row), "")) for row in rows)
            return {int(number): str(text) for number, text in found_texts}
        except UNREADABLE as error:
            found.say(f"the texts of tasks cannot be read ({error})")
            return {}

    # -- pictures ----------------------------------------------------------------------------------------------------

    def _frames(self, number: int, episode: dict[str, Any], times: np.ndarray, cameras: tuple[str, ...]):
        views = [self._view(number, episode, times.reshape(-1).astype(np.float64), camera) for camera in cameras]
        return side_by_side(views)

    def _view(self, number: int, episode: dict[str, Any], times: np.ndarray, camera: str):
        if self.features[camera].get("dtype") == "image":
            yield from self._stored(episode["_table"], number, camera)
            return
        start = f"videos/{camera}/from_timestamp"
        path = self._video(number, episode, camera)
        if camera not in self.reels or self.reels[camera][0] != path:
            self.reels[camera] = path, clips.Reel(path)
            shown = self.reels[camera][1].track.packets
            if start not in episode and shown > len(times):
                log.warning("episode %d: its video has %d frames for %d rows: left out", number, shown, len(times))
        reel, begins = self.reels[camera][1], float(episode.get(start) or 0.0)
        if start not in episode and len(times) and times[0] > reel.track.span:
            log.warning("episode %d: its times begin at %g s, after its video: counted from there", number, times[0])
            begins = -times[0]
        yield from reel.at(times + begins)

    def _stored(self, table: Path, number: int, camera: str) -> Iterator[np.ndarray | None]:
        """Yield the pictures of an episode that are in its table, or in files that it names."""
        of_episode = [("episode_index", "=", number)]
        there = pyarrow().parquet.read_schema(table).names
        order = [name for name in ("timestamp", "frame_index") if name in there][:1]
        rows = pyarrow().parquet.read_table(table, columns=[camera, *order], filters=of_episode)
        for row in (rows.sort_by(order[0]) if order else rows)[camera].to_pylist():
            try:
                data = row.get("bytes") if isinstance(row, dict) else row
                if isinstance(data, list):  # numbers of pixels
                    yield rgb(np.array([data], np.uint8))[0]
                    continue
                yield decoded(data if data else self._file(Path(row["path"]), number, camera))
            except (Damaged, OSError, TypeError, KeyError):
                yield None

    def _file(self, path: Path, number: int, camera: str) -> bytes:
        """Return a picture's file: at ``path`` below the dataset, else by its name in the episode's folder."""
        usual = self.root / "images" / camera / f"episode_{number:06d}" / path.name
        if path.is_absolute() or ".." in path.parts or not (self.root / path).is_file():
            return bounded.read_bytes(usual, BYTES)
        return bounded.read_bytes(self.root / path, BYTES)

    def _video(self, number: int, episode: dict[str, Any], camera: str) -> Path:
        """Return the file of an episode's video, by the pattern that the dataset declares."""
        size = int(self.info.get("chunks_size") or 1000)
        chunk = episode.get(f"videos/{camera}/chunk_index")
        values = {
            "video_key": camera,
            "episode_index": number,
            "episode_chunk": number // size,
            "chunk_index": chunk,
            "file_index": episode.get(f"videos/{camera}/file_index"),
        }

        def filled(match: re.Match[str]) -> str:
            value = values.get(match[1])
            if value is None:
                raise Damaged(f"its metadata do not say the {match[1]} of {camera}")
            return f"{int(value):0{int(match[2] or 0)}d}" if match[1] != "video_key" else str(value)

        pattern = str(self.info.get("video_path"))
        name = re.sub(r"\{(\w+)(?::0?(\d{1,2})d)?\}", filled, pattern)
        place = Path(name)
        if place.is_absolute() or ".." in place.parts:
            raise Damaged(f"its video would be outside the dataset ({name[:80]})")
        if not (self.root / place).is_file():
            raise Damaged(f"its video '{name[:120]}' is missing")
        return self.root / place


def _columns(paths: list[Path]) -> list[str]:
    """Return the columns of episodes' metadata without their statistics, of which there are hundreds."""
    schema = pyarrow().parquet.read_schema
    return list(dict.fromkeys(n for path in paths for n in schema(path).names if not n.startswith("stats/")))


def _json(path: Path) -> dict[str, Any]:
    try:
        found = bounded.read_json(path)
    except (Damaged, json.JSONDecodeError) as error:
        raise ReverieError(f"'{path}' is damaged ({error})") from None
    if not isinstance(found, dict):
        raise ReverieError(f"'{path}' is damaged: it holds no object")
    return found


def _names(names: Any) -> tuple[str, ...]:
    """Return the names of an action's components, which may be a list, a dict of lists, or null."""
    if isinstance(names, dict):
        names = [name for part in names.values() for name in (part if isinstance(part, list) else [])]
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _times(columns: dict[str, np.ndarray], index: np.ndarray, rate: float) -> np.ndarray:
    """Return the times of rows that have none, by their numbers in their episode and the rate of all."""
    if not rate:
        raise Damaged("it has no column 'timestamp', and no frames per second are declared")
    if "frame_index" in columns:
        return columns["frame_index"].reshape(-1) / rate
    places = np.zeros(len(index))
    for number in np.unique(index):
        places[index == number] = np.arange((index == number).sum())
    return places / rate


def _last(rows: np.ndarray | None) -> bool:
    return rows is not None and len(rows) > 0 and bool(np.ravel(roles.is_set(rows[-1]))[0])
