"""``reverie card``: the model card of a world, as Markdown and as a page, for the people who get it.

Every fact is read from the world's folder. What is not there is "not recorded".
"""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from reverie.bounded import read_bytes
from reverie.data.store import open_dataset
from reverie.errors import ReverieError, first_line
from reverie.evaluation import page
from reverie.evaluation.meaning import HEADLINES, basis, is_readable, rows, title
from reverie.evaluation.report import PICTURES
from reverie.evaluation.verdict import verdict
from reverie.evaluation.video import contact_sheet, scale_of, write_png
from reverie.show import PICTURE_BYTES, Stage, look, noted
from reverie.training.blueprint import Blueprint
from reverie.training.cost import flops_of
from reverie.training.log import si
from reverie.world_folder import initial_frames

TEXT, PAGE, FOLDER = "card.md", "card.html", "card"
UNKNOWN = "not recorded"
HEADS = ("number", "value", "95 % interval", "meaning")
MARKS = re.compile(r"([\\`*_{}\[\]<>#|!~&])")  # of Markdown; names and texts of a run may hold anything
LICENCE = re.compile(r"[\w.+-]{1,60}", re.ASCII)


@dataclass(frozen=True)
class Card:
    """What a card says. facts: (what, value) by heading. numbers: rows of ``HEADS``. pictures: (file, alt, caption)."""

    name: str
    licence: str
    said: list[str]
    facts: dict[str, list[tuple[str, str]]]
    measured: str
    numbers: list[tuple[str, str, str, str]]
    pictures: list[tuple[Path, str, str]]


def write_card(run: Path, out: Path | None = None) -> Path:
    """Write the card of a world to ``card.md``, ``card.html`` and ``card/`` in ``out``, or in its own folder.

    Returns the Markdown's path. Raises ReverieError if there is no world.
    """
    run = Path(run).absolute()
    out = run if out is None else Path(out).absolute()
    stages = look(run)
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    card = _card(run, stages, out / FOLDER)
    (out / TEXT).write_text(markdown(card), encoding="utf-8")
    page.write_page(out / PAGE, f"Model card of {card.name}", _parts(card))
    return out / TEXT


def _card(run: Path, stages: list[Stage], folder: Path) -> Card:
    numbers, world = (noted(run / name) for name in ("eval.json", "world.json"))
    numbers = numbers if is_readable(numbers) else {}
    measured = f"{title(numbers)}, {basis(numbers)}" if numbers else "not measured: 'reverie eval' does"
    return Card(
        name=run.name,
        licence=str(world.get("licence") or UNKNOWN),
        said=verdict(numbers),
        facts={
            "Data": _data(stages, world),
            "Training": [("recipe", _recipe(world)), *(fact for stage in stages for fact in _training(stage))],
            "Code and machine": _code(stages, numbers),
        },
        measured=measured,
        numbers=rows(numbers, HEADLINES),
        pictures=list(_pictures(run, numbers, folder)),
    )


def _data(stages: list[Stage], world: dict[str, Any]) -> list[tuple[str, str]]:
    record = next(stage.record for stage in stages if stage.record)
    height, width, _ = record.spec.frame
    facts = [
        ("source", record.spec.source or UNKNOWN),
        ("licence of the data", str(world.get("data_licence") or UNKNOWN)),
        ("frames", f"{width} x {height} pixels, {record.spec.fps:g} per second"),
        ("recorded actions", f"{record.spec.actions.kind}, {', '.join(record.spec.actions.names) or 'without names'}"),
        ("fingerprint", record.fingerprint),
    ]
    try:
        dataset = open_dataset(next(stage.folder for stage in stages if stage.record).parent / record.run.data, "train")
    except (ReverieError, OSError):
        return [*facts, ("amount", UNKNOWN)]
    minutes = dataset.lengths.sum() / record.spec.fps / 60
    amount = f"{len(dataset.lengths)} episodes, {int(dataset.lengths.sum())} frames ({minutes:.1f} minutes) to train on"
    if not world.get("data_licence") and getattr(dataset, "licence", ""):
        facts[1] = (facts[1][0], dataset.licence)  # pyright: ignore[reportAttributeAccessIssue]
    return [*facts, ("amount", amount)]


def _recipe(world: dict[str, Any]) -> str:
    minutes = world.get("minutes")
    time = f"; {minutes:g} minutes were given" if isinstance(minutes, int | float) else ""
    return f"{world.get('about') or UNKNOWN}{time}"


