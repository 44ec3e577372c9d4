"""``reverie show``: what the folder of a world or of a run holds, in the terminal and as a page with its curves.

Nothing is loaded and nothing is locked, so a training may go on beside it. What is damaged or missing costs a line, and
the rest is shown.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from xml.etree.ElementTree import Element

import numpy as np
from rich.console import Console
from rich.table import Table

from reverie import config
from reverie.bounded import number, read_bytes
from reverie.checksums import read_signed
from reverie.errors import ReverieError, first_line
from reverie.evaluation import page, plots
from reverie.evaluation.report import PAGE as EVALUATION
from reverie.evaluation.verdict import verdict
from reverie.training import checkpoint
from reverie.training.folder import STAGES
from reverie.training.log import INCIDENT, REPORT, read_log, si
from reverie.training.record import RECORD, Record, find_run, read_record

PAGE = "report.html"
HEADS = ("stage", "step", "loss", "time", "weights", "on disk")
FIRST = ("loss", "psnr", "delta_psnr")  # of the curves of a stage; the others follow by name
CURVES, POINTS = 24, 400  # of a stage, and of a curve: the files have them all
LARGEST = 1e30  # of a value on a curve: axes of larger ones overflow
INCIDENTS = 100  # of a stage, the last ones
SPEEDS = {
    "frames_per_s": "frames/s",
    "flops_per_s": "FLOP/s",
    "mfu": "MFU",
    "goodput": "goodput: share of the time in steps",
    "data_wait": "share of the time waiting for data",
}
MEMORY = {
    "planned_bytes": "memory of a device, as compiled",
    "peak_bytes": "memory of a device, peak in use",  # of the process, with reports and stages before
}
MOMENTS, PICTURE_BYTES = 6, 2**24  # pictures over time, of each name
PICTURE = re.compile(r"(\d{1,18})-([\w.-]{1,100})\.png", re.ASCII)  # as ``training.log`` names them
ROWS = {  # what a stage's own pictures show
    "tokenizer": "Rows alternate: held-out frames, their reconstruction.",
    "lam": "Rows alternate: held-out frames, frames predicted from the past and a latent action.",
    "dynamics": "Rows alternate: reconstruction, rollout from one frame, rollout along random actions.",
}

Value = TypeVar("Value")
Log = dict[str, dict[str, list[tuple[int, float]]]]  # numbers by name, then "training" or "report": (step, value)


@dataclass(frozen=True)
class Stage:
    """A stage as its folder has it; None where that is not known. ``faults``: a line for what is damaged or missing."""

    folder: Path
    record: Record | None
    step: int | None
    weights: int | None
    bytes: int | None
    seconds: float | None
    metrics: list[dict[str, Any]]
    times: list[dict[str, Any]]
    faults: list[str]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def cells(self) -> tuple[str, ...]:
        """What the stage is, in a row of a table."""
        losses = [loss for line in self.metrics if (loss := number(line.get("loss"))) is not None]
        return (
            self.name,
            (f"{self.step}" if self.step is not None else "") + (f" of {self.record.run.steps}" if self.record else ""),
            f"{losses[-1]:.4g}" if losses else "",
            _time(self.seconds) if self.seconds else "",
            si(self.weights).strip() if self.weights is not None else "",
            f"{si(self.bytes)}B" if self.bytes is not None else "",
        )


def show(path: str | Path, out: Path | None = None) -> dict[str, Any]:
    """Print what a world or a run is, write ``report.html``, and return its configs as flat text.

    ``out``: the folder of the report, if not its own. Raises ReverieError when there is no run, or no
    stage whose record can be read.
    """
    path = Path(os.path.abspath(path))
    out, stages = out or path, look(path)
    said, faults = _evaluation(path)
    console = Console(highlight=False, markup=False)
    table = Table(*HEADS, box=None, pad_edge=False)
    for stage in stages:
        table.add_row(*stage.cells)
    console.print(table)
    for sentence in said:
        console.print(f"- {sentence}", soft_wrap=True)
    faults += [f"{stage.name}: {fault}" for stage in stages for fault in stage.faults]
    for fault in faults:
        print(fault, file=sys.stderr)
    try:
        page.write_page(out / PAGE, f"Training of {path.name}", _parts(path, stages, said, faults))
        console.print(f"curves and pictures: {out / PAGE}", soft_wrap=True)
    except OSError as error:  # such as another user's world
        print(f"'{out}' cannot be written to ({error.strerror}): no {PAGE} there.", file=sys.stderr)
    known = [stage for stage in stages if stage.record]
    data = {"data": known[-1].record.fingerprint, "spec": known[-1].record.spec}  # pyright: ignore
    return config.flatten(data | {stage.name: stage.record.run for stage in known if stage.record})


def look(path: Path) -> list[Stage]:
    """Return the stages in a folder: those of a world in their order, or the one that a run is."""
    if (path / RECORD).is_file():
        read_record(path)  # or one line says why not
        return [_stage(path)]
    found = {record.parent.name for record in path.glob(f"[!.]*/{RECORD}")}
    if not found:
        find_run(path)  # says what is wrong
    stages = [_stage(path / name) for name in (*STAGES, *sorted(found - set(STAGES))) if name in found | _planned(path)]
    if not any(stage.record for stage in stages):
        raise ReverieError(f"no stage of '{path}' can be read: {stages[0].faults[0]}")
    return stages


def _planned(path: Path) -> set[str]:
    """The stages that a world is to have, as its note says."""
    found = noted(path / "world.json")
    return {name for name in STAGES if found.get(name) is not None}


def noted(file: Path) -> dict[str, Any]:
    """Return what a world's JSON file says; nothing if it is damaged or missing."""
    try:
        return read_signed(file)
    except (ReverieError, OSError):
        return {}


