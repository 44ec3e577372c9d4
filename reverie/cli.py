"""The command line: ``reverie COMMAND``. It reads words, calls one function, prints; everything heavy is imported late.

A wrong word gets one line on stderr, status 2 and the word that was meant; ``REVERIE_DEBUG=1`` shows where it came
from. The flags of presets and sources are in ``reverie.flags``.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import reverie
from reverie.errors import ReverieError, did_you_mean
from reverie.interrupts import heeded

FORMAT = argparse.RawDescriptionHelpFormatter


class Parser(argparse.ArgumentParser):
    """argparse, whose complaints are ReverieErrors: one line, and no page of usage before it."""

    def error(self, message: str) -> NoReturn:
        raise ReverieError(f"{message}. '{self.prog} --help' shows how it is used.")


class Help(argparse.Action):
    """``--help`` behind the name of a preset or a source tells about its own flags."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        if getattr(namespace, str(self.const)) is not None:
            namespace.run_command(namespace, ["--help"])
        parser.print_help()
        parser.exit()


def demo(args: argparse.Namespace, rest: list[str]) -> None:
    from reverie.pipeline import DEMO, train
    from reverie.presets import preset

    train(preset(DEMO), args.out, args.minutes, fresh=args.fresh)
    if args.play:
        from reverie.play.server import play

        play(args.out, port=args.port, open_browser=args.browser)


def learn(args: argparse.Namespace, rest: list[str]) -> None:
    from reverie.pipeline import learn

    out = args.out or Path("runs") / Path(args.source).resolve().stem
    learn(args.source, out, args.minutes, fresh=args.fresh)


def train(args: argparse.Namespace, rest: list[str]) -> None:
    from reverie.flags import flags
    from reverie.presets import preset

    recipe = preset(args.preset)
    recipe = flags(type(recipe), rest, f"reverie train {args.preset}", default=recipe)
    from reverie.pipeline import train

    train(recipe, args.out or Path("runs") / args.preset, args.minutes, fresh=args.fresh)


def evaluate(args: argparse.Namespace, rest: list[str]) -> None:
    from reverie.evaluation.run import evaluate_run

    with contextlib.redirect_stdout(sys.stderr):  # progress; stdout is for the numbers alone
        horizon = {} if args.horizon is None else {"horizon": args.horizon, "shorten": False}
        how = {name: getattr(args, name) for name in ("data", "split", "context", "seed", "temperature")}
        numbers = evaluate_run(args.run, args.clips, **horizon, features=args.features, **how)
    print(json.dumps(numbers) if args.json else "\n".join(f"{k:32} {v}" for k, v in numbers.items()))


def play(args: argparse.Namespace, rest: list[str]) -> None:
    from reverie.play.server import play

    run = args.run or shipped()
    place = {"host": args.host, "port": args.port, "expose": args.expose, "allow_hosts": args.allow_host}
    play(run, **place, players=args.players, open_browser=args.browser)


def data(args: argparse.Namespace, rest: list[str]) -> None:
    from reverie.config import flatten
    from reverie.data.held_out import leak
    from reverie.data.sources import sources
    from reverie.data.splits import labelled
    from reverie.data.store import NoSplit, open_dataset
    from reverie.data.writing import write_source
    from reverie.flags import flags

    if args.source == "show":
        found = {"train": open_dataset(args.path, "train")}
        with contextlib.suppress(NoSplit):
            found["val"] = open_dataset(args.path, "val")
        for split, dataset in found.items():
            known = labelled(dataset)
            share = f", {sum(known) / len(known):.0%} of the episodes with actions" if any(known) else ""
            print(f"{split}: {len(dataset.lengths)} episodes, {int(dataset.lengths.sum())} frames{share}")
        if "val" in found:
            print(f"leak: {leak(found['train'], found['val']):.1%} of held-out frames are in train, or nearly so")
        dataset = found["train"]
        print(table(flatten(dataset.spec).items()))
        for note in getattr(dataset, "notes", ()):
            print(f"note: {note}")
        return
    source = flags(named(sources(), args.source, "source"), rest, f"reverie data {args.source} PATH")
    write_source(args.path, source, val=args.val, licence=args.licence)
    print(f"{args.path}: look at it with 'reverie data show {args.path}'")


def compare(args: argparse.Namespace, rest: list[str]) -> None:
    from reverie.flags import flags
    from reverie.presets.comparison import comparison

    name = args.name or "toy"
    made = comparison(name)
    made = flags(type(made), rest, f"reverie compare {name}", default=made)
    from reverie.compare import compare

    out = compare(made, args.out or Path("runs") / f"compare-{name}", args.seeds, args.jobs)
    print((out / "table.md").read_text(encoding="utf-8"))