def _training(stage: Stage) -> Iterator[tuple[str, str]]:
    if stage.record is None or stage.step is None:
        yield stage.name, UNKNOWN
        return
    run = stage.record.run
    weights = f"{si(stage.weights).strip()} trained weights" if stage.weights is not None else "weights not counted"
    time = f"{stage.seconds / 60:.1f} minutes" if stage.seconds else f"time {UNKNOWN}"
    try:
        blueprint = Blueprint(run.objective, stage.record.spec, run.seed, stage.folder)
        total = f"{si(stage.step * flops_of(run, stage.record.spec, blueprint)).strip()}FLOP"
    except ReverieError as error:  # a stage that it was trained on is not there
        total = f"FLOP not counted ({first_line(error)})"
    yield stage.name, f"{weights}, {stage.step} steps of {run.batch} x {run.length} frames, {total}, {time}"


def _code(stages: list[Stage], numbers: dict[str, Any]) -> list[tuple[str, str]]:
    made = next(stage.record for stage in reversed(stages) if stage.record).versions
    names = {"reverie": "Reverie", "code": "hash of its source", "jax": "JAX", "hardware": "trained on"}
    facts = [(text, made.get(name) or UNKNOWN) for name, text in names.items()]
    return [*facts, ("measured on", str(numbers.get("device") or UNKNOWN))]


def _pictures(run: Path, numbers: dict[str, Any], folder: Path) -> Iterator[tuple[Path, str, str]]:
    """Copy the pictures of the evaluation to ``folder``; without one, draw initial frames."""
    for name in ("dream", "actions"):
        for file in (run / "eval").glob(f"{name}.*"):
            if file.suffix in (".gif", ".png") and not file.is_symlink():
                alt, caption = PICTURES[name]
                shutil.copyfile(file, folder / file.name)
                yield folder / file.name, alt, caption
                return
    if starts := initial_frames(run):
        shown = contact_sheet(
            [("", np.stack([frames[-1] for frames, _ in starts]))], len(starts), scale_of(starts[0][0])
        )
        write_png(folder / "starts.png", shown)
        yield folder / "starts.png", "Initial frames of the world, side by side", "Frames from which play can begin."


def markdown(card: Card) -> str:
    """Return a card as Markdown, with the head that model hubs read."""
    head = ["library_name: reverie", "tags: [world-model]"]
    if LICENCE.fullmatch(card.licence):
        head.insert(0, f"license: {card.licence.lower()}")
    lines = ["---", *head, "---", "", f"# {_plain(card.name)}", "", f"Licence: {_plain(card.licence)}", ""]
    for file, alt, caption in card.pictures:
        lines += [f"![{_plain(alt)}]({FOLDER}/{file.name})", "", f"*{_plain(caption)}*", ""]
    lines += ["## What it can and cannot do", ""]
    lines += [f"- {_plain(sentence)}" for sentence in card.said or [card.measured]] + [""]
    lines += ["## Numbers", "", f"{_plain(card.measured)}.", ""]
    if card.numbers:
        lines += [
            *_rows(HEADS, card.numbers),
            "",
            "For a curve: its value at the first and at the last generated frame.",
            "",
        ]
    for heading, facts in card.facts.items():
        lines += [f"## {heading}", "", *_rows(("", ""), facts), ""]
    return "\n".join([*lines, "## Use", "", *(f"    {command}" for command in _use(card)), ""])


def _rows(heads: tuple[str, ...], found: list) -> list[str]:
    lines = [heads, ("---",) * len(heads), *(tuple(map(_plain, row)) for row in found)]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _plain(text: str) -> str:
    return MARKS.sub(r"\\\1", " ".join(text.split()))


def _use(card: Card) -> list[str]:
    return ["pip install reverie-worlds", f"reverie play {card.name}"]


def _parts(card: Card) -> Iterator[Element]:
    node = page.node
    yield node("p", f"Licence: {card.licence}", class_="dim")
    for file, alt, caption in card.pictures:
        yield page.picture(read_bytes(file, PICTURE_BYTES), alt, caption, wide=file.suffix == ".png")
    said = card.said or [card.measured]
    yield page.section("What it can and cannot do", node("ul", *(node("li", each) for each in said), class_="verdict"))
    yield page.section("Numbers", node("p", f"{card.measured}.", class_="dim"), page.table(HEADS, card.numbers))
    for heading, facts in card.facts.items():
        yield page.section(heading, page.pairs(dict(facts)))
    yield page.section("Use", node("pre", "\n".join(_use(card))))
