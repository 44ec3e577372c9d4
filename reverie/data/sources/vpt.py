"""OpenAI's Minecraft recordings for VPT: a video NAME.mp4 beside NAME.jsonl, one line per frame.

A line says which keys and mouse buttons were held *at* its frame and how far the mouse moved. Actions are VPT's: 23
keys, and the camera's movement in 11 bins of pitch times 11 of yaw, finer near 0 (mu-law). As in VPT's own loader, an
attack that is held from the first line on counts only when it is pressed again, and the wheel counts as the key of its
slot.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np

from reverie import bounded
from reverie.actions import ActionSpace
from reverie.data.episode import Spec
from reverie.data.sources import clips, files
from reverie.data.sources.recognise import is_vpt
from reverie.data.sources.recordings import UNREADABLE, FileSource, Found, Recording, at
from reverie.data.sources.spaces import Coding
from reverie.errors import Damaged

KEYS = (
    *("ESC", "back", "drop", "forward"),
    *(f"hotbar.{slot}" for slot in range(1, 10)),
    *("inventory", "jump", "left", "right", "sneak", "sprint", "swapHands", "attack", "use", "pickItem"),
)
KEYBOARD = {
    "escape": "ESC",
    "s": "back",
    "q": "drop",
    "w": "forward",
    "e": "inventory",
    "space": "jump",
    "a": "left",
    "d": "right",
    "left.shift": "sneak",
    "left.control": "sprint",
    "f": "swapHands",
    **{str(slot): f"hotbar.{slot}" for slot in range(1, 10)},
}
MOUSE = {0: "attack", 1: "use", 2: "pickItem"}
DEGREES = 360 / 2400  # of a pixel that the mouse moves
LARGEST, BINS, MU = 10.0, 11, 10.0  # degrees that a bin can say, bins, and how much finer they are near 0
RATE = 20.0  # frames per second of the recorder
BYTES = 2**28  # of a .jsonl
ENDINGS = (".mp4",)


def camera_bins(pitch: float, yaw: float) -> int:
    """Return the bin, 0..120, of a camera's movement in degrees."""
    turns = np.clip(np.array([pitch, yaw]), -LARGEST, LARGEST) / LARGEST
    coded = np.sign(turns) * np.log1p(MU * np.abs(turns)) / np.log1p(MU)
    rows = np.round((coded + 1) * (BINS - 1) / 2).astype(int)
    return int(rows[0] * BINS + rows[1])


def _space() -> ActionSpace:
    """Return 23 keys, each held or not, and the camera's bins, of which the middle one is no movement."""
    edges = (np.arange(BINS) * 2 / (BINS - 1)) - 1
    turns = np.sign(edges) * ((1 + MU) ** np.abs(edges) - 1) / MU * LARGEST
    camera = [f"camera {pitch:.1f} {yaw:.1f}" for pitch in turns for yaw in turns]
    camera[camera_bins(0, 0)] = "stay"
    names = [name for key in KEYS for name in ("none", key)]
    return ActionSpace("multi", len(KEYS) + 1, (*names, *camera), sizes=(*(2,) * len(KEYS), BINS * BINS))


@dataclass(frozen=True, kw_only=True)
class VPTConfig(FileSource):
    """OpenAI's Minecraft recordings (VPT): videos and .jsonl files of keys and mouse."""

    @classmethod
    def of(cls, path: Path, inside: list[Path]) -> Self | None:
        """Return this source of ``path`` if it holds videos with VPT's action files beside them."""
        found = files.ending(inside, ENDINGS)
        return cls(path=str(path)) if any(is_vpt(video.with_suffix(".jsonl")) for video in found[:20]) else None

    def spec(self) -> Spec:
        """Return what all episodes have in common; with ``size`` that is known before there are any files."""
        if self.size is None or Path(self.path).exists():
            return super().spec()
        return Spec((*self.size, 3), _space(), self.fps or RATE, "vpt")

    def look(self, inside: list[Path]) -> Found:
        """Return one recording for each video, in the order of the names: segments of a session follow each other."""
        found, root = Found(fps=RATE, coding=Coding(space := _space(), first=(0,) * space.size)), Path(self.path)
        videos = {files.name_of(file, root): file for file in sorted(files.ending(inside, ENDINGS), key=files.natural)}
        found.recordings = found.made((name, partial(_recording, name, file, found)) for name, file in videos.items())
        for table in files.ending(inside, (".jsonl",)):
            if is_vpt(table) and not table.with_suffix(ENDINGS[0]).is_file():
                found.skip(files.name_of(table, root), f"it has no {ENDINGS[0]} beside it")
        return found


def _recording(name: str, video: Path, found: Found) -> Recording:
    track = clips.track(video)
    frames, table, rows = clips.count(track), video.with_suffix(".jsonl"), None
    if not frames:
        raise Damaged("it shows no frames")
    if table.is_file():
        lines, ticks = _rows(name, table, found)
        places, how = np.arange(len(lines)), ""
        if len(lines) < frames and (np.diff(ticks) > 0).all() and ticks[-1] - ticks[0] == frames - 1:
            places, how = (ticks - ticks[0]).astype(int), ", placed by their ticks"  # lines are missing in the middle
        if len(lines) != frames:
            found.say(f"{name}: {len(lines)} lines for {frames} frames{how}; frames without a line are unlabelled")
        rows = np.full((max(frames, len(lines)), len(KEYS) + 1), np.nan)
        rows[places] = lines
    else:
        found.say(f"{name} has no .jsonl beside it: used without actions")
    return Recording(name, frames, partial(clips.pictures, track), actions=at(rows, frames), source=_session(video))


def _session(video: Path) -> str:
    """Return the session that a segment of five minutes belongs to: its name without the date and time."""
    parts = video.stem.split("-")
    return "-".join(parts[:-2]) if len(parts) > 2 and all(part.isdecimal() for part in parts[-2:]) else video.stem


def _rows(name: str, table: Path, found: Found) -> tuple[np.ndarray, np.ndarray]:
    """Return the actions (R, 24) and ticks (R,) that the lines of a file say; nan where a line cannot be read."""
    lines = bounded.read_lines(table, BYTES, errors="replace")
    ticks = np.full(len(lines), np.nan)
    rows = np.full((len(lines), len(KEYS) + 1), np.nan)
    hangs, slot, broken = False, 0, 0
    for number, line in enumerate(lines):
        try:
            row = bounded.parse_json(line, "a line")
            mouse, keyboard = row.get("mouse") or {}, row.get("keyboard") or {}  # null where nothing came in
            pressed, buttons = mouse.get("newButtons") or [], list(mouse.get("buttons") or [])
            hangs = pressed == [0] if number == 0 else hangs and 0 not in pressed
            held = {KEYBOARD.get(key.removeprefix("key.keyboard.")) for key in keyboard.get("keys") or []}
            held |= {MOUSE.get(button) for button in buttons if not (hangs and button == 0)}
            now = slot if row.get("hotbar") is None else int(row["hotbar"])
            held |= {f"hotbar.{now + 1}"} if now != slot else set()
            slot = now
            ticks[number] = row.get("tick", np.nan)
            turn = (float(mouse.get(way) or 0.0) * DEGREES for way in ("dy", "dx"))
            rows[number] = [*(key in held for key in KEYS), camera_bins(*turn)]
        except UNREADABLE:
            broken += 1
    if broken:
        found.say(f"{name}: {broken} of {len(lines)} lines cannot be read: unlabelled")
    return rows, ticks
