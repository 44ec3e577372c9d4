"""The logs of a run: exact metrics in one file, speed in another, a progress bar or lines in the terminal.

``metrics.jsonl`` has one line per logged step and nothing that depends on the clock, so a run that was killed and
resumed leaves the same bytes as an uninterrupted one. ``timing.jsonl`` has the times. TensorBoard and Weights & Biases
get the same numbers if a run's config names them.
"""

import importlib
import json
import math
import os
import re
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import jax
import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from reverie.bounded import number, parse_json, read_bytes
from reverie.errors import Damaged, ReverieError, first_line
from reverie.training import flops, hlo

LoggerName = Literal["tensorboard", "wandb", "terminal"]
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
UNITS = {"frames": "frames", "steps": "steps", "flops": "FLOP"}  # rates per second, and their format
WANDB = "wandb-id"  # the file with the id of a run at Weights & Biases
REPORT = "report/"  # before the numbers of a report
INCIDENT = "incident"  # the key of a text in a line of either file: what happened
LOG_BYTES = 2**27  # 300,000 lines of 400 bytes: 15 million steps, one of 50 logged
QUIET = 10.0  # seconds between lines if the output is not a terminal


class Logger(Protocol):
    """A destination of numbers and pictures besides the files of the run."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log numbers by name."""
        ...

    def picture(self, step: int, name: str, image_HWC: np.ndarray) -> None:
        """Log one uint8 picture."""
        ...

    def close(self) -> None:
        """Write what is still buffered."""
        ...


