"""Several runs on one page, from what their folders hold.

``reverie compare RUN RUN ...`` shows what evaluations found, ``reverie show RUN RUN ...`` how the runs were trained.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

from matplotlib.figure import Figure

from reverie import config
from reverie.bounded import read_bytes
from reverie.checksums import read_signed
from reverie.errors import ReverieError
from reverie.evaluation import page, plots
from reverie.evaluation.meaning import HEADLINES, MEANING, Numbers, is_readable, rows
from reverie.evaluation.pool import RULES
from reverie.evaluation.report import CHARTS, PICTURES
from reverie.evaluation.verdict import verdict
from reverie.show import (
    CURVES,
    HEADS,
    PICTURE_BYTES,
    SPEEDS,
    Log,
    Stage,
    incidents_of,
    logged,
    look,
    over_time,
    speeds,
    thinned,
)

PAGE = "compare.html"
SHOWN = ("dream.gif", "actions.png")  # of an evaluation's pictures


class World(NamedTuple):
    """One of the compared: its name on the page, its folder, its stages and its evaluation."""

    name: str
    folder: Path
    stages: list[Stage]
    numbers: Numbers


def side_by_side(runs: Sequence[Path], out: Path) -> Path:
    """Write a page that shows evaluated worlds beside each other, and return its path.

    ``out``: the page, or a folder for it. Raises ReverieError for fewer than two worlds, or one without an evaluation.
    """
    if len(runs) < 2:
        raise ReverieError("name two worlds or more to compare, or a comparison from 'reverie list' to train one.")
    worlds = [_world(run, name) for run, name in zip(runs, _names(runs), strict=True)]
    out = out if out.suffix == ".html" else out / PAGE
    page.write_page(out, f"{' and '.join(world.name for world in worlds)}, side by side", _parts(worlds))
    return out


def _world(run: Path, name: str) -> World:
    stages = look(run.absolute())
    numbers = read_signed(run / "eval.json") if (run / "eval.json").exists() else {}
    if not is_readable(numbers):
        raise ReverieError(f"'{run}' has no evaluation that can be read: 'reverie eval {run}' makes one.")
    return World(name, run, stages, numbers)


def _names(runs: Sequence[Path]) -> list[str]:
    """Return a name for each run: its folder's, or its path where two folders have one name."""
    names = [run.absolute().name for run in runs]
    return [str(run) if names.count(name) > 1 else name for run, name in zip(runs, names, strict=True)]


def _parts(worlds: list[World]) -> Iterator[Element]:
    node = page.node
    if unlike := [rule for rule in RULES if len({repr(world.numbers.get(rule)) for world in worlds}) > 1]:
        text = f"These worlds were not measured alike ({', '.join(unlike)} differ): compare their numbers with care."
        yield node("p", text, class_="bad")
    yield page.table(("world", "data", "stages"), [(world.name, _data(world), _sizes(world)) for world in worlds])
    for world in worlds:
        said = node("ul", *(node("li", sentence) for sentence in verdict(world.numbers)), class_="verdict")
        yield page.section(world.name, said)
    yield page.section("Headline numbers", page.table(*_numbers(worlds)), node("p", _NOTE, class_="dim"))
    named = {world.name: world.numbers for world in worlds}
    charts = {text: figure for kind, text in CHARTS.items() if (figure := plots.beside(named, kind))}
    yield page.section("Over the generated frames", page.charts(charts))
    for file in SHOWN:
        alt, caption = PICTURES[file.partition(".")[0]]
        found = [(world, path) for world in worlds if (path := world.folder / "eval" / file).is_file()]
        pictures = [page.picture(read_bytes(path, PICTURE_BYTES), alt, world.name) for world, path in found]
        if pictures:
            yield page.section(caption, node("div", *pictures, class_="pictures"))
    configs = {
        world.name: config.flatten({stage.name: stage.record.run for stage in world.stages if stage.record})
        for world in worlds
    }
    heads, differences = _differences(configs)
    yield page.section("Configs", page.folded(f"{len(differences)} fields differ", page.table(heads, differences)))