def _stage(folder: Path) -> Stage:
    faults: list[str] = []

    def tried(read: Callable[[], Value], otherwise: Value) -> Value:
        try:
            return read()
        except (ReverieError, OSError) as error:
            faults.append(f"{first_line(error)}.")
        return otherwise

    def logged(name: str) -> list[dict[str, Any]]:
        lines, damaged = tried(lambda: read_log(folder / name), ([], 0))
        if damaged:
            faults.append(f"{damaged} lines of {name} are damaged and left out.")
        return lines

    if not (folder / RECORD).is_file():
        return Stage(folder, None, None, None, None, None, [], [], ["not begun yet."])
    record = tried(lambda: read_record(folder), None)
    steps = checkpoint.steps(folder)
    if not steps:
        faults.append("there is no checkpoint yet.")
    if (gone := checkpoint.missing(folder)) is not None:
        faults.append(f"the checkpoint of step {gone} is missing.")
    weights, taken = tried(lambda: checkpoint.size(folder, steps[-1]), (None, None)) if steps else (None, None)
    metrics, times = [], []
    if (folder / "metrics.jsonl").is_file():
        metrics, times = logged("metrics.jsonl"), logged("timing.jsonl")
    else:
        faults.append("there is no metrics.jsonl, so no curves; an export has none.")
    newest = steps[-1] if steps else None
    return Stage(folder, record, newest, weights, taken, _seconds(times), metrics, times, faults)


def _seconds(times: list[dict[str, Any]]) -> float:
    """How long training steps took, without what came between: reports, saves, and breaks."""
    total, before = 0.0, 0
    for line in times:
        if INCIDENT in line:
            continue
        rate = number(line.get("steps_per_s"))
        total += max(line["step"] - before, 0) / rate if rate and rate > 0 else 0.0
        before = line["step"]
    return total


def _time(seconds: float) -> str:
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"


def _evaluation(path: Path) -> tuple[list[str], list[str]]:
    """The verdict on a world that was evaluated, and what is wrong with its numbers."""
    try:
        return verdict(read_signed(path / "eval.json")), []
    except FileNotFoundError:
        return [], []
    except (ReverieError, OSError) as error:
        return [], [f"{first_line(error)}."]


def _parts(path: Path, stages: list[Stage], said: list[str], faults: list[str]) -> Iterator[Element]:
    """The page: what there is, the verdict, then the curves and pictures of each stage."""
    node = page.node
    spec = next(stage.record.spec for stage in stages if stage.record)
    height, width, _ = spec.frame
    yield node("p", f"Data: {spec.source or 'no name'}, frames of {width} x {height} pixels.", class_="dim")
    yield page.table(HEADS, [stage.cells for stage in stages])
    if faults:
        yield node("ul", *(node("li", fault) for fault in faults), class_="bad")
    evaluation = [node("ul", *(node("li", sentence) for sentence in said), class_="verdict")] if said else []
    if (path / EVALUATION).is_file():
        evaluation.append(node("p", node("a", "The whole evaluation", href=EVALUATION)))
    if evaluation:
        yield page.section("Evaluation", *evaluation)
    for stage in stages:
        yield page.section(stage.name, *_curves(stage), *_pictures(stage), *_health(stage), *_config(stage))


