"""In a real terminal of 80 columns progress is one line: a bar, the step and the time left, and nothing wraps."""

import os
import re
import subprocess
import sys

import pytest

if sys.platform == "win32":
    pytest.skip("there are no such terminals", allow_module_level=True)

import fcntl
import pty
import struct
import termios

TRAINING = """
import pathlib, time
from reverie.training.log import Log
with Log(pathlib.Path("."), steps=200_000, resume=120_000, frames=512, name="tokenizer") as log:
    for step in range(120_050, 120_400, 50):
        time.sleep(0.1)
        log.tick(step)
        log.metrics(step, {"loss": 2.34567, "grad_norm": 1.5, "learning_rate": 1e-3, "commitment": 0.25, "psnr": 21.2})
"""
WRITING = """
import time
from reverie.data import counted
from reverie.data.sources.square import SquareConfig
counted.SHOWN = 0.0
source = SquareConfig(count=30, frames=4)
for episode in counted.counted(source.episodes(), source):
    episode.source = "a/very/long/name/of/a/folder/and/of/a/recording/in/it/number/12345.mp4"
    time.sleep(0.01)
"""


def shown(code: str, columns: int = 80) -> str:
    """What a program writes to a terminal, without colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    env |= {"TERM": "xterm-256color", "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen([sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        said = b""
        while part := read(ours):
            said += part
    os.close(ours)
    assert process.returncode == 0, said.decode()
    return re.sub(r"\x1b\[[0-9;]*m", "", said.decode())


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 2**16)
    except OSError:  # how Linux says that the other side is closed
        return b""


def lines(said: str) -> list[str]:
    """Every state of the line, oldest first."""
    return [line for line in re.split(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]", said) if line.strip()]


def test_training_shows_bar_step_time_left_loss_and_speed():
    said = shown(TRAINING)
    assert "\x1b[1A" not in said, "the progress takes several lines"
    assert all(len(line) <= 80 for line in lines(said))
    last = lines(said)[-1]
    for what in ("tokenizer", "━", "120350/200000", r"\d:\d\d", "loss 2.346", "frames/s"):
        assert re.search(what, last), f"no {what} in: {last}"
    assert "psnr" not in last, "other numbers are in the log"


def test_writing_shows_bar_share_time_left_and_counts():
    said = [line for line in lines(shown(WRITING)) if "episodes" in line]
    assert said and all(len(line) < 80 for line in said)
    assert re.match(r"━+╌* +\d+%, \d+:\d\d left, 29 episodes, 116 frames, at a/very", said[-2])
