"""An evaluation written down: eval.json, pictures, and a page that shows all of it.

Legend: H W C image, T time.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from rich.console import Console

from reverie import config
from reverie.checksums import signed
from reverie.evaluation import long_play, page, plots
from reverie.evaluation.meaning import HEADLINES, Numbers, basis, rows, table, title
from reverie.evaluation.verdict import verdict
from reverie.evaluation.video import write_gif, write_png
from reverie.training.folder import named

PAGE = "eval/index.html"
# What a picture of ``measure.evaluate`` shows: name -> alternative text, caption. In the order of the page.
PICTURES = {
    "dream": (
        "Clips side by side: the true frames, their reconstruction, the rollout",
        "The true clip, the tokenizer's reconstruction of it, and the rollout along the same actions.",
    ),
    "sheet": (
        "Contact sheet: for each clip rows of truth, reconstruction, rollout, random actions, last frame repeated",
        "Clips over time, from left to right. Each has a row for the truth and one for each view compared with it.",
    ),
    "actions": (
        "Contact sheet: a row of generated frames for each action, held all the time from the same first frame",
        "What each action does when it is held, from one start. Rows that look alike are keys that do nothing.",
    ),
    "long_play": (
        "Contact sheet: generated frames of long sessions with random keys and with held keys",
        "Long sessions, after {moments} generated frames.",
    ),
}
CHARTS = {
    "psnr": "PSNR: how close to the true future",
    "ssim": "Structural similarity",
    "delta_psnr": "Delta-PSNR: what true actions gain",
}


def write_report(
    numbers: Numbers, pictures: dict[str, np.ndarray], out: Path, about: dict[str, Any] | None = None
) -> Path:
    """Write ``out/eval.json`` and, under ``out/eval``, index.html, curves.png and each picture (PNG) or clip (GIF).

    ``about``: configs and facts of the world by name, for the page. Returns the path of the JSON, in which what is not
    a finite number is null.
    """
    out = Path(out)
    folder = out / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        if picture.ndim == 3:
            write_png(folder / f"{name}.png", picture)
        else:
            write_gif(folder / f"{name}.gif", picture, numbers.get("fps") or 10.0)
    write_png(folder / "curves.png", plots.curves(numbers))
    shown = {name: folder / f"{name}.{'png' if picture.ndim == 3 else 'gif'}" for name, picture in pictures.items()}
    page.write_page(out / PAGE, f"Evaluation of {named(out).name}", _parts(numbers, shown, about or {}))
    path, part = out / "eval.json", out / f".eval.json.{os.getpid()}.part"
    try:
        finite = {key: _finite(value) for key, value in numbers.items()}
        lines = [f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in signed(finite).items()]
        part.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def say(numbers: Numbers) -> None:
    """Print the headline numbers and the verdict."""
    console = Console(highlight=False)
    console.print(table(numbers))
    console.print()
    for sentence in verdict(numbers):
        console.print(f"- {sentence}", markup=False, soft_wrap=True)


def _parts(numbers: Numbers, pictures: dict[str, Path], about: dict[str, Any]) -> Iterator[Element]:
    """The page: what it says first, then the pictures, then everything there is to look up."""
    node = page.node
    yield node("p", f"{title(numbers)}, {basis(numbers)}.", class_="dim")
    yield node("ul", *(node("li", sentence) for sentence in verdict(numbers)), class_="verdict")
    heads = ("number", "value", "95 % interval", "meaning")
    note = "For a curve: its value at the first and at the last generated frame, and the interval of the last."
    yield page.section("Headline numbers", page.table(heads, rows(numbers, HEADLINES)), node("p", note, class_="dim"))
    figures = {text: plots.panel(numbers, kind) for kind, text in CHARTS.items() if numbers.get(kind)}
    note = "Shaded: the 95 % interval over episodes."
    yield page.section("Over the generated frames", page.charts(figures), node("p", note, class_="dim"))
    yield page.section("Pictures", *_figures(pictures, numbers))
    if played := numbers.get("long_play"):
        yield page.section("Long play", _long_play(played))
    measured = {
        name: numbers.get(name) for name in ("dataset", "split", "fingerprint", "seed", "temperature", "device")
    }
    yield page.section(
        "Everything else",
        page.folded("All numbers", page.table(heads, rows(numbers))),
        page.folded("Data and evaluation", page.pairs(measured)),
        *(page.folded(name.capitalize(), page.pairs(config.flatten(value))) for name, value in about.items()),
    )


def _figures(pictures: dict[str, Path], numbers: Numbers) -> Iterator[Element]:
    frames = (numbers.get("long_play") or {}).get("frames", 0)
    moments = ", ".join(str(moment) for moment in long_play.moments(frames))
    for name in sorted(pictures, key=list(PICTURES).index):
        alt, caption = PICTURES[name]
        yield page.picture(pictures[name].read_bytes(), alt, caption.format(moments=moments), wide=name != "dream")


def _long_play(played: Numbers) -> Element:
    """One row for each kind of keys and number of frames."""
    names = ("lost", "frozen", "frozen_real", "absent", "drift")
    heads = ("keys", "after frames", "sessions lost", "frames frozen", "frozen in reality", "player absent", "drift")
    found = [
        (kind, step, *("" if not played[kind][name] else f"{played[kind][name][step]:.3f}" for name in names))
        for kind in ("random", "held")
        for step in played[kind]["lost"]
    ]
    return page.table(heads, found)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
