"""The command line: ``reverie COMMAND``. It reads words and calls what the command does (``reverie.commands``).

A wrong word gets one line on stderr, status 2 and the word that was meant; ``REVERIE_DEBUG=1`` shows where it came
from. Flags of presets, comparisons and sources are the fields of their configs (``reverie.flags``). Nothing here loads
JAX before it is needed, so that help and errors come at once.
"""

import argparse
import gc
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import reverie
from reverie import commands
from reverie.catalogue import catalogue, shipped
from reverie.commands import EVERY, STORE_TOOLS, game, games_known, named, source, sources_named
from reverie.errors import ReverieError
from reverie.flags import Flag, of
from reverie.interrupts import heeded
from reverie.parsing import Named, Parser, completed, dashed

# The same as in ``reverie.training``, which loads JAX.
Logger, AXES = Literal["tensorboard", "wandb", "terminal"], ("data", "fsdp", "tensor", "sequence")

WHICH = "the folder of a world, an archive of one (.zip), its https address, or a name from 'reverie worlds'"
BITS: Any = {"type": int, "choices": (32, 16, 8), "default": 32, "help": "bits of the weights of the dynamics (32)"}
OFTEN = {"steps", "batch", "length", "rate", "width", "depth", "patch", "codes", "actions", "passes", "temperature"}


def preset(name: str) -> Any:
    """Return a preset by name; ReverieError if there is none."""
    from reverie.presets import preset

    return preset(name)


def comparison(name: str) -> Any:
    """Return a comparison by name, None for a trained world; ReverieError if there is neither."""
    from reverie.presets.comparison import comparison

    return None if "/" in name or Path(name).exists() or name in shipped() else comparison(name)


def presets_known() -> list[str]:
    return list(catalogue()["presets"])


def sources_known() -> list[str]:
    return [*sources_named(), *STORE_TOOLS]


def comparisons_known() -> list[str]:
    return list(catalogue()["comparisons"])


def shard_of(text: str) -> tuple[int, int]:
    """Return (i, n) of "i/n"."""
    part, slash, parts = text.partition("/")
    if not slash or not part.isdecimal() or not parts.isdecimal() or not 0 <= int(part) < int(parts):
        raise argparse.ArgumentTypeError(f"'{text}' is not a part of a whole such as 0/4 to 3/4")
    return int(part), int(parts)


def is_common(flag: Flag) -> bool:
    """Whether the short help of a preset shows a flag: all of the source are shown, and the usual ones of stages."""
    place, _, field = flag.path.partition(".")
    return place in ("source", "clips", "horizon") or field.rpartition(".")[2] in OFTEN


