"""A window of a real X server is recorded, and nothing that happens outside it.

Needs Xvfb (Debian: ``apt install xvfb``) and python-xlib; without them tests are skipped.
"""

import os
import shutil
import subprocess
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from reverie import cli
from reverie.data.store import open_dataset
from reverie.data.takes import Takes
from reverie.errors import ReverieError
from reverie.play import screen
from reverie.play.screen import Recording, ScreenConfig
from reverie.play.x11 import Window

X, XK, xtest = (pytest.importorskip(f"Xlib.{name}") for name in ("X", "XK", "ext.xtest"))
XVFB = shutil.which("Xvfb")
pytestmark = pytest.mark.skipif(XVFB is None, reason="no Xvfb found: install it")
KEYS = ("a", "ArrowLeft")
BLUE, RED = 0x2040C0, 0xFF0000
GAME = ScreenConfig(window="the game", size=(32, 48), fps=10.0, keys=KEYS)


@pytest.fixture(scope="module", autouse=True)
def server():
    """A screen of 400x300 pixels, without a window manager."""
    read, write = os.pipe()
    words = [XVFB, "-displayfd", str(write), "-screen", "0", "400x300x24", "-nolisten", "tcp", "-noreset"]
    process = subprocess.Popen(words, pass_fds=[write], stderr=subprocess.DEVNULL)
    os.close(write)
    with os.fdopen(read) as pipe, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISPLAY", f":{pipe.readline().strip()}")
        patch.delenv("WAYLAND_DISPLAY", raising=False)
        yield
    process.terminate()
    process.wait(10)


@pytest.fixture
def desk(server):
    desk = Desk()
    yield desk
    desk.display.close()


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Time goes on by sleeping alone, so that no frame is late on a busy machine."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)

    def sleep(seconds):
        clock.now += seconds

    clock.sleep = sleep
    monkeypatch.setattr(screen, "time", clock)
    return clock


class Desk:
    """Another program: its windows, and the fingers on the keyboard."""

    def __init__(self):
        from Xlib.display import Display

        self.display = Display()
        self.root = self.display.screen().root

    def window(self, title, colour, place=(20, 20, 200, 150), where=None):
        window = (where or self.root).create_window(*place, 0, X.CopyFromParent, background_pixel=colour)
        window.set_wm_name(title)
        window.map()
        self.display.sync()
        return window

    def focus(self, window):
        window.set_input_focus(X.RevertToNone, X.CurrentTime)
        self.display.sync()

    def key(self, name, down=True):
        code = self.display.keysym_to_keycode(XK.string_to_keysym(name))
        xtest.fake_input(self.display, X.KeyPress if down else X.KeyRelease, code)
        self.display.sync()

    def tap(self, name, recording, window):
        """A key goes down for one frame, and up for another."""
        for down in (True, False):
            self.key(name, down)
            recording.frame(window)


@pytest.fixture
def game(desk):
    window = desk.window("the game", BLUE)
    desk.focus(window)
    yield window
    window.destroy()
    desk.display.sync()


@pytest.fixture
def recording(game, tmp_path):
    """Started: (what records, the window that it looks at, the takes)."""
    return started(GAME, tmp_path)


def started(config, folder):
    takes = Takes(config.spec(), folder / "out")
    window = Window(config.window, [*config.held, config.start, config.discard])
    recording = Recording(config, takes)
    recording.frame(window)
    desk = Desk()
    desk.tap("F9", recording, window)
    desk.display.close()
    assert recording.running
    return recording, window, takes


def stored(takes):
    """Return the frames and actions of every episode."""
    dataset = open_dataset(takes.write(val=0))
    found = [dataset.read(index, 0, int(length)) for index, length in enumerate(dataset.lengths)]
    return [each["frames"] for each in found], [each["actions"] for each in found]


def test_keys_held_in_the_window_are_actions_and_its_pixels_frames(recording, desk, game):
    recorder, window, takes = recording
    desk.tap("a", recorder, window)
    desk.key("Left")
    desk.key("x")  # is not declared
    recorder.frame(window)
    desk.key("a")
    recorder.frame(window)
    for name in ("Left", "a", "x"):
        desk.key(name, False)
    for _ in range(2):
        recorder.frame(window)
    recorder.cut()
    (frames,), (actions,) = stored(takes)
    assert actions[1:].tolist()[-6:] == [[1, 0], [0, 0], [0, 1], [1, 1], [0, 0], [0, 0]]
    assert frames.shape[1:] == (32, 48, 3) and (frames == (0x20, 0x40, 0xC0)).all()
    assert takes.spec.fps == 10 and takes.spec.actions.keys == KEYS
    window.close()


