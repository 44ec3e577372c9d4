"""A window of an X11 desktop: its picture and the keys held in it, read only while it has the focus.

Keys are polled and never listened to, so what is typed into other windows does not reach this program. Every look is
taken while the X server is grabbed: between asking who has the focus and reading keys or pixels, nothing can change.

Legend: H W image.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from reverie.errors import ReverieError

KEYSYMS = {  # where X11 and browsers name a key differently
    "ArrowLeft": "Left", "ArrowRight": "Right", "ArrowUp": "Up", "ArrowDown": "Down", " ": "space", "Enter": "Return",
    "Shift": "Shift_L", "Control": "Control_L", "Alt": "Alt_L", "Backspace": "BackSpace",
}  # fmt: skip
BUTTONS = {"mouse left": 1 << 8, "mouse middle": 1 << 9, "mouse right": 1 << 10}  # bits of the pointer's mask


class Look(NamedTuple):
    """One moment of a window with the focus. ``pointer``: x and y as shares of its width and height."""

    held: frozenset[str]
    pointer: tuple[float, float]
    place: tuple[int, int, int, int]  # x, y, width and height on the screen
    picture: np.ndarray | None = None  # uint8 (H, W, 3), if it was asked for and nothing covers the window


class Window:
    """A window found by a part of its title, and the keys and mouse buttons that are looked at.

    Raises ReverieError if there is no X11 display, no such window, or no such key.
    """

    def __init__(self, title: str, keys: Sequence[str]):
        x11 = _library()
        self.lost: Any = (x11.error.XError, x11.error.ConnectionClosedError, ConnectionError)
        self.x: Any = x11.X
        try:
            self.display: Any = x11.display.Display()
        except (x11.error.DisplayError, OSError) as error:
            raise ReverieError(f"there is no X11 display to record from ({error}).") from None
        self.root = self.display.screen().root
        self.buttons = [key for key in keys if key in BUTTONS]
        try:
            self.codes = {key: self._code(x11.XK, key) for key in keys if key not in BUTTONS}
            self.window, self.title = self._found(title)
        except BaseException:
            self.close()
            raise

    def look(self, picture: bool = False) -> Look | None:
        """Return the window's moment; None unless it has the focus. Raises ReverieError if the window is gone."""
        try:
            with self._grabbed():
                place = self._place()  # an error, once the window is closed
                if not self._focused():
                    return None
                held = self.display.query_keymap()
                pointer = self.window.query_pointer()
                pixels = self._pixels(place) if picture and self._whole(place) else None
        except self.lost:
            raise ReverieError(f"the window '{self.title}' is gone.") from None
        keys = [key for key, code in self.codes.items() if held[code // 8] >> code % 8 & 1]
        keys += [button for button in self.buttons if pointer.mask & BUTTONS[button]]
        return Look(frozenset(keys), (pointer.win_x / place[2], pointer.win_y / place[3]), place, pixels)

    def close(self) -> None:
        """Leave the display."""
        with contextlib.suppress(*self.lost):
            self.display.close()

    # -- what the server says --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _grabbed(self) -> Iterator[None]:
        self.display.grab_server()
        try:
            yield
        finally:
            self.display.ungrab_server()
            self.display.flush()

    def _focused(self) -> bool:
        """Whether the window, or a part of it, has the focus: the keyboard's keys go to it."""
        focus: Any = self.display.get_input_focus().focus
        if isinstance(focus, int):  # the focus follows the pointer, or there is none
            return False
        return self.window in self._upwards(focus)

    def _upwards(self, window: Any) -> Iterator[Any]:
        """Yield a window and those that it lies in, without the root."""
        while window and window != self.root:
            yield window
            window = window.query_tree().parent

    def _place(self) -> tuple[int, int, int, int]:
        size = self.window.get_geometry()
        corner = self.root.translate_coords(self.window, 0, 0)
        return corner.x, corner.y, size.width, size.height

    def _whole(self, place: tuple[int, int, int, int]) -> bool:
        """Whether the whole window is on the screen, and no other window lies over any part of it."""
        if self.window.get_attributes().map_state != self.x.IsViewable:
            return False
        screen = self.root.get_geometry()
        x, y, width, height = place
        if x < 0 or y < 0 or x + width > screen.width or y + height > screen.height:
            return False
        for window in self._upwards(self.window):
            tree = window.query_tree()
            siblings = tree.parent.query_tree().children
            if any(self._covers(other, place) for other in siblings[siblings.index(window) + 1 :]):  # bottom to top
                return False
            if window != self.window and not self._inside(window, place):
                return False
        return True

    def _covers(self, other: Any, place: tuple[int, int, int, int]) -> bool:
        state = other.get_attributes()
        if state.map_state != self.x.IsViewable or state.win_class == self.x.InputOnly:
            return False
        left, top, right, bottom = self._box(other)
        x, y, width, height = place
        return left < x + width and x < right and top < y + height and y < bottom

    def _inside(self, outer: Any, place: tuple[int, int, int, int]) -> bool:
        """Whether a window that holds the recorded one shows all of it."""
        left, top, right, bottom = self._box(outer)
        x, y, width, height = place
        return left <= x and top <= y and x + width <= right and y + height <= bottom

    def _box(self, window: Any) -> tuple[int, int, int, int]:
        """The edges of a window on the screen, with its border."""
        size = window.get_geometry()
        corner, border = self.root.translate_coords(window, 0, 0), size.border_width
        return corner.x - border, corner.y - border, corner.x + size.width + border, corner.y + size.height + border

    def _pixels(self, place: tuple[int, int, int, int]) -> np.ndarray:
        width, height = place[2:]
        found = self.window.get_image(0, 0, width, height, self.x.ZPixmap, 0xFFFFFFFF)
        if found.depth not in (24, 32) or len(found.data) != 4 * width * height:
            raise ReverieError(f"this screen has {found.depth} bits a pixel: 24 are needed.")
        return np.asarray(Image.frombuffer("RGB", (width, height), bytes(found.data), "raw", "BGRX", 0, 1))

    # -- found once ------------------------------------------------------------------------------------------------

    def _code(self, names: Any, key: str) -> int:
        """The code of a key on this keyboard."""
        symbol = names.string_to_keysym(KEYSYMS.get(key, key))
        code = self.display.keysym_to_keycode(symbol) if symbol else 0
        if not code:
            raise ReverieError(f"this keyboard has no key '{key}': name keys as browsers do, such as a, ArrowLeft, F9.")
        return code

    def _found(self, title: str) -> tuple[Any, str]:
        """The one window with ``title`` in its title."""
        named = [(window, name) for window, name in self._titles(self.root) if name]
        exact = [each for each in named if each[1] == title]
        matching = exact or [each for each in named if title.lower() in each[1].lower()]
        if len(matching) != 1 or not title:
            shown = ", ".join(f"'{name}'" for _, name in (matching or named)[:8]) or "none with a title"
            what = f"{len(matching)} windows are called" if matching else "there is no window called"
            raise ReverieError(f"{what} '{title}': say --window with the title of one of these: {shown}.")
        return matching[0]

    def _titles(self, window: Any) -> Iterator[tuple[Any, str]]:
        """Yield the visible windows inside a window, and their titles."""
        for child in window.query_tree().children:
            with contextlib.suppress(*self.lost):  # it has closed in the meantime
                if child.get_attributes().map_state == self.x.IsViewable:
                    yield child, self._title(child)
                    yield from self._titles(child)

    def _title(self, window: Any) -> str:
        for name, kind in (("_NET_WM_NAME", "UTF8_STRING"), ("WM_NAME", "STRING")):
            text = window.get_full_text_property(self.display.intern_atom(name), self.display.intern_atom(kind))
            if text:
                return str(text)
        return ""


def _library() -> Any:
    """Return python-xlib; ReverieError where it is missing, or where the desktop is not X11."""
    if sys.platform in ("win32", "darwin") or not os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        raise ReverieError("'reverie record screen' works on X11 desktops only for now: log in to an X11 session.")
    try:
        import Xlib.display
        import Xlib.error
        import Xlib.X
        import Xlib.XK
    except ImportError:
        raise ReverieError("windows are recorded with python-xlib: pip install 'reverie-worlds[screen]'.") from None
    return Xlib