def logged(stage: Stage) -> Log:
    """Return the numbers of a stage's log by name, in training and in reports: (step, value)."""
    found: Log = {}
    for line in stage.metrics:
        for name, value in line.items():
            if name != "step" and (value := number(value)) is not None and abs(value) < LARGEST:
                label = "report" if name.startswith(REPORT) else "training"
                found.setdefault(name.removeprefix(REPORT), {}).setdefault(label, []).append((line["step"], value))
    names = sorted(found, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    return {name: found[name] for name in names}


def _curves(stage: Stage) -> Iterator[Element]:
    """A chart for each number of the log, in training and in reports on held-out clips."""
    found, figures = logged(stage), {}
    for name in [*found][:CURVES]:
        lines = {label: thinned(points) for label, points in found[name].items()}
        figures[name if "training" in lines else f"{name} (report)"] = plots.trace(lines)
    if figures:
        yield page.charts(figures)
    if splits := sorted({str(line["split"]) for line in stage.metrics if "split" in line}):
        text = f"Reports use the same clips every time (split {', '.join(splits)})."
        yield page.node("p", text, class_="dim")
    if len(found) > CURVES:
        yield page.node("p", f"metrics.jsonl has {len(found) - CURVES} more.", class_="dim")


def thinned(points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    """Return the steps and values of a curve, with no more points than a chart shows."""
    kept = np.unique(np.linspace(0, len(points) - 1, min(POINTS, len(points))).astype(int))
    return [points[at][0] for at in kept], [points[at][1] for at in kept]


def _health(stage: Stage) -> Iterator[Element]:
    """How fast a stage was trained, how much of the time went into steps, what memory it took, and what went wrong."""
    if found := speeds(stage):
        yield page.node("h3", "Speed, as medians, and memory")
        yield page.table(tuple(found), [tuple(found.values())])
        timed = {text: points for name, text in SPEEDS.items() if (points := over_time(stage, name))}
        yield page.charts({text: plots.trace({"training": thinned(points)}) for text, points in timed.items()})
    if incidents := incidents_of(stage):
        shown = [f"step {step}: {text[:300]}" for step, text in sorted(incidents)[-INCIDENTS:]]
        yield page.node("h3", f"Incidents: {len(incidents)}")
        yield page.node("ul", *(page.node("li", text) for text in shown), class_="bad")


def over_time(stage: Stage, name: str) -> list[tuple[int, float]]:
    """Return a number of ``timing.jsonl`` as (step, value)."""
    return [(line["step"], value) for line in stage.times if (value := number(line.get(name))) is not None]


def speeds(stage: Stage) -> dict[str, str]:
    """Return how fast a stage was trained and what memory it took: texts by what they say, empty where not known."""
    found = {}
    for name, text in {**SPEEDS, **MEMORY}.items():
        if values := [value for _, value in over_time(stage, name)]:
            middle = float(np.median(values))
            shown = {"_per_s": si(middle).strip(), "_bytes": f"{si(max(values))}B"}
            found[text] = next((each for end, each in shown.items() if name.endswith(end)), f"{middle:.0%}")
    return found


def incidents_of(stage: Stage) -> list[tuple[int, str]]:
    """Return what went wrong while a stage was trained: (step, what)."""
    return [(line["step"], str(line[INCIDENT])) for line in (*stage.metrics, *stage.times) if INCIDENT in line]


def _pictures(stage: Stage) -> Iterator[Element]:
    """Pictures of the stage's reports, spread over its training."""
    names = sorted((stage.folder / "report").glob("*.png"))
    named: dict[str, list[tuple[int, Path]]] = {}
    for file in names:
        match = PICTURE.fullmatch(file.name)
        if match and file.is_file() and not file.is_symlink():
            named.setdefault(match[2], []).append((int(match[1]), file))
    for name, files in named.items():
        shown = []
        for at in np.unique(np.linspace(0, len(files) - 1, min(MOMENTS, len(files))).astype(int)):
            step, file = files[at]
            try:
                alt = f"{stage.name}, {name} at step {step}"
                shown.append(page.picture(read_bytes(file, PICTURE_BYTES), alt, f"step {step}"))
            except (ReverieError, OSError) as error:
                shown.append(page.node("p", f"{file.name} cannot be shown ({first_line(error)}).", class_="bad"))
        rows = page.node("p", ROWS.get(stage.name, ""), class_="dim")
        yield page.node("div", page.node("h3", f"Reports: {name}"), rows, page.node("div", *shown, class_="pictures"))


def _config(stage: Stage) -> Iterator[Element]:
    if stage.record is None:
        return
    yield page.folded("Config", page.pairs(config.flatten(stage.record.run)))
    yield page.folded("Data and versions", page.pairs(config.flatten({
        "fingerprint": stage.record.fingerprint, "spec": stage.record.spec, **stage.record.versions,
    })))  # fmt: skip