def test_keys_typed_elsewhere_are_never_seen(recording, desk, game):
    recorder, window, takes = recording
    recorder.frame(window)
    other = desk.window("letter", RED, (250, 20, 100, 100))
    desk.focus(other)
    desk.key("a")
    for _ in range(3):
        recorder.frame(window)
    assert window.look(picture=True) is None and recorder.take is None, "the focus is gone: the episode is over"
    desk.focus(game)
    for _ in range(3):
        recorder.frame(window)  # still held, since before the window had the focus
    desk.key("a", False)
    recorder.frame(window)
    desk.tap("a", recorder, window)
    recorder.cut()
    other.destroy()
    _, (first, second) = stored(takes)
    assert (first[1:] == 0).all() and second[1:, 0].tolist() == [0, 0, 0, 1, 0]
    window.close()


def test_a_start_key_typed_elsewhere_starts_nothing(recording, desk, game):
    recorder, window, _ = recording
    other = desk.window("letter", RED, (250, 20, 100, 100))
    desk.focus(other)
    desk.tap("F9", recorder, window)
    assert recorder.running
    other.destroy()
    window.close()


@pytest.mark.parametrize("inside", [False, True], ids=["over it", "over what holds it"])
def test_pixels_of_a_window_above_are_never_seen(desk, tmp_path, inside):
    """Also one without a manager, as menus and notices are; and where a window manager puts a frame around the game."""
    frame = desk.window("", 0, (10, 10, 260, 200)) if inside else None
    game = desk.window("the game", BLUE, where=frame)
    desk.focus(game)
    recorder, window, takes = started(GAME, tmp_path)
    for _ in range(2):
        recorder.frame(window)
    above = desk.window("notice", RED, (200, 100, 60, 60))
    for _ in range(3):
        recorder.frame(window)
    assert recorder.take is None and window.look(picture=True).picture is None
    above.configure(stack_mode=X.Below)
    desk.display.sync()
    for _ in range(3):
        recorder.frame(window)
    above.configure(stack_mode=X.Above)
    desk.display.sync()
    recorder.frame(window)
    recorder.cut()
    frames, _ = stored(takes)
    assert len(frames) == 2 and all((each == (0x20, 0x40, 0xC0)).all() for each in frames), "no red pixel"
    for each in (above, game, frame):
        if each:
            each.destroy()
    desk.display.sync()
    window.close()


def test_off_the_screen_moved_or_gone(desk, tmp_path):
    game = desk.window("the game", BLUE)
    desk.focus(game)
    recorder, window, takes = started(GAME, tmp_path)
    recorder.frame(window)
    recorder.frame(window)
    game.configure(x=300)  # 100 of its 200 pixels are outside
    desk.display.sync()
    recorder.frame(window)
    assert recorder.take is None and len(takes.files()) == 1
    game.configure(x=30)
    desk.display.sync()
    for place in (30, 30, 40, 40):
        game.configure(x=place)
        desk.display.sync()
        recorder.frame(window)
    assert len(takes.files()) == 2, "where it moves, an episode ends"
    game.unmap()
    desk.display.sync()
    assert window.look(picture=True) is None
    game.destroy()
    desk.display.sync()
    with pytest.raises(ReverieError, match="the window 'the game' is gone"):
        window.look()
    window.close()


def test_pause_discard_and_late_frames(recording, desk, game, clock):
    recorder, window, takes = recording
    recorder.frame(window)
    desk.tap("F9", recorder, window)
    assert not recorder.running and len(takes.files()) == 1
    recorder.frame(window)
    assert recorder.take is None
    desk.tap("F9", recorder, window)
    recorder.frame(window)
    desk.tap("F10", recorder, window)
    assert not recorder.running and recorder.take is None and len(takes.files()) == 1, "discarded"
    desk.tap("F9", recorder, window)
    recorder.frame(window)
    clock.now += 1.0
    recorder.frame(window)
    assert recorder.take is None and len(takes.files()) == 2, "frames a second apart are not of one episode"
    window.close()