class Log:
    """The log of one run. ``resume``: the step it resumes from; lines of later steps are dropped.

    ``frames``: of one step. ``name``: of the bar. ``split``: of the clips in reports. ``writes``: whether this process
    writes files; true for process 0 only.
    """

    def __init__(
        self,
        folder: Path,
        *,
        steps: int,
        resume: int,
        frames: int,
        name: str = "",
        split: str = "",
        loggers: Sequence[Logger] = (),
        progress: bool = True,
        writes: bool = True,
    ):
        self._folder, self._steps, self._frames, self._writes = folder, steps, frames, writes
        self._split, self._name = split, name or folder.name
        self.flops = 0.0  # of one step, once counted
        self.peak = 0.0  # peak FLOP/s of all devices, if known
        self._loggers = loggers if writes else ()
        if writes:
            for file in ("metrics.jsonl", "timing.jsonl"):
                _cut(folder / file, resume, incidents=file == "timing.jsonl")
            self._metrics = (folder / "metrics.jsonl").open("a", encoding="utf-8")
            self._timing = (folder / "timing.jsonl").open("a", encoding="utf-8")
        self._clock = (resume, time.perf_counter())
        self._said = -math.inf
        console = Console()
        self._bar = None
        self._plain = progress and writes and not console.is_terminal
        if progress and writes and console.is_terminal:
            self._bar = progress_bar(console)
            self._task = self._bar.add_task(self._name, total=steps, completed=resume, text="")
            self._bar.start()

    def count(self, step: int, program: Any, given: Any, devices: Any, *, compiled: bool = True) -> None:
        """Count the FLOPs of a jitted step on an array of devices, and log the bytes that it needs on each of them.

        ``given``: its arguments. ``compiled``: whether this very program is called next, and finds itself compiled.
        """
        traced = program.trace(*given)
        self.flops, self.peak = flops.count(traced.jaxpr), flops.peak(devices)
        needed = hlo.held_bytes(given) + hlo.passing_bytes(traced.lower().compile()) if compiled else 0
        if self._writes and needed:
            self._time(step, {"planned_bytes": needed})

    def metrics(self, step: int, values: dict[str, Any], shares: dict[str, float] | None = None) -> dict[str, float]:
        """Log the numbers of one training step, the speed since the last call, and ``shares`` of the time; return all.

        Empty in a process that does not write.
        """
        if not self._writes:
            return {}
        numbers = {name: float(value) for name, value in values.items()}
        self._write(step, numbers)
        speed = self._speed(step) | {name: float(f"{share:.3g}") for name, share in (shares or {}).items()}
        if peak := (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"):  # a CPU has no such numbers
            speed["peak_bytes"] = float(peak)
        self._time(step, speed)
        for logger in self._loggers:
            logger.scalars(step, numbers | speed)
        self._say(step, numbers, speed)
        return numbers | speed

    def skipped(self, steps: dict[int, str]) -> None:
        """Log as incidents, and print in one line, why steps had no effect."""
        if not self._writes or not steps:
            return
        for step, why in steps.items():
            self._write(step, {}, {INCIDENT: why})
        self._warn(f"step{'s' if len(steps) > 1 else ''} {', '.join(map(str, steps))} {next(iter(steps.values()))}")

    def warn(self, step: int, what: str) -> None:
        """Log an incident that depends on the clock or on when the run was resumed, and print it."""
        if self._writes:
            self._time(step, {INCIDENT: what})
            self._warn(f"step {step}: {what}")

    def report(self, step: int, values: dict[str, Any]) -> dict[str, float]:
        """Log a report: its numbers as ``report/...``, its pictures as files. Return the finite numbers.

        Empty in a process that does not write.
        """
        if not self._writes:
            return {}
        numbers = {}
        for name, value in values.items():
            value = np.asarray(value)
            if value.ndim == 0:
                numbers[REPORT + name] = float(value)
            else:
                self._picture(step, name, value)
        self._write(step, numbers, {"split": self._split} if self._split else {})
        for logger in self._loggers:
            logger.scalars(step, numbers)
        if numbers and (self._bar or self._plain):
            said = f"step {step:>7}  {self._split}  " + "  ".join(f"{k} {v:.4g}" for k, v in numbers.items())
            self._bar.console.print(said, highlight=False) if self._bar else print(said, flush=True)
        return {name.removeprefix(REPORT): value for name, value in numbers.items() if math.isfinite(value)}

    def reported(self, name: str) -> dict[int, float]:
        """Return a number of the reports so far, by step; empty in a process that does not write."""
        lines = read_log(self._folder / "metrics.jsonl")[0] if self._writes else []
        found = {line["step"]: number(line.get(REPORT + name)) for line in lines}
        return {step: value for step, value in found.items() if value is not None}

    def tick(self, step: int) -> None:
        """Advance the progress bar."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def pause(self, step: int) -> None:
        """Exclude the time since the last call of a method here from the measured speed: a report, a save."""
        self._clock = (step, time.perf_counter())

    def flush(self) -> None:
        """Flush all files to the disk."""
        if self._writes:
            self._metrics.flush()
            os.fsync(self._metrics.fileno())

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
        if self._writes:
            self._metrics.close()
            self._timing.close()
        for logger in self._loggers:
            logger.close()

    def _write(self, step: int, numbers: dict[str, float], words: dict[str, str] | None = None) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in sorted(numbers.items())}
        print(json.dumps({"step": step, **(words or {}), **finite}), file=self._metrics, flush=True)

    def _time(self, step: int, values: dict[str, Any]) -> None:
        print(json.dumps({"step": step, "time": round(time.time(), 3), **values}), file=self._timing, flush=True)

    def _warn(self, text: str) -> None:
        line = f"{self._name}: {text}{'' if text.endswith(('.', '?')) else '.'}"
        self._bar.console.print(line, highlight=False) if self._bar else print(line, file=sys.stderr, flush=True)

    def _picture(self, step: int, name: str, image_HWC: np.ndarray) -> None:
        if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] not in (1, 3):
            raise TypeError(f"report '{name}' is {image_HWC.dtype} {image_HWC.shape}: neither a number nor a picture")
        folder = self._folder / "report"
        folder.mkdir(exist_ok=True)
        file = folder / f"{step:08d}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}.png"
        Image.fromarray(image_HWC.squeeze(2) if image_HWC.shape[2] == 1 else image_HWC).save(file)
        for logger in self._loggers:
            logger.picture(step, name, image_HWC)

    def _speed(self, step: int) -> dict[str, float]:
        before, then = self._clock
        self._clock = (step, now := time.perf_counter())
        if step <= before:
            return {}
        rate = (step - before) / (now - then)
        speed = {"steps_per_s": rate, "frames_per_s": rate * self._frames, "flops_per_s": rate * self.flops}
        if self.peak:
            speed["mfu"] = rate * self.flops / self.peak  # model FLOPs utilisation, including recomputation by remat
        return {name: float(f"{value:.4g}") for name, value in speed.items()}

    def _say(self, step: int, numbers: dict[str, float], speed: dict[str, float]) -> None:
        rates = [f"{si(speed[key])}{name}/s" for unit, name in UNITS.items() if (key := f"{unit}_per_s") in speed]
        rates += [f"{speed['mfu']:.0%} MFU"] if "mfu" in speed else []
        others = [name for name in numbers if name not in ("loss", "grad_norm", "learning_rate")][:3]
        said = [f"{name} {numbers[name]:.4g}" for name in ("loss", *others)]
        short = "  ".join(said[:1] + rates[:1])
        if self._bar:  # all numbers are in metrics.jsonl and timing.jsonl
            self._bar.update(self._task, completed=step, text=short)
        elif self._plain and (time.perf_counter() - self._said > QUIET or step == self._steps):
            self._said = time.perf_counter()
            left = int((self._steps - step) / speed["steps_per_s"]) if rates else 0
            ends = f"  {left // 60}:{left % 60:02d} left" if left else ""
            more = "".join(f"  {each}" for each in said[1:] + rates[1:])
            print(f"step {step:>7}/{self._steps}  {short}{ends}{more}", flush=True)


def announce(name: str, start: int, steps: int) -> None:
    """Print that a run begins, or from which step it continues."""
    print(f"\n== {name}: {f'continues from step {start} of {steps}' if start else f'{steps} steps'}", flush=True)


def read_log(file: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the lines of a run's metrics or times, each with its "step", and how many more are damaged.

    ``Damaged`` for a file that is larger than any log.
    """
    found, damaged = [], 0
    for line in read_bytes(file, LOG_BYTES).splitlines():
        try:
            values = parse_json(line, "a line")
        except Damaged:
            values = None
        step = values.get("step") if isinstance(values, dict) else None
        if isinstance(step, int) and 0 <= step < 2**53:
            found.append(values)
        else:
            damaged += 1
    return found, damaged


def check_loggers(names: Sequence[LoggerName]) -> None:
    """Raise ReverieError if the package of a logger is not installed."""
    for name in names:
        if name in PACKAGES:
            _need(PACKAGES[name], name)


def open_loggers(names: Sequence[LoggerName], folder: Path, config: dict[str, Any]) -> list[Logger]:
    """Return the loggers that a run names; ReverieError if the package of one is missing or fails to start."""
    return [_opened(name, folder, config) for name in names]


def _opened(name: LoggerName, folder: Path, config: dict[str, Any]) -> Logger:
    try:
        return {"tensorboard": _TensorBoard, "wandb": _Wandb, "terminal": _Terminal}[name](folder, config)
    except (ReverieError, OSError):
        raise
    except Exception as error:  # no login, a service that does not answer, ...
        raise ReverieError(f"logging to {name} cannot begin: {first_line(error)}.") from error


def progress_bar(console: Console) -> Progress:
    """Return a progress bar that fits its terminal by cutting ``text``; name, bar, steps and time left stay visible."""
    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[text]}", table_column=rest),
        console=console,
        expand=True,
    )


