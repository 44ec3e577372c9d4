"""What sampling passes buy: the quality and the speed of one world by its passes per frame.

``python -m benchmarks.passes RUN [--passes 1 2 4 8]`` plays a trained world with every number in turn, which gives the
times, and evaluates it once with each: a JSON line as soon as it is known, then a table and the knee. ``--out FILE``
appends the lines to a file.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import interleaved, milliseconds
from reverie.evaluation.run import evaluate_run
from reverie.library import place
from reverie.nn.compiled import cache_compilations
from reverie.training.checkpoint import load
from reverie.world import Session, with_passes

Row = dict[str, Any]
LOSS = 0.2  # dB below the best PSNR that a smaller number of passes may cost
HEADS = {
    "passes": "passes",
    "psnr": "PSNR, mean of {horizon} frames, dB",
    "psnr_last": "PSNR at frame {horizon}, dB",
    "delta_psnr": "delta-PSNR, mean, dB",
    "frozen": "frozen, random and held keys",
    "lost": "lost, random and held keys",
    "ms_per_frame": "ms per played frame",
}


def measure(run: Path, passes: Sequence[int], clips: int = 64, sessions: int = 8, horizon: int = 16) -> Iterator[Row]:
    """Yield a row for each number of passes. ``sessions``: of long play, with random and as many with held keys."""
    times = played(run, passes)
    for count in passes:
        with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(sys.stderr):
            how: Any = {"passes": count, "deep": False, "speed": False, "sessions": sessions, "out": Path(out)}
            yield row(evaluate_run(run, clips, horizon, **how)) | {"ms_per_frame": round(times[count], 2)}


def played(run: Path, passes: Sequence[int]) -> dict[int, float]:
    """Return milliseconds from an action to the frame on the host, by passes, all measured in turn."""
    world, sides = load(run), {}
    for count in passes:
        session = Session(with_passes(world, count))
        session.reset(np.zeros((1, *world.config.frame), np.uint8))
        sides[str(count)] = partial(session.step, session.actions.nth(0) if session.actions.size else 0)
    return {int(count): milliseconds(times) for count, times in interleaved(sides, least=50).items()}


def row(numbers: dict[str, Any]) -> Row:
    """Return what an evaluation says about its passes. Shares are of the longest play, random and held keys."""
    play: Row = numbers["long_play"] or {"sessions": 0, "frames": 0}
    kinds = [play[kind] for kind in ("random", "held") if kind in play]
    return {
        "passes": numbers["passes"],
        "psnr": round(float(np.mean(numbers["psnr"])), 3),
        "psnr_last": round(numbers["psnr"][-1], 3),
        "psnr_last_ci": [round(bound, 3) for bound in numbers["psnr_ci"][-1]],
        "delta_psnr": round(float(np.mean(numbers["delta_psnr"])), 3) if numbers["delta_psnr"] else None,
        "frozen": [list(kind["frozen"].values())[-1] for kind in kinds],
        "lost": [list(kind["lost"].values())[-1] for kind in kinds],
        "sessions": play["sessions"],
        "frames": play["frames"],
        "horizon": numbers["horizon"],
        "clips": numbers["clips"],
    }


def knee(rows: Sequence[Row]) -> int:
    """Return the fewest passes within ``LOSS`` of the best PSNR, and of no more lost sessions than the best has."""
    best, lost = max(row["psnr"] for row in rows), min(sum(row["lost"]) for row in rows)
    good = [row["passes"] for row in rows if row["psnr"] >= best - LOSS and sum(row["lost"]) <= lost]
    return min(good, default=max(rows, key=lambda row: row["psnr"])["passes"])


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    heads = [head.format(**rows[0]) for head in HEADS.values()]
    lines = [heads, ["---"] * len(heads), *([_cell(row[name]) for name in HEADS] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(f"{share:.1%}" for share in value)
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def main() -> None:
    """Measure a world, and print lines, table and knee."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.passes", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a trained world: its folder, or the name of one that ships")
    parser.add_argument("--passes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--sessions", type=int, default=8, help="of long play, with each kind of keys")
    parser.add_argument("--out", type=Path, help="a file to append the lines to")
    args = parser.parse_args()
    cache_compilations()
    rows = []
    for found in measure(place(args.run), args.passes, args.clips, args.sessions):
        rows.append(found)
        print(json.dumps(found), flush=True)
        if args.out:
            with args.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
    print(f"\n{table(rows)}\n\nThe knee is at {knee(rows)} passes.")


if __name__ == "__main__":
    main()
