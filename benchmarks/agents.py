"""docs/agents/results.json: what agents got in the real environment, one row per task, world, arm and seeds.

``python -m benchmarks.agents runs/square-agent [RUN ...] --world learned`` measures trained runs, replaces their rows,
and draws the table of docs/agents.md from all of them.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from reverie.evaluation.environment import judge
from reverie.nn.compiled import cache_compilations
from reverie.training.record import RECORD, read_record

ROOT = Path(__file__).resolve().parents[1] / "docs"
FILE, PAGE = ROOT / "agents" / "results.json", ROOT / "agents.md"
BEGIN, END = "<!-- drawn by python -m benchmarks.agents -->\n", "<!-- end -->\n"
KEY = "task", "world", "arm", "world_seed", "agent_seed", "policy_seed"
ORDER = (
    "random", "data", "blind", "bc", "bc_greedy", "bc_other", "plan", "rl", "rl_greedy", "rl_other", "oracle",
    "imagined", "replayed",
)  # fmt: skip
UNTRAINED = {"random", "data", "blind", "oracle"}
Row = dict[str, Any]


def rows_of(run: Path, numbers: dict[str, Any], world: str) -> list[Row]:
    """Return the rows of what ``judge`` found in a run. ``world``: what its agent learned in, in words."""
    if "tasks" in numbers:
        found = {task: rows_of(run, each, world) for task, each in numbers["tasks"].items()}
        return [row | {"task": f"{row['task']}, {task}"} for task, rows in found.items() for row in rows]
    seeds = {
        f"{name}_seed": read_record(run / stage).run.seed if (run / stage / RECORD).is_file() else None
        for name, stage in (("world", "dynamics"), ("agent", "agent"), ("policy", "policy"))
    }
    task = read_record(run / "agent").spec.source

    def of(arm: str) -> Row:  # only the seeds that an arm depends on: rows of several runs may be the same one
        if arm in UNTRAINED:
            return dict.fromkeys(seeds)
        return seeds | {"policy_seed": None} if arm.startswith("bc") else seeds

    known = [arm for arm in ORDER if f"return_{arm}" in numbers]
    return [{"task": task, "world": world, "arm": arm, **of(arm), **numbers[f"return_{arm}"]} for arm in known]


def add(rows: list[Row], file: Path = FILE) -> list[Row]:
    """Put rows into the file, in place of those of the same task, world, arm and seeds; returns all of them."""
    old = json.loads(file.read_text("utf8")) if file.exists() else []
    known = {tuple(row[name] for name in KEY): row for row in [*old, *rows]}
    found = sorted(known.values(), key=lambda row: (row["task"], row["world"], ORDER.index(row["arm"]), str(row)))
    lines = ",\n".join(f" {json.dumps(row)}" for row in found)
    file.write_text(f"[\n{lines}\n]\n", encoding="utf8")
    return found


def table(rows: list[Row]) -> str:
    """Return the rows as a table: a line per task, world and arm, seed by seed where there are several."""
    lines = ["| task | world | who plays | mean return, seed by seed | success | episodes |", "| --- " * 6 + "|"]
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["world"], row["arm"]), []).append(row)
    for (task, world, arm), found in groups.items():
        means = "; ".join(f"{row['mean']:.1f} ({row['low']:.1f} to {row['high']:.1f})" for row in found)
        success = "; ".join(f"{row['success']:.1%}" for row in found if "success" in row)
        lines.append(f"| {task} | {world} | {arm} | {means} | {success} | {found[0]['episodes']} |")
    return "\n".join(lines) + "\n"


def draw(rows: list[Row], page: Path = PAGE) -> None:
    """Write the table between its marks in a page."""
    before, _, rest = page.read_text("utf8").partition(BEGIN)
    page.write_text(before + BEGIN + "\n" + table(rows) + "\n" + END + rest.partition(END)[2], encoding="utf8")


def main() -> None:
    """Measure runs, add their rows and draw the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agents", description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    parser.add_argument("--world", default="learned", help="what the agents learned in, in words")
    parser.add_argument("--episodes", type=int, default=512)
    parser.add_argument("--plan", type=int, default=32)
    args = parser.parse_args()
    cache_compilations()
    rows = add([])
    for run in args.runs:
        rows = add(rows_of(run, judge(run, args.episodes, plan=args.plan), args.world))
    draw(rows)


if __name__ == "__main__":
    main()