def si(value: float) -> str:
    """Return a number with a metric prefix: 45.2e9 -> "45.2 G"."""
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10**power:
            return f"{value / 10**power:.3g} {prefix}"
    return f"{value:.3g} "


class _TensorBoard:
    def __init__(self, folder: Path, config: dict[str, Any]):
        self._writer = _need(PACKAGES["tensorboard"], "tensorboard").SummaryWriter(str(folder / "tensorboard"))
        self._writer.add_text("config", json.dumps(config, indent=1))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image_HWC: np.ndarray) -> None:
        self._writer.add_image(name, image_HWC, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, folder: Path, config: dict[str, Any]):
        self._wandb = _need(PACKAGES["wandb"], "wandb")
        # The id is stored in the folder, so a resumed or moved run stays the same run at Weights & Biases.
        note = folder / WANDB
        if not note.is_file():
            note.write_text(secrets.token_hex(8), encoding="utf-8")
        self._run = self._wandb.init(
            project="reverie",
            name=f"{folder.parent.name}/{folder.name}",
            id=note.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(folder),
            config=config,
        )

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._run.log({**values, "step": step})

    def picture(self, step: int, name: str, image_HWC: np.ndarray) -> None:
        self._run.log({name: self._wandb.Image(image_HWC), "step": step})

    def close(self) -> None:
        self._run.finish()


class _Terminal:
    """Prints every number of every line of the log, above the progress bar."""

    def __init__(self, folder: Path, config: dict[str, Any]):
        pass

    def scalars(self, step: int, values: dict[str, float]) -> None:
        print(f"step {step}: {', '.join(f'{name} {value:.4g}' for name, value in values.items())}", flush=True)

    def picture(self, step: int, name: str, image_HWC: np.ndarray) -> None:
        pass

    def close(self) -> None:
        pass


def _need(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ReverieError(
            f"logging to {extra} needs the package {module}: pip install 'reverie-worlds[{extra}]'."
        ) from error
    except Exception as error:  # such as an old version beside newer packages
        raise ReverieError(f"logging to {extra}: the package {module} does not work ({first_line(error)}).") from error


def _cut(file: Path, step: int, incidents: bool) -> None:
    """Remove lines of later steps than ``step``, unless they are ``incidents`` to keep, and an incomplete last line."""
    if not file.exists():
        return
    kept = list(_lines_until(file, step, incidents))
    fresh = file.with_suffix(f".{os.getpid()}")
    fresh.write_text("".join(kept), encoding="utf-8")
    os.replace(fresh, file)


def _lines_until(file: Path, step: int, incidents: bool) -> Iterator[str]:
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            found = parse_json(line, "a line")
            if line.endswith("\n") and (found["step"] <= step or (incidents and INCIDENT in found)):
                yield line
        except (Damaged, KeyError, TypeError):
            continue
