"""Where a training spends its time, and the end of a process that hangs.

A process that hangs holds up a whole job and says nothing. The watchdog, a thread, writes the stacks of all threads to
the run's folder and ends the process with a status that means "try again". So does a process whose peer is gone.
"""

import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax

from reverie.errors import first_line
from reverie.training.log import INCIDENT

Phase = Literal["start", "data", "compilation", "step", "collective", "report", "checkpoint"]
AGAIN = 75  # exit status of a training that could not go on and can be resumed: EX_TEMPFAIL
PROFILE, SETTLING = "profile", 4  # folder of the profile, and steps before it, of which the first compiles
STALLS = "stalls"  # folder of the stacks, in the run's folder
LOOKS = 20  # of the watchdog, in the time after which it acts
SLOWER = 4  # times as long may compiling take, which large models do for an hour
WRITING = 10.0  # seconds for writing stacks, since the disk may be what hangs


class Watch:
    """Measures the time in each phase, and ends the process after ``minutes`` in one (0: never).

    ``folder``: of the run. ``profile``: steps of which a profile is written, after the first few. ``end``: ends the
    process with a status. Only time in which the process runs counts, so one that was stopped (Ctrl-Z) does not hang.
    """

    def __init__(self, folder: Path, minutes: float, profile: int = 0, end: Callable[[int], Any] = os._exit):
        self._folder, self._limit, self._end = folder, 60 * minutes, end
        self._begun, self._profile = 0, profile  # steps; the profile is 0 once it is written
        self._phase: Phase = "start"
        self._step, self._beats, self._since = 0, 0, time.perf_counter()
        self._spent: dict[str, float] = defaultdict(float)
        self._until: dict[str, float] = {}  # what was spent when the shares were asked for
        self._done = threading.Event()

    def at(self, phase: Phase, step: int, idle: bool = True) -> None:
        """Enter a phase. ``idle``: whether the device was idle at the end of the last phase; if not, it ran steps."""
        now = time.perf_counter()
        self._spent[self._phase if idle else "step"] += now - self._since
        self._phase, self._step, self._since, self._beats = phase, step, now, self._beats + 1
        if phase == "data" and self._profile:
            self._trace()

    def _trace(self) -> None:
        """Begin or end the profile, between two steps."""
        self._begun += 1
        if self._begun == SETTLING + 1:
            jax.profiler.start_trace(str(self._folder / PROFILE))
        elif self._begun == SETTLING + 1 + self._profile:
            self._end_trace()

    def _end_trace(self) -> None:
        self._profile = 0
        jax.profiler.stop_trace()
        if jax.process_index() == 0:
            print(f"A profile is in '{self._folder / PROFILE}': xprof or TensorBoard shows it.", flush=True)

    def shares(self) -> dict[str, float]:
        """Return the share of the time in steps (goodput), and that of waiting for data since the last call."""
        now = defaultdict(float, self._spent)
        now[self._phase] += time.perf_counter() - self._since
        new = {phase: spent - self._until.get(phase, 0.0) for phase, spent in now.items()}
        self._until = now
        return {"goodput": now["step"] / sum(now.values()), "data_wait": new.get("data", 0.0) / sum(new.values())}

    def __enter__(self) -> "Watch":
        if self._limit:
            threading.Thread(target=self._look, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._profile and self._begun > SETTLING:
            self._end_trace()

    def _look(self) -> None:
        quiet, seen = 0, self._beats
        while not self._done.wait(self._limit / LOOKS):
            quiet, seen = quiet + 1 if self._beats == seen else 0, self._beats
            if quiet >= LOOKS * (SLOWER if self._phase == "compilation" else 1):
                self._stop()
                return

    def _stop(self) -> None:
        """Write the stacks and end the process. The main thread hangs, and so may the disk: nothing waits for them."""
        name = f"{self._step:08d}-{self._phase}-{jax.process_index()}.txt"
        file, written = self._folder / STALLS / name, threading.Event()
        stalled = f"stalled in phase '{self._phase}'"

        def write() -> None:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("w", encoding="utf-8") as stacks:
                faulthandler.dump_traceback(stacks)
            if jax.process_index() == 0:
                line = {"step": self._step, "time": round(time.time(), 3), INCIDENT: stalled}
                with (self._folder / "timing.jsonl").open("a", encoding="utf-8") as timing:
                    print(json.dumps(line), file=timing)
            written.set()

        threading.Thread(target=write, daemon=True).start()
        if not written.wait(WRITING):
            faulthandler.dump_traceback(sys.__stderr__ or 2)
        peers = ", where another process may be gone" if jax.process_count() > 1 else ""
        say(f"training {stalled}{peers}, at step {self._step}; stacks of all threads: '{file}'")
        self._end(AGAIN)


def ready(arrays: dict[str, Any]) -> bool:
    """Whether the device has computed all of these arrays."""
    return all(array.is_ready() for array in arrays.values())


@contextlib.contextmanager
def with_peers() -> Iterator[None]:
    """End this process of a job at once if JAX cannot go on, as when another process was killed.

    An exception would wait for that other process for minutes, at JAX's barrier when Python exits.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        say(f"process {jax.process_index()} of this job cannot continue with the others ({first_line(error)})")
        os._exit(AGAIN)


def say(what: str) -> None:
    """Print why a process ends, past Python's buffers, whose locks may be held."""
    os.write(2, f"reverie: error: {what}. The same command resumes from the last checkpoint.\n".encode())