def list_(args: argparse.Namespace, rest: list[str]) -> None:
    from reverie.data.sources import sources
    from reverie.presets import presets
    from reverie.presets.recipe import parameters

    def first_line(value: Any) -> str:
        return (value.__doc__ or "").strip().partition("\n")[0]

    def facts(recipe: Any) -> str:
        stages = [run for run in (recipe.tokenizer, recipe.lam, recipe.dynamics) if run]
        size, steps = parameters(recipe), sum(run.steps for run in stages)
        return f"{size / 1e6:6.1f} M parameters  {steps:7,} steps  {recipe.about} ({recipe.takes})"

    print("presets (reverie train NAME)\n" + table((name, facts(recipe)) for name, recipe in presets().items()))
    print("\nsources (reverie data NAME OUT)\n" + table((n, first_line(s)) for n, s in sources().items()))


def show(args: argparse.Namespace, rest: list[str]) -> None:
    from reverie.config import flatten
    from reverie.training.checkpoint import find_run, read_record

    record = read_record(find_run(args.run))
    print(table(flatten({"data": record.fingerprint, "spec": record.spec, "run": record.run}).items()))


def export(args: argparse.Namespace, rest: list[str]) -> None:
    from reverie.training.export import export

    export(args.run, args.out)
    print(f"{args.out}: 'reverie play {args.out}' plays it")


def shipped() -> Path:
    """The world that comes with the package."""
    worlds = sorted(Path(__file__).parent.glob("worlds/*/"))
    if not worlds:
        raise ReverieError("this installation has no world of its own: 'reverie demo' makes one.")
    return worlds[0]


def named(options: dict[str, Any], name: str, kind: str) -> Any:
    if name not in options:
        raise ReverieError(f"there is no {kind} '{name}'.{did_you_mean(name, options)}")
    return options[name]


def table(rows: Iterable[tuple[Any, Any]]) -> str:
    rows = [(str(a), str(b)) for a, b in rows]
    width = max((len(a) for a, _ in rows), default=0)
    return "\n".join(f"  {a:{width}}  {b}".rstrip() for a, b in rows)