class Completion(argparse.Action):
    """Print what a shell evaluates to complete words behind ``reverie``, and exit."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        from argcomplete.shell_integration import shellcode

        print(shellcode([parser.prog], shell=values))
        parser.exit()


PRESET = Named("preset", presets_known, preset, is_common)
COMPARISON = Named("name", comparisons_known, comparison, lambda flag: flag.path.count(".") < 2, default="toy")
SOURCE = Named("source", sources_known, source, lambda flag: True)
GAME = Named("game", games_known, game, lambda flag: True)


def parser() -> tuple[Parser, dict[str, Parser]]:
    """Return the parser of the command line, and those of its commands by name."""
    top = Parser(
        prog="reverie",
        description="Train world models from video and step into them.",
        epilog="Begin with 'reverie demo', or with videos of your own: 'reverie learn clips/', then 'reverie play "
        "runs/clips'.\n'reverie COMMAND --help' describes one command.",
    )
    top.add_argument("--version", action="version", version=f"reverie {reverie.__version__}", help="show the version")
    text = "print a script that completes commands, names and flags in a shell"
    top.add_argument("--completion", action=Completion, choices=("bash", "zsh", "fish"), help=text)
    subparsers = top.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=Parser)

    def add(name: str, run: Callable, text: str, *examples: str, **more: Any) -> Parser:
        epilog = "examples:\n" + "\n".join(f"  {line}" for line in examples)
        new = subparsers.add_parser(name, help=text, description=text, epilog=epilog, **more)
        new.set_defaults(run_command=run)
        return new

    _worlds(add)
    _use(add)
    _tools(add)
    _looks(add)
    return top, subparsers.choices


def add_training(to: Parser, minutes: str, out: str | None = None) -> None:
    to.add_argument("--out", type=Path, default=out and Path(out), metavar="RUN", help="folder of the world")
    to.add_argument("--minutes", **of(float), help=minutes)
    to.add_argument("--fresh", action="store_true", help="start over; what RUN holds is replaced at the end")


def add_dry_run(to: Parser) -> None:
    text = "show stages, sizes, FLOPs, memory and time, and train nothing"
    to.add_argument("--dry-run", action="store_true", help=text)


def add_log(to: Any, dest: str = "log") -> None:
    text = "also log to this service; terminal prints every number; may be repeated"
    default: Any = [] if dest == "log" else argparse.SUPPRESS
    to.add_argument("--log", action="append", dest=dest, default=default, help=text, **of(Logger))


def add_every(to: Parser) -> None:
    """Add the short names of what is set most, for every stage."""
    group = to.add_argument_group("for every stage (a full name, such as --dynamics.steps, wins for its stage)")

    for name, field, kind, text in [
        ("--steps", "steps", int, "training steps"),
        ("--batch", "batch", int, "clips per step"),
        ("--lr", "optimizer.rate", float, "peak learning rate"),
        ("--seed", "seed", int, "seed of the weights, the batches and all noise"),
        ("--mesh", "mesh", str, "axes of the mesh of devices: data, fsdp or data=2,fsdp=4"),
    ]:
        flag = group.add_argument(name, dest=EVERY + field, default=argparse.SUPPRESS, help=text, **of(kind))
        if field == "mesh":
            completed(flag, lambda: AXES)
    exact: Any = {"dest": EVERY + "exact", "action": "store_const", "const": True, "default": argparse.SUPPRESS}
    group.add_argument("--exact", **exact, help="the same bits on 1, 2, 4 or 8 devices; slower")
    add_log(group, EVERY + "loggers")


def add_store(to: Parser) -> None:
    to.add_argument("--val", **of(float), default=0.1, help="share of the episodes held out (0.1)")
    to.add_argument("--licence", default="", metavar="TEXT", help="the licence to note in the store")


def add_page(to: Parser) -> None:
    to.add_argument("--port", **of(int), default=8000, help="port of the page (8000); 0: any free one")
    to.add_argument("--no-browser", dest="browser", action="store_false", help="do not open a browser")


def _worlds(add: Callable[..., Parser]) -> None:
    """Add the commands that make worlds."""
    one = add("demo", commands.demo, "Train a small world in minutes, then play in it.",
              "reverie demo", "reverie demo --no-play --out runs/demo")  # fmt: skip
    add_training(one, "how long it may train", "runs/demo")
    add_log(one)
    one.add_argument("--no-play", dest="play", action="store_false", help="stop when the world is trained")
    add_page(one)

    one = add("learn", commands.learn, "Make a playable world out of videos, a store or a simulator.",
              "reverie learn clips/ --out runs/clips --minutes 60", "reverie learn platformer")  # fmt: skip
    text = "a folder of videos, a video, a store, or a source's name"
    completed(one.add_argument("source", metavar="SOURCE", help=text), sources_known)
    add_training(one, "how long it may train (30)")
    text = "start with the weights of this world, with none, or by a trial with what comes with Reverie (auto)"
    one.add_argument("--pretrained", metavar="WORLD", default="auto", help=text)
    add_dry_run(one)
    add_log(one)

    one = add("train", commands.train, "Train a preset; every field of it is a flag.", "reverie list",
              "reverie train PRESET --out runs/mine", "reverie train PRESET --data data/a --data data/b --weights 3 1",
              "reverie train PRESET --help", named=PRESET)  # fmt: skip
    completed(one.add_argument("preset", metavar="PRESET", help="a name from 'reverie list'"), presets_known)
    add_training(one, "as many steps as fit in this time, instead of the preset's")
    text = "train on this store instead of the preset's source; repeat it to mix several"
    one.add_argument("--data", action="append", default=[], metavar="STORE", help=text)
    text = "share of the clips from each --data; without it, all episodes count alike"
    one.add_argument("--weights", nargs="+", default=[], help=text, **of(float))
    add_dry_run(one)
    add_every(one)

    one = add("plan", commands.plan, "Compile a preset's training step for machines that are not there.",
              "reverie plan coinrun-maskgit-base --topology h100:8 --quick",
              "reverie plan PRESET --topology v5e:4x4 --mesh fsdp --json", named=PRESET)  # fmt: skip
    completed(one.add_argument("preset", metavar="PRESET", help="a name from 'reverie list'"), presets_known)
    text = "the machine: v5e:16x16, 2xv5e:16x16, v5p:4x4x4, v6e:4x4, h100:64, h200:8 or cpu:8"
    one.add_argument("--topology", metavar="NAME", required=True, help=text)
    one.add_argument("--stage", default="dynamics", metavar="NAME", help="the stage to plan (dynamics)")
    text = "answer in seconds, by tracing alone: temporaries are an estimate"
    one.add_argument("--quick", action="store_true", help=text)
    one.add_argument("--time-limit", **of(float), default=60.0, help="minutes that compiling may take (60)")
    one.add_argument("--json", action="store_true", help="one JSON object on stdout")
    add_every(one)


def _use(add: Callable[..., Parser]) -> None:
    """Add the commands that measure and play worlds."""
    one = add("eval", commands.evaluate, "Measure a world: how sharp it is, and whether it follows its actions.",
              "reverie eval runs/demo", "reverie eval runs/demo --json > numbers.json",
              "reverie eval runs/demo --horizon 64 --clips 32",
              "reverie eval worlds/demo --data data/platformer")  # fmt: skip
    one.add_argument("run", metavar="RUN", help=WHICH)
    one.add_argument("--clips", **of(int), default=64, help="held-out clips, at most (64)")
    text = "generated frames (16, or as many as the longest episode has room for)"
    one.add_argument("--horizon", **of(int), help=text)
    text = "a store or .npz to measure on, not the world's own data"
    one.add_argument("--data", type=Path, metavar="STORE", help=text)
    one.add_argument("--split", metavar="NAME", help="the part of the data to measure on (val)")
    one.add_argument("--context", **of(int), help="real frames before the generated ones (as many as the world takes)")
    one.add_argument("--seed", **of(int), default=0, help="seed of clips, actions and sampling (0)")
    text = "sampling temperature; 0: no noise (what the world was made for)"
    one.add_argument("--temperature", **of(float), help=text)
    one.add_argument("--bits", **BITS)
    one.add_argument("--passes", **of(int), default=0, help="sampling passes per frame; 0: the world's own (0)")
    one.add_argument("--features", metavar="MODULE:FUNCTION", help="your features of clips, for a Frechet distance")
    one.add_argument("--env", action="store_true", help="measure the world's agents in the real environment instead")
    one.add_argument("--episodes", **of(int), default=512, help="with --env: episodes that each policy plays (512)")
    text = "with --env: episodes of them in which planning is measured, which takes long; 0: none (32)"
    one.add_argument("--plan", **of(int), default=32, help=text)
    one.add_argument("--json", action="store_true", help="one JSON object on stdout, progress on stderr")

    one = add("play", commands.play, "Step into a world; without RUN, one that came with Reverie.",
              "reverie play", "reverie play runs/demo", "reverie play runs/demo --port 9000 --no-browser",
              "reverie play https://example.org/demo.zip")  # fmt: skip
    one.add_argument("run", nargs="?", metavar="RUN", help=WHICH)
    one.add_argument("--players", **of(int), default=16, help="how many may play at once (16)")
    one.add_argument("--bits", **BITS)
    text = "address to listen on (127.0.0.1: this machine only)"
    one.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help=text)
    one.add_argument("--expose", action="store_true", help="allow a --host that others can reach")
    text = "also answer to this host name, of a proxy, a tunnel or a .local address; may be repeated"
    one.add_argument("--allow-host", action="append", default=[], metavar="NAME", help=text)
    add_page(one)


def _tools(add: Callable[..., Parser]) -> None:
    """Add the commands for data and comparisons."""
    one = add("data", commands.data, "Record or convert episodes into a store, or work on stores.",
              "reverie data platformer data/platformer --count 64", "reverie data videos data/clips --path clips/",
              "reverie data show data/platformer", "reverie data merge data/both data/clips data/platformer",
              "reverie data platformer --help", named=SOURCE)  # fmt: skip
    text = f"a source's name from 'reverie list', or {', '.join(STORE_TOOLS)}"
    completed(one.add_argument("source", metavar="SOURCE", help=text), sources_known)
    one.add_argument("path", type=Path, metavar="PATH", help="the store to write, or to work on")
    text = "further stores, of merge, append, subset and label; the index, of fetch"
    one.add_argument("others", nargs="*", default=[], metavar="MORE", help=text)
    add_store(one)
    text = "how frames are packed: raw, zstd, png, ffv1, h264 (loses detail) or auto (chosen by a probe)"
    one.add_argument("--codec", default="auto", metavar="NAME", help=text)
    text = "write part I of N, counted from 0, for an array job; 'merge' joins them"
    one.add_argument("--shard", type=shard_of, metavar="I/N", help=text)
    text = "write N parts by Apache Beam, whose options may follow: '8 --runner=FlinkRunner'"
    one.add_argument("--beam", default="", metavar="N", help=text)

    one = add("record", commands.record, "Record a real game, played in the browser or in a window, into a store.",
              "reverie record platformer data/mine", "reverie record CartPole-v1 data/cartpole --size 64 64",
              "reverie record screen data/game --window 'My game' --keys a d --fps 10",
              "reverie record platformer --help", named=GAME)  # fmt: skip
    text = "a source with a game, such as platformer or coinrun, the id of a Gymnasium environment, or screen: a window"
    completed(one.add_argument("game", metavar="GAME", help=text), games_known)
    one.add_argument("out", type=Path, metavar="OUT", help="the store to write; takes are kept in OUT-takes")
    add_store(one)
    add_page(one)

    one = add("compare", commands.compare, "Train families of dynamics alike (an hour); or show worlds side by side.",
              "reverie compare --out runs/compare", "reverie compare coinrun --seeds 5",
              "reverie compare runs/a runs/b --out a-and-b.html", named=COMPARISON)  # fmt: skip
    text = "toy (an hour on a CPU; the default) or coinrun: families of dynamics, trained compute-matched"
    completed(one.add_argument("name", nargs="?", default="toy", metavar="NAME", help=text), comparisons_known)
    text = "instead of NAME, two or more worlds that were evaluated: one page shows them side by side"
    one.add_argument("runs", nargs="*", metavar="RUN", help=text)
    text = "folder of the comparison; of worlds side by side: the page or its folder (runs)"
    one.add_argument("--out", type=Path, metavar="OUT", help=text)
    one.add_argument("--seeds", **of(int), default=3, help="how often each row is trained (3)")
    one.add_argument("--jobs", **of(int), default=2, help="rows at a time (2)")


def _looks(add: Callable[..., Parser]) -> None:
    """Add the commands that look at worlds, and hand them on."""
    one = add("atlas", commands.atlas, "Show what each action of a world does, and name latent actions.",
              "reverie atlas runs/clips", "reverie atlas runs/clips --name 3=jump --name 1=left")  # fmt: skip
    one.add_argument("run", metavar="RUN", help=WHICH)
    text = "name a latent action, by the number of its button; NUMBER= takes the name away; may be repeated"
    one.add_argument("--name", action="append", default=[], metavar="NUMBER=NAME", help=text)
    one.add_argument("--clips", **of(int), default=64, help="held-out clips to look at, at most (64)")
    one = add("card", commands.card, "Write the model card of a world: data, licence, cost, numbers, limits.",
              "reverie card runs/demo", "reverie card platformer --out cards/platformer")  # fmt: skip
    one.add_argument("run", metavar="RUN", help=WHICH)
    one.add_argument("--out", type=Path, metavar="FOLDER", help="where to write it, if not beside the world")
    add("worlds", commands.worlds, "List the worlds that came with Reverie.", "reverie worlds")
    add("list", commands.list_, "Name every preset, source and comparison.", "reverie list")
    one = add("show", commands.show, "Show a run and write its report.html, or what a preset will take.",
              "reverie show runs/demo", "reverie show toy-maskgit", "reverie show runs/demo --tree",
              "reverie show runs/one runs/two --page both.html")  # fmt: skip
    text = "a world's folder or a stage's, or a preset's name (./NAME for a folder of that name); several: side by side"
    completed(one.add_argument("run", nargs="+", metavar="RUN", help=text), presets_known)
    one.add_argument("--tree", action="store_true", help="the model as a tree: parameters, shapes, bytes, shardings")
    text = "with --tree: on this mesh, as in data=2,fsdp=4; its devices need not be here"
    one.add_argument("--mesh", default="", metavar="LAYOUT", help=text)
    text = "the page of several runs (side-by-side.html)"
    one.add_argument("--page", type=Path, default=Path("side-by-side.html"), metavar="FILE", help=text)
    one = add("export", commands.export, "Write what is needed to play, and no more: a folder, an archive or a page.",
              "reverie export runs/demo worlds/demo", "reverie export runs/demo demo.zip --licence MIT",
              "reverie export runs/demo --web demo.html",
              "reverie export runs/demo --weights demo.safetensors")  # fmt: skip
    one.add_argument("run", metavar="RUN", help=WHICH)
    one.add_argument("out", type=Path, nargs="?", metavar="OUT", help="the folder to write, or one file NAME.zip")
    text = "write a page with the world inside, which needs no server: a file NAME.html, or a folder for a static host"
    one.add_argument("--web", type=Path, metavar="OUT", help=text)
    text = "a folder with the files of onnxruntime-web for --web; without it, npm fetches them once"
    one.add_argument("--runtime", type=Path, metavar="DIR", help=text)
    text = "write plain weights: a file NAME.safetensors, and their configs beside it, NAME.json"
    one.add_argument("--weights", type=Path, metavar="FILE", help=text)
    text = "bits of the weights (32); 16 halves what is written, 8 is for --web; what fewer cost is printed"
    one.add_argument("--bits", **BITS | {"help": text})
    one.add_argument("--licence", default="", metavar="TEXT", help="the licence of the world, to note in it")


def dispatch(argv: list[str]) -> None:
    top, known = parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what could be typed next
        import argcomplete

        argcomplete.autocomplete(top)
    argv = [dashed(word) for word in argv]
    if argv and not argv[0].startswith("-"):
        named(known, argv[0], "command").extend(argv[1:])
    args, rest = top.parse_known_args(argv)
    one = known.get(args.command, top)
    if rest and "others" in args and not any(word.startswith("-") for word in rest):
        args.others, rest = [*args.others, *rest], []  # argparse does not take them behind a flag
    if rest:
        one.refuse(rest)
    elif not args.command:
        top.print_help()
    else:
        args.config = one.chosen(args)
        args.run_command(args)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the status for the shell: 0, 2 for a ReverieError, 130 when interrupted."""
    # Tracing makes objects by the million. At the default of 700 a tenth of a short training is looking for garbage.
    gc.set_threshold(50_000)
    root = logging.getLogger()
    if not root.handlers and logging.lastResort:
        root.addHandler(logging.lastResort)  # plain lines; else some package adds a handler with a prefix
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
