"""``reverie export RUN --web OUT``: a trained world as a page that needs no server.

Shapes: T time, H W C image.
"""

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reverie.actions import ActionSpace
from reverie.errors import ReverieError
from reverie.play import protocol
from reverie.play.buttons import rest
from reverie.play.server import card, load_for_play, picture
from reverie.web.page import page, url
from reverie.web.runtime import runtime
from reverie.world import Session, WorldModel, initial
from reverie.world_folder import Start

CHECKED = 8  # frames played at export and again in the page, at each of two temperatures
GREY = 128  # every pixel of a picture to begin from, where a world has no starts; the same in the page
# FLOPs in a second of one core, in Chromium 150 with onnxruntime-web 1.30.0 (wasm): 16e9 on a quiet machine, 4e9 on a
# busy one. There 0.28 GFLOP took 17 and 38 ms, 8.4 GFLOP 1.3 to 1.9 s. Small frames have an overhead beside it.
SPEED, OVERHEAD = 8e9, 0.005


def export_web(
    run: str | Path, out: str | Path, runtime_folder: Path | None = None, licence: str = "", bits: int = 32
) -> Path:
    """Write the world in a folder as a page, with its own initial frames; see ``export_world``."""
    _free(Path(out))
    world, about = load_for_play(run)
    return export_world(world, out, **about, runtime_folder=runtime_folder, licence=licence, bits=bits)


def export_world(
    world: WorldModel,
    out: str | Path,
    *,
    name: str = "a world",
    starts: Sequence[Start] = (),
    runtime_folder: Path | None = None,
    licence: str = "",
    bits: int = 32,
) -> Path:
    """Write a page with a world inside: one file if ``out`` ends in .html, else a folder for a static host.

    ``licence``: of the world, noted in the page. ``bits``: of the weights of its dynamics, 32, 16 or 8; what fewer
    cost is measured and printed. Warns on stderr about a world too large for its pace. Raises ReverieError if ``out``
    exists, the converter lacks an operation of the world, or the runtime is missing.
    """
    out = Path(out)
    _free(out)
    if importlib.util.find_spec("onnx") is None:
        raise ReverieError("a page is written with the package onnx: pip install 'reverie-worlds[web]'.")
    from reverie.narrow_weights import cost, rounded
    from reverie.web.programs import models, trace

    runner = runtime(runtime_folder)
    session = Session(world)
    if bits != 32:
        full, session = session, Session(rounded(world, bits))
        world = session.world
        print(cost(full, session, starts))
    traced = trace(world)
    warn(traced.flops, world.config.fps)
    made = models(traced)
    check, recorded = record(session, starts)
    parts = {"runtime": runner.script, "wasm": runner.wasm, **made._asdict()}
    own = [frames[-world.config.context :] for frames, _ in starts]
    parts["frames"] = b"".join(frames.tobytes() for frames in [*own, *recorded])
    pictures = [url("image/png", picture(start)) for start in starts]
    note = licence and f"Licence: {licence}."
    data = {
        "card": card(world, name, note, 0, pictures, formats=("gif",)),
        "setup": {**setup(world, starts), "check": check},
    }
    write(out, page(data, parts, single=out.suffix == ".html"))
    return out


def _free(out: Path) -> None:
    if out.exists():
        raise ReverieError(f"'{out}' exists already: choose another place for the page.")


def warn(flops: float, fps: float) -> None:
    """Print a line if a frame takes longer in a browser than the world's pace allows."""
    seconds = OVERHEAD + flops / SPEED
    if seconds * fps > 1:
        print(
            f"A frame of this world takes about {1000 * seconds:.0f} ms on one core of a browser "
            f"({flops / 1e9:.2g} GFLOP), and its pace is {1000 / fps:.0f} ms: the page will be slow.",
            file=sys.stderr,
        )


def setup(world: WorldModel, starts: Sequence[Start]) -> dict[str, Any]:
    """Return what the page needs to run the model: shapes, and actions as numbers."""
    space = world.config.actions
    given = [initial(world, *start) for start in starts]
    blank = initial(world, np.zeros((1, *world.config.frame), np.uint8), None)
    return {
        "context": world.config.context,
        "action": {"type": np.dtype(space.dtype).name, "shape": space.shape, "values": values(space)},
        "starts": [{"length": int(length), "actions": actions.ravel().tolist()} for _, actions, length in given],
        "unlabelled": blank[1].ravel().tolist(),
    }


def values(space: ActionSpace) -> list[list[float]]:
    """Return what each level of each component of an action is in the model's input."""
    if space.kind == "none":
        return [[space.unlabelled().item()]]
    at_rest = rest(space)

    def value(component: int, level: int) -> float:
        levels = [*at_rest[:component], level, *at_rest[component + 1 :]]
        return space.nth(np.ravel_multi_index(levels, space.levels)).reshape(-1)[component].item()

    return [[value(component, level) for level in range(count)] for component, count in enumerate(space.levels)]


def record(session: Session, starts: Sequence[Start]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Play some frames at two temperatures: (what was played, its frames), for the page to play again."""
    grey = np.full((1, *session.world.config.frame), GREY, np.uint8), None
    actions = np.random.default_rng(0).integers(session.actions.count, size=CHECKED).tolist()
    frames, runs = [], []
    for temperature in (0, 100):
        session.temperature = temperature / 100
        frames.append(session.reset(*(starts[0] if starts else grey)))
        frames += [session.step(session.actions.nth(action) if session.actions.size else 0) for action in actions]
        runs.append({"temperature": temperature, "actions": actions})
    start = 0 if starts else protocol.PICTURE
    return {"start": start, "seed": session.seed, "runs": runs}, frames


def write(out: Path, files: dict[str, bytes]) -> None:
    """Write a page's files under another name, then move them to theirs."""
    half = out.with_name(f".{out.name}.{os.getpid()}")
    if out.suffix == ".html":
        half.write_bytes(files["index.html"])
    else:
        half.mkdir(parents=True)
        for name, data in files.items():
            (half / name).write_bytes(data)
    os.replace(half, out)
