"""``python -m benchmarks [NAME ...] [--out FILE]``: one JSON line per figure, all of them or those of some files."""

import argparse
from importlib import import_module

from benchmarks.timing import tell
from reverie.nn.compiled import cache_compilations

NAMES = ("dispatch", "loader", "tokens", "training", "play", "players", "imagination")


def main() -> None:
    """Print every figure as soon as it is known; with --out, append it to a file as well."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; all of them by default")
    parser.add_argument("--out", help="a file to append the lines to, such as benchmarks/results.jsonl")
    args = parser.parse_args()
    if wrong := sorted(set(args.names) - set(NAMES)):
        parser.error(f"there is no benchmark {wrong[0]!r}: choose from {', '.join(NAMES)}")
    cache_compilations()
    for name in args.names or NAMES:
        tell(import_module(f"benchmarks.{name}").measure(), args.out)


if __name__ == "__main__":
    main()