_NOTE = "Value, then its 95 % interval. For a curve: its value at the first and at the last generated frame."


def _data(world: World) -> str:
    record = next(stage.record for stage in world.stages if stage.record)
    return f"{record.spec.source or 'no name'}, {record.spec.frame[1]} x {record.spec.frame[0]}"


def _sizes(world: World) -> str:
    at = HEADS.index("weights")
    return "; ".join(f"{stage.name}: {stage.cells[at] or '?'} weights, {stage.step} steps" for stage in world.stages)


def _numbers(worlds: list[World]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the heads and the rows of a table of headline numbers: a column for each world."""
    found = {world.name: {row[0]: row for row in rows(world.numbers, HEADLINES)} for world in worlds}
    cells = []
    for name in HEADLINES:
        if any(name in each for each in found.values()):
            shown = [each.get(name) for each in found.values()]
            values = [f"{row[1]} ({row[2]})" if row and row[2] else row[1] if row else "" for row in shown]
            cells.append((name, *values, MEANING[name]))
    return ("number", *found, "meaning"), cells


def _differences(flat: dict[str, dict[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the heads and the rows of a table of the fields that are not the same in all of these flat configs."""
    fields = dict.fromkeys(name for each in flat.values() for name in each)
    differ = [field for field in fields if len({repr(each.get(field)) for each in flat.values()}) > 1]
    return ("field", *flat), [(field, *(str(each.get(field, "")) for each in flat.values())) for field in differ]


def trainings(runs: Sequence[Path], out: Path) -> Path:
    """Write a page that shows how runs, finished or not, were trained: their configs and curves; return its path."""
    looked = {name: look(run.absolute()) for name, run in zip(_names(runs), runs, strict=True)}
    if len(looked) < len(runs):
        raise ReverieError("name each run once.")
    page.write_page(out, "Runs side by side", _trainings(looked))
    return out


def _trainings(runs: dict[str, list[Stage]]) -> Iterator[Element]:
    yield page.table(("run", *HEADS), [(name, *stage.cells) for name, stages in runs.items() for stage in stages])
    kinds: dict[str, dict[str, Stage]] = {}
    single = all(len(stages) == 1 for stages in runs.values())  # stages, whose folders have names of their own
    for name, stages in runs.items():
        for stage in stages:
            kinds.setdefault("Training" if single else stage.name, {})[name] = stage
    for kind, shared in kinds.items():
        configs = {name: config.flatten(stage.record.run) if stage.record else {} for name, stage in shared.items()}
        heads, rows = _differences(configs)
        parts = [page.table(heads, rows)] if rows else []
        if figures := _curves({name: logged(stage) for name, stage in shared.items()}):
            parts.append(page.charts(figures))
        parts += _health(shared)
        yield page.section(kind, *parts)


def _health(stages: dict[str, Stage]) -> Iterator[Element]:
    """Speed, goodput, memory and incidents of several runs: a table with a row for each, and curves."""
    found = {name: {**speeds(stage), "incidents": str(len(incidents_of(stage)))} for name, stage in stages.items()}
    heads = tuple(dict.fromkeys(head for each in found.values() for head in each))
    yield page.table(("run", *heads), [(name, *(each.get(head, "") for head in heads)) for name, each in found.items()])
    figures = {}
    for name, text in SPEEDS.items():
        timed = {run: over_time(stage, name) for run, stage in stages.items()}
        if lines := {run: thinned(points) for run, points in timed.items() if points}:
            figures[text] = plots.trace(lines)
    if figures:
        yield page.charts(figures)


def _curves(logs: dict[str, Log]) -> dict[str, Figure]:
    """Return a chart for each number of several logs, with a line for each: of reports if there are any."""
    figures = {}
    for name in [*dict.fromkeys(each for log in logs.values() for each in log)][:CURVES]:
        found = {run: log[name] for run, log in logs.items() if name in log}
        label = "report" if any("report" in each for each in found.values()) else "training"
        lines = {run: thinned(each[label]) for run, each in found.items() if label in each}
        figures[name if label == "training" else f"{name} (report)"] = plots.trace(lines)
    return figures