def test_the_mouse_is_recorded_where_it_is_wanted(desk, game, tmp_path):
    config = ScreenConfig(window="the game", keys=("a",), mouse=True, size=(32, 48))
    game.warp_pointer(20, 75)
    desk.display.sync()
    recorder, window, takes = started(config, tmp_path)
    recorder.frame(window)
    game.warp_pointer(100, 70)  # 80 of 200 to the right, 5 of 150 up
    xtest.fake_input(desk.display, X.ButtonPress, 1)
    desk.display.sync()
    recorder.frame(window)
    xtest.fake_input(desk.display, X.ButtonRelease, 1)
    desk.display.sync()
    recorder.frame(window)
    recorder.cut()
    _, (actions,) = stored(takes)
    assert actions[-2:].tolist() == [[0, 1, 0, 0, 4, 1], [0, 0, 0, 0, 2, 2]]
    assert takes.spec.actions.name_of(actions[-2]) == "mouse left + far right + up"
    window.close()


@pytest.mark.skipif(shutil.which("xterm") is None, reason="no xterm found: install it")
def test_a_real_program_is_recorded_from_the_command_line_and_can_be_learned(desk, tmp_path, capsys, monkeypatch):
    out = tmp_path / "typed"
    words = ["xterm", "-T", "typing", "-geometry", "20x6+10+10", "-fn", "fixed", "-e", "cat"]
    program = subprocess.Popen(words, stderr=subprocess.DEVNULL)

    def titled():
        shown = [each for each in desk.root.query_tree().children if each.get_attributes().map_state == X.IsViewable]
        return [each for each in shown if each.get_wm_name() == "typing"]

    done, said = threading.Event(), []

    def hears(text, seconds):
        until = time.monotonic() + seconds
        while not (heard := any(text in line for line in said)) and not done.wait(0.01) and time.monotonic() < until:
            pass
        return heard

    def types():
        hears("starts and pauses", 30)
        while not hears("recording", 0.5) and not done.is_set():
            desk.key("F9")
            hears("recording", 0.5)
            desk.key("F9", False)
        while not done.is_set():
            for down in (True, False):
                desk.key("a", down)
                done.wait(0.1)

    monkeypatch.setattr("builtins.print", lambda *text, **_: said.extend(text))
    monkeypatch.setattr(screen.time, "sleep", lambda seconds, clock=screen.time: advance(clock, seconds))
    try:
        until = time.monotonic() + 30
        while not titled() and time.monotonic() < until:
            time.sleep(0.05)
        desk.focus(titled()[0])
        thread = threading.Thread(target=types, daemon=True)
        thread.start()
        options = ["--size", "48", "64", "--keys", "a", "--fps", "20", "--minutes", "0.02"]
        assert cli.main(["record", "screen", str(out), "--window", "typing", *options]) == 0
        done.set()
        thread.join()
    finally:
        done.set()
        program.kill()
        program.wait()
    monkeypatch.undo()
    dataset = open_dataset(out, "train")
    found = dataset.read(0, 0, int(dataset.lengths[0]))
    assert found["actions"][1:].any(), "typed"
    assert len(np.unique(found["frames"].reshape(len(found["frames"]), -1), axis=0)) > 1, "what was typed is seen"


def advance(clock, seconds):
    clock.now += seconds
    time.sleep(0.004)


@pytest.mark.parametrize(
    ("change", "words", "why"),
    [
        ({"DISPLAY": None}, ["--window", "x"], "works on X11 desktops only for now"),
        ({"WAYLAND_DISPLAY": "wayland-0"}, ["--window", "x"], "works on X11 desktops only for now"),
        ({"DISPLAY": "nonsense"}, ["--window", "x"], "there is no X11 display"),
        ({}, ["--window", "no such window"], "there is no window called 'no such window'"),
        ({}, ["--window", "x", "--keys", "nokey"], "this keyboard has no key 'nokey'"),
        ({}, ["--window", "x", "--keys", "a", "a"], "each key is named once"),
        ({}, ["--window", "x", "--fps", "0"], "a recording has frames of 8x8 or more"),
    ],
)
def test_what_cannot_be_recorded_is_one_line(change, words, why, capsys, tmp_path, monkeypatch):
    for name, value in change.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    assert cli.main(["record", "screen", str(tmp_path / "out"), *words]) == 2
    err = capsys.readouterr().err
    assert why in err and err.count("\n") == 1 and not list(tmp_path.iterdir())
