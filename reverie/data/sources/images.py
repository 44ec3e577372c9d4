"""Folders of pictures: every folder with PNG or JPEG files is an episode, sorted by the numbers in their names.

A file ``actions.csv`` (.jsonl, .json, .npy, .npz) in the folder or one above, or one with the folder's name, holds the
actions (``tables``). Row i belongs to frame i, unless there is a column ``frame`` or one of the files' names.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np

from reverie import bounded
from reverie.data.sources import files, roles, tables
from reverie.data.sources.bundles import Alignment
from reverie.data.sources.pictures import decoded, side_by_side
from reverie.data.sources.recognise import recognise
from reverie.data.sources.recordings import NAMED, UNREADABLE, FileSource, Found, Recording
from reverie.data.sources.videos import ENDINGS as VIDEOS
from reverie.errors import Damaged, ReverieError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
BYTES = 2**28  # of one picture's file
CAMERAS = {  # words in the names of folders of one camera each
    *("left", "right", "front", "back", "rear", "top", "overhead", "side", "wrist", "head", "hand", "ego", "agentview"),
    *("cam", "camera", "view", "rgb", "depth", "image", "images"),
}
DECIMAL = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True, kw_only=True)
class ImagesConfig(FileSource):
    """Folders of PNG or JPEG files: every folder is an episode."""

    camera: str = ""  # where an episode has a folder for each camera: which of them; several (A,B) are put side by side
    alignment: Alignment = "at"  # whether row i of the actions was taken at frame i, or led to it
    actions: str = ""  # the column of the actions; empty takes those named so

    @classmethod
    def of(cls, path: Path, inside: list[Path]) -> Self | None:
        """Return this source of ``path`` if it holds pictures."""
        pictures = files.ending(inside, ENDINGS)
        loose = pictures and not files.ending(inside, VIDEOS) and recognise(path, inside, pictures) is None
        return cls(path=str(path)) if loose else None

    def look(self, inside: list[Path]) -> Found:
        """Return one recording for each folder of pictures."""
        root, found, parts, read = Path(self.path), Found(), [], set()
        known = files.ending(inside, tables.ENDINGS)
        pictures = sorted(files.ending(inside, ENDINGS), key=files.natural)
        table_of = tables.Tables(root, known).of
        groups = files.grouped(pictures, lambda file: file.parent)  # other folders may lie between the pictures of one
        for folder, views in self._episodes(groups, found):
            views = [_in_order(view) for view in views]
            frames = views[0]
            name = files.name_of(folder, root) if folder != root else root.absolute().name
            table = table_of(folder)
            if any(len(view) != len(frames) for view in views):
                found.skip(name, f"its cameras have {', '.join(str(len(view)) for view in views)} pictures")
                continue
            steps = self._steps(name, table, frames, found)
            if table and steps.unread:
                some = ", ".join(steps.unread)[:200]
                found.say(
                    f"which of {some} in {files.name_of(table, root)} are actions is not clear; --actions names them"
                )
            read.add(table)
            parts.append((steps.actions, steps.declared))
            shown = partial(_pictures, views)
            found.recordings.append(
                Recording(name, len(frames), shown, rewards=steps.rewards, ends=steps.ends, source=name)
            )
        found.label(parts)
        for table in [table for table in known if table not in read and _tells(table)][:NAMED]:
            found.say(
                f"{files.name_of(table, root)} is not read: actions of a folder are in FOLDER/actions.csv or FOLDER.csv"
            )
        if not pictures:
            found.skip(root.name, "it holds no .png or .jpg files")
        return found

    def _episodes(self, groups: dict[Path, list[Path]], found: Found) -> list[tuple[Path, list[list[Path]]]]:
        """Return the folder of each episode and the pictures of its cameras; without a choice, of every folder.

        But of folders beside each other that are named like cameras and have as many pictures, the first is taken.
        """
        beside = files.grouped(groups, lambda folder: folder.parent)
        if not self.camera:
            rigs = {above: own for above, own in beside.items() if _are_cameras(own, groups)}
            names = roles.by_likeness(dict.fromkeys(folder.name for own in rigs.values() for folder in own))
            first = roles.cameras("", names, found.say)[0] if names else ""
            shown = {own[0] if above / first not in own else above / first: above for above, own in rigs.items()}
            plain = {folder: folder for folder in groups if folder.parent not in rigs} | shown
            return [(plain[folder], [frames]) for folder, frames in groups.items() if folder in plain]
        if self.camera == "all":
            return [(above, [groups[folder] for folder in own]) for above, own in beside.items()]
        chosen = {folder: [groups.get(folder / key) for key in self.camera.split(",")] for folder in beside}
        whole = [(folder, [view for view in views if view]) for folder, views in chosen.items() if all(views)]
        if not whole:
            some = ", ".join(dict.fromkeys(folder.name for folder in groups))
            raise ReverieError(f"no folder has pictures of the camera '{self.camera}'; there are {some[:200]}.")
        return whole

    def _steps(self, name: str, table: Path | None, frames: list[Path], found: Found) -> tables.Steps:
        """Return what the table of a folder says, if it has one."""
        try:
            return tables.Steps() if table is None else tables.steps(table, frames, self.actions, self.alignment)
        except UNREADABLE as error:
            found.say(f"{name} is used without actions: {error}")
            return tables.Steps()


def _are_cameras(folders: list[Path], groups: dict[Path, list[Path]]) -> bool:
    named = len(folders) > 1 and all({*re.split(r"[^a-z]+", folder.name.lower())} & CAMERAS for folder in folders)
    return named and len({len(groups[folder]) for folder in folders}) == 1


def _tells(table: Path) -> bool:
    """Whether a file is likely to hold actions: a .json is often about other things."""
    return table.suffix.lower() != ".json" or "action" in table.name.lower()


def _in_order(frames: list[Path]) -> list[Path]:
    """Return files in natural order by the times in their names, if these are decimals: 0.25 comes before 0.3."""
    times = [float(file.stem) for file in frames if DECIMAL.fullmatch(file.stem)]
    if len({*times}) < len(frames) or not any("." in file.stem for file in frames):  # 1.1 and 1.10 are no decimals
        return frames
    return [file for _, file in sorted(zip(times, frames, strict=True))]


def _pictures(views: list[list[Path]]) -> Iterator[np.ndarray | None]:
    return side_by_side([map(_picture, view) for view in views])


def _picture(file: Path) -> np.ndarray | None:
    try:
        return decoded(bounded.read_bytes(file, BYTES))
    except Damaged:
        return None
