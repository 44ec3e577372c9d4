"""``reverie record screen``: a window of the desktop becomes a dataset, with the keys and the mouse used in it.

Only what happens in that window while it has the focus is kept (``play.x11``). An episode ends when the focus is lost,
when the window is covered, moves or changes its size, or when a frame comes too late. So each episode has one rate.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from reverie.actions import ActionSpace
from reverie.data.episode import Spec
from reverie.data.sources.pictures import resized
from reverie.data.takes import Moment, Take, Takes
from reverie.errors import ReverieError
from reverie.play.x11 import BUTTONS, Look, Window
from reverie.training.signals import stop_signals

POLLS = 8  # looks at the keys for each frame, so that a short tap is seen
MOVES = (-0.1, -0.01, 0.01, 0.1)  # edges of the five levels of the mouse's way within a frame, in window sizes
SIDES = {"x": ("far left", "left", "none", "right", "far right"), "y": ("far up", "up", "none", "down", "far down")}


@dataclass(frozen=True, kw_only=True)
class ScreenConfig:
    """A window of your desktop (X11), recorded while you play in it."""

    window: str = ""  # the title of the window, or a part of it that no other window has
    size: tuple[int, int] = (64, 64)  # height and width of the frames
    fps: float = 10.0  # frames per second
    keys: tuple[str, ...] = ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", " ")  # that are recorded, and no others
    mouse: bool = False  # also record the mouse: its buttons, and its way in five levels to the side and up
    minutes: float = 30.0  # the most that is recorded, pauses not counted
    start: str = "F9"  # the key that starts and pauses
    discard: str = "F10"  # the key that drops the present episode, and pauses

    def __post_init__(self):
        if min(self.size) < 8 or not 0 < self.fps <= 60 or not 0 < self.minutes < float("inf"):
            raise ReverieError(
                f"a recording has frames of 8x8 or more, up to 60 a second, and some minutes, "
                f"not {self.size} at {self.fps:g} for {self.minutes:g}."
            )
        everything = [*self.keys, *(BUTTONS if self.mouse else ()), self.start, self.discard]
        if len(set(everything)) != len(everything) or len(everything) == 2:
            raise ReverieError(f"each key is named once, and there is one to record at least, not {everything}.")

    @property
    def held(self) -> tuple[str, ...]:
        """The keys and buttons that are recorded."""
        return (*self.keys, *BUTTONS) if self.mouse else self.keys

    def spec(self) -> Spec:
        """Keys are binary actions; with the mouse's movement (five levels) they are components of two levels."""
        if not self.mouse:
            space = ActionSpace("binary", len(self.held), tuple(map(_named, self.held)), self.held)
        else:
            names = [name for key in self.held for name in ("none", _named(key))] + [*SIDES["x"], *SIDES["y"]]
            sizes = (*(2,) * len(self.held), len(SIDES["x"]), len(SIDES["y"]))
            space = ActionSpace("multi", len(sizes), tuple(names), sizes=sizes)
        return Spec((*self.size, 3), space, self.fps, "screen")

    def record(self, out: Path, *, val: float, licence: str = "", **_: Any) -> Path | None:
        """Record until Ctrl-C, or until the time is up, and write the store; None if nothing was recorded."""
        takes = Takes(self.spec(), out)
        window = Window(self.window, [*self.held, self.start, self.discard])
        recording = Recording(self, takes)
        print(f"'{window.title}': {self.start} in it starts and pauses, {self.discard} discards, Ctrl-C here ends.")
        with stop_signals() as stop:
            try:
                while not stop(False) and not recording.done:
                    recording.frame(window)
            except ReverieError as gone:
                print(f"{gone} The recording ends.")
            finally:
                window.close()
                recording.cut()
            stop(True)
            return takes.write(val, licence) if takes.files() else None


class Recording:
    """The state between two frames: the take that is recorded, if one is, and the keys since its last frame."""

    def __init__(self, config: ScreenConfig, takes: Takes):
        self.config, self.takes, self.spec = config, takes, config.spec()
        self.running, self.take, self.frames = False, None, 0
        self.last: Look | None = None  # of the last frame
        self.pressed: set[str] = set()  # since the last frame
        self.focused = False
        self.before: frozenset[str] = frozenset()  # held since before the focus came: typed elsewhere
        self.commands: frozenset[str] = frozenset()
        self.due = time.monotonic()

    @property
    def done(self) -> bool:
        """Whether the recording has the length that was asked for."""
        return self.frames >= 60 * self.config.minutes * self.config.fps

    def frame(self, window: Any) -> None:
        """Watch the keys until the next frame is due, then take it in."""
        period = 1 / self.config.fps
        self.due += period
        for poll in range(1, POLLS + 1):
            time.sleep(max(0.0, self.due - (POLLS - poll) / POLLS * period - time.monotonic()))
            look = window.look(picture=self.running and poll == POLLS)
            self._heard(look)
            if look is None:
                self.cut()
        late = time.monotonic() - self.due
        if late > period / 2:  # the frames would not be at one rate
            self.cut()
            self.due = time.monotonic()
        elif look is not None and self.running:
            self._shown(look)

    def cut(self) -> None:
        """End the take, and keep it if it has two frames or more."""
        if self.take is not None and len(self.take.moments) > 1:
            print(f"{self.takes.keep(self.take).name}: {len(self.take.moments)} frames", flush=True)
        self._forget()

    def _forget(self) -> None:
        self.take, self.last, self.pressed = None, None, set()

    def _heard(self, look: Look | None) -> None:
        """Read the keys of a moment; one that was held when the window got the focus counts after its release."""
        held = frozenset() if look is None else look.held
        if look is not None and not self.focused:
            self.before = held
        self.focused = look is not None
        self.before &= held
        held -= self.before
        new, self.commands = (held & {self.config.start, self.config.discard}) - self.commands, held
        if self.config.discard in new:
            self._forget()
            self._run(False, "discarded and paused")
        elif self.config.start in new:
            self.cut()
            self._run(not self.running, "recording" if not self.running else "paused")
        self.pressed |= held

    def _run(self, running: bool, text: str) -> None:
        self.running = running
        print(text, flush=True)

    def _shown(self, look: Look) -> None:
        if look.picture is None or (self.last is not None and look.place != self.last.place):
            self.cut()
        if look.picture is None:
            return
        moment = Moment(resized(look.picture, self.config.size))
        if self.take is None:
            self.take = Take(self.spec, 0, moment, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
        else:
            assert self.last is not None
            self.take.add(self._action(self.last.pointer, look.pointer), moment)
        self.frames, self.last, self.pressed = self.frames + 1, look, set()
        if self.take.full:
            self.cut()

    def _action(self, before: Sequence[float], now: Sequence[float]) -> np.ndarray:
        """Return what was pressed since the last frame, and with the mouse its movement."""
        keys = [int(key in self.pressed) for key in self.config.held]
        way = [int(np.digitize(b - a, MOVES)) for a, b in zip(before, now, strict=True)] if self.config.mouse else []
        return np.array([*keys, *way], np.int32)


def _named(key: str) -> str:
    return "space" if key == " " else key