def parser() -> tuple[Parser, dict[str, Any]]:
    """Return the parser of the command line, and those of its commands by name."""
    top = Parser(
        prog="reverie",
        formatter_class=FORMAT,
        description="Train world models from video and step into them.",
        epilog="Begin with 'reverie demo', or with videos of your own: 'reverie learn clips/', then 'reverie play "
        "runs/clips'.\n'reverie COMMAND --help' tells more about one of them.",
    )
    top.add_argument("--version", action="version", version=f"reverie {reverie.__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    def add(name: str, run: Callable, text: str, *examples: str, flags_of: str = "") -> Parser:
        """``flags_of``: the argument that names a config; flags unknown to the command are that config's."""
        epilog = "examples:\n" + "\n".join(f"  {line}" for line in examples)
        new = commands.add_parser(
            name, help=text, description=text, epilog=epilog, formatter_class=FORMAT, add_help=not flags_of
        )
        if flags_of:
            new.add_argument("-h", "--help", action=Help, nargs=0, const=flags_of, help="this, or a named one's flags")
        new.set_defaults(run_command=run, more=bool(flags_of))
        return new

    _worlds(add)
    _tools(add)
    return top, commands.choices


def add_out(to: Parser, default: str | None = None) -> None:
    to.add_argument("--out", type=Path, default=default and Path(default), metavar="RUN", help="folder to fill")


def add_training(to: Parser, minutes: str) -> None:
    to.add_argument("--minutes", type=float, help=minutes)
    to.add_argument("--fresh", action="store_true", help="begin anew, and lose what was trained in RUN before")


def add_page(to: Parser) -> None:
    to.add_argument("--port", type=int, default=8000, help="port of the page (8000; 0 takes any free one)")
    to.add_argument("--no-browser", dest="browser", action="store_false", help="do not open a browser")


def _worlds(add: Callable[..., Parser]) -> None:
    """Add the commands that make, measure and play worlds."""
    one = add("demo", demo, "Train a small world in minutes, then play in it.",
              "reverie demo", "reverie demo --no-play --out runs/demo")  # fmt: skip
    add_out(one, "runs/demo")
    add_training(one, "how long it may train")
    one.add_argument("--no-play", dest="play", action="store_false", help="stop when the world is trained")
    add_page(one)

    one = add("learn", learn, "Make a playable world out of videos, a store or a simulator.",
              "reverie learn clips/ --out runs/clips --minutes 60", "reverie learn platformer")  # fmt: skip
    one.add_argument("source", metavar="SOURCE", help="a folder of videos, a video, a store, or a source's name")
    add_out(one)
    add_training(one, "how long it may train")

    one = add("train", train, "Train a preset; every field of it is a flag.", "reverie list",
              "reverie train PRESET --out runs/mine", "reverie train PRESET --help", flags_of="preset")  # fmt: skip
    one.add_argument("preset", metavar="PRESET", help="a name from 'reverie list'")
    add_out(one)
    add_training(one, "as many steps as fit in this time, instead of the preset's")

    one = add("eval", evaluate, "Measure a world: how sharp it is, and whether it obeys.",
              "reverie eval runs/demo", "reverie eval runs/demo --json > numbers.json",
              "reverie eval runs/demo --horizon 64 --clips 32",
              "reverie eval worlds/demo --data data/platformer")  # fmt: skip
    one.add_argument("run", type=Path, metavar="RUN")
    one.add_argument("--clips", type=int, default=64, help="held-out clips, at most (64)")
    one.add_argument("--horizon", type=int, help="frames dreamed (16, or as many as the longest episode has room for)")
    one.add_argument(
        "--data", type=Path, metavar="STORE", help="a store or .npz to measure on, not the world's own data"
    )
    one.add_argument("--split", help="the part of the data to measure on (val)")
    one.add_argument("--context", type=int, help="real frames before the dream (as many as the world takes)")
    one.add_argument("--seed", type=int, default=0, help="of clips, keys and chance (0)")
    one.add_argument("--temperature", type=float, help="0 for nothing left to chance (what the world was made for)")
    one.add_argument("--features", metavar="MODULE:FUNCTION", help="your features of clips, for a Frechet distance")
    one.add_argument("--json", action="store_true", help="one JSON object on stdout, progress on stderr")

    one = add("play", play, "Step into a world; without RUN, one that came with Reverie.",
              "reverie play", "reverie play runs/demo", "reverie play runs/demo --port 9000 --no-browser")  # fmt: skip
    one.add_argument("run", type=Path, nargs="?", metavar="RUN")
    one.add_argument("--players", type=int, default=16, help="how many may play at once (16)")
    one.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    one.add_argument("--expose", action="store_true", help="allow a --host that others can reach")
    text = "also answer to this host name, of a proxy, a tunnel or a .local address; may be repeated"
    one.add_argument("--allow-host", action="append", default=[], metavar="NAME", help=text)
    add_page(one)


def _tools(add: Callable[..., Parser]) -> None:
    """Add the commands around them."""
    one = add("data", data, "Record or convert episodes into a store, or look into one.",
              "reverie data platformer data/platformer --count 64", "reverie data videos data/clips --path clips/",
              "reverie data show data/platformer", "reverie data platformer --help", flags_of="source")  # fmt: skip
    one.add_argument("source", metavar="SOURCE", help="a source's name from 'reverie list', or 'show'")
    one.add_argument("path", type=Path, metavar="PATH", help="the store to write, or to look into")
    one.add_argument("--val", type=float, default=0.1, help="share of the episodes held out (0.1)")
    one.add_argument("--licence", default="", help="the licence to note in the store")

    one = add("compare", compare, "Train families of dynamics alike, with equal arithmetic; write one table.",
              "reverie compare --out runs/compare", "reverie compare coinrun --seeds 5", flags_of="name")  # fmt: skip
    one.add_argument("name", nargs="?", metavar="NAME", help="toy (an hour on a CPU; the default) or coinrun")
    add_out(one)
    one.add_argument("--seeds", type=int, default=3, help="how often each row is trained (3)")
    one.add_argument("--jobs", type=int, default=2, help="rows at a time (2)")

    add("list", list_, "Name every preset and source.", "reverie list")
    one = add("show", show, "Tell what a run is: its config, data and state.", "reverie show runs/demo")
    one.add_argument("run", type=Path, metavar="RUN")
    one = add("export", export, "Write what is needed to play, and no more, to a folder.",
              "reverie export runs/demo worlds/demo")  # fmt: skip
    one.add_argument("run", type=Path, metavar="RUN")
    one.add_argument("out", type=Path, metavar="OUT")


def dispatch(argv: list[str]) -> None:
    top, commands = parser()
    if argv and not argv[0].startswith("-"):
        named(commands, argv[0], "command")
    args, rest = top.parse_known_args(argv)
    if rest and not getattr(args, "more", False):
        commands.get(args.command, top).error(f"unrecognized arguments: {' '.join(rest)}")
    elif not args.command:
        top.print_help()
    else:
        args.run_command(args, rest)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the status for the shell: 0, 2 for a ReverieError, 130 when interrupted."""
    came: list[int] = []
    try:
        with heeded() as came:
            try:
                dispatch(list(sys.argv[1:] if argv is None else argv))
            finally:
                sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        if not came and isinstance(error, Exception):
            return failed(error)
        print("\nreverie: stopped", file=sys.stderr)  # or whatever a module made of the interrupt
        return 130
    return 0


def failed(error: Exception) -> int:
    """Say in one line why a command failed, and return the status for the shell."""
    if isinstance(error, BrokenPipeError):  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # keep the interpreter's last flush quiet too
        return 0
    if os.environ.get("REVERIE_DEBUG") == "1" or not isinstance(error, ReverieError | OSError):
        raise error
    if isinstance(error, OSError):  # a disk that is full or read-only, a file where a folder should be
        place = f"'{error.filename}'" if error.filename else "a file"
        error = ReverieError(f"cannot use {place}: {error.strerror or error}.")
    print(f"reverie: error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
