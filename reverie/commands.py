"""What each command of the command line does: it calls one function and prints. Everything heavy is imported late."""

import argparse
import contextlib
import json
import re
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from reverie.catalogue import catalogue, shipped
from reverie.config import SOURCES
from reverie.errors import ReverieError, did_you_mean
from reverie.flags import changed, settings
from reverie.text_table import table

# Those of ``reverie.stores``, which is not loaded for their names.
STORE_TOOLS = ("merge", "append", "subset", "label", "doctor", "show", "browse", "fetch")
SCREEN = "screen"  # what 'reverie record' takes beside sources: a window of the desktop
EVERY = "every."  # before a stage's field where a flag for every stage is kept


def demo(args: argparse.Namespace) -> None:
    from reverie.pipeline import DEMO, train
    from reverie.presets import preset
    from reverie.presets.recipe import logging_to

    train(logging_to(preset(DEMO), tuple(args.log)), args.out, args.minutes, fresh=args.fresh)
    if args.play:
        from reverie.play.server import play

        play(args.out, port=args.port, open_browser=args.browser)


def learn(args: argparse.Namespace) -> None:
    from reverie.data.cloud import local_copy
    from reverie.pipeline import MINUTES, learn, recipes_for

    source, out = str(local_copy(args.source)), args.out or Path("runs") / Path(args.source).resolve().stem
    if args.dry_run:
        from reverie.forecast import forecast

        minutes = MINUTES if args.minutes is None else args.minutes
        recipes, spec = recipes_for(source, out, minutes, args.pretrained)
        print(forecast(args.source, recipes[0], spec, minutes))
        return
    learn(source, out, args.minutes, pretrained=args.pretrained, fresh=args.fresh, loggers=tuple(args.log))


def recipe_of(args: argparse.Namespace) -> Any:
    """Return a preset with what its flags change: first those for every stage, then those with a full name."""
    from reverie.presets.recipe import stages

    short = settings(args, EVERY)
    every = {f"{stage}.{field}": value for stage in stages(args.config) for field, value in short.items()}
    return changed(args.config, every | settings(args))


def train(args: argparse.Namespace) -> None:
    recipe = recipe_of(args)
    if args.data or args.weights:
        from dataclasses import replace

        from reverie.data.cloud import local_copy
        from reverie.recorded import stored

        if fields := [name for name in settings(args) if name.startswith("source.")]:
            raise ReverieError(f"--{fields[0]} changes the source of the preset, which --data replaces.")
        if not args.data:
            raise ReverieError("--weights needs the stores that it weighs: --data A --data B.")
        recipe = replace(recipe, source=stored([str(local_copy(path)) for path in args.data], args.weights))
    if args.dry_run:
        from reverie.forecast import forecast
        from reverie.recorded import spec_of

        print(forecast(args.preset, recipe, spec_of(recipe)))
        return
    from reverie.pipeline import train
    from reverie.presets.recipe import stages
    from reverie.training.exact import pin_threads

    if any(getattr(recipe, stage).exact for stage in stages(recipe)):
        pin_threads()
    train(recipe, args.out or Path("runs") / args.preset, args.minutes, fresh=args.fresh)


def plan(args: argparse.Namespace) -> None:
    """Print what a step takes on a machine; status 1 if it does not fit."""
    recipe = recipe_of(args)
    from reverie.planning import plan, report, stages, topology

    where = topology(args.topology)
    facts = plan(recipe, args.stage, where, args.quick, args.time_limit)
    print(json.dumps(facts) if args.json else report(args.preset, args.stage, stages(recipe)[args.stage], where, facts))
    if not facts["fits"]:
        raise SystemExit(1)


def evaluate(args: argparse.Namespace) -> None:
    from reverie.data.cloud import local_copy
    from reverie.evaluation.agent_film import film
    from reverie.evaluation.environment import judge
    from reverie.evaluation.run import evaluate_run
    from reverie.evaluation.video import write_gif
    from reverie.library import place, results

    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        run = place(args.run)
        horizon = {} if args.horizon is None else {"horizon": args.horizon, "shorten": False}
        fields = ("data", "split", "context", "seed", "temperature", "bits", "passes")
        how = {name: getattr(args, name) for name in fields}
        how["data"] = args.data and local_copy(args.data)
        if args.env:
            numbers = judge(run, args.episodes, args.seed, args.plan)
            print(table((name, _with_interval(value)) for name, value in _by_task(numbers).items()))
            clip = (results(run) or run) / "eval" / "agent.gif"
            clip.parent.mkdir(parents=True, exist_ok=True)
            write_gif(clip, *film(run, seed=args.seed))
            print(f"its world beside the real game: {clip}")
        else:
            numbers = evaluate_run(run, args.clips, **horizon, features=args.features, out=results(run), **how)
    if args.json:
        print(json.dumps(numbers))


def _by_task(numbers: dict[str, Any]) -> dict[str, Any]:
    """Return numbers of several tasks as one list, each with its task before its name."""
    tasks = numbers.get("tasks", {})
    return {f"{task}: {name}": each for task, found in tasks.items() for name, each in found.items()} or numbers


def _with_interval(value: Any) -> str:
    """Return a number as text; a return with its 95 % interval."""
    if not isinstance(value, dict):
        return f"{value:.4g}"
    success = f", success {value['success']:.1%}" if "success" in value else ""
    return f"{value['mean']:.4g} [{value['low']:.4g}, {value['high']:.4g}] of {value['episodes']} episodes{success}"


def play(args: argparse.Namespace) -> None:
    from reverie.library import FIRST, place
    from reverie.play.server import play

    listen = {"host": args.host, "port": args.port, "expose": args.expose, "allow_hosts": args.allow_host}
    play(place(args.run or FIRST), **listen, players=args.players, bits=args.bits, open_browser=args.browser)


def record(args: argparse.Namespace) -> None:
    from reverie.play.recorder import record

    made = changed(args.config, settings(args))
    page = {"port": args.port, "open_browser": args.browser}
    out = record(made if not isinstance(made, type) else made(), args.out, val=args.val, licence=args.licence, **page)
    print(f"{args.out}: learn a world from it with 'reverie learn {args.out}'" if out else "no take was kept")


def data(args: argparse.Namespace) -> None:
    from reverie import stores
    from reverie.data.beam import write_by_beam
    from reverie.data.cloud import address_of, written
    from reverie.data.writing import write_source

    made = changed(args.config, settings(args))
    if args.source in stores.TOOLS:
        stores.run(args, made)
        return
    if args.others:
        raise ReverieError(f"'reverie data {args.source}' does not take '{args.others[0]}'.")
    how = {"val": args.val, "licence": args.licence, "codec": args.codec}
    if args.beam and args.shard:
        raise ReverieError("--beam writes all parts, so it takes no --shard.")
    more = {"how": args.beam} if args.beam else {"shard": args.shard}
    write = write_by_beam if args.beam else write_source
    written(args.path, f"{made} {how} {more}", lambda path: write(path, made, **how, **more))
    print(f"{address_of(args.path)}: look at it with 'reverie data show {address_of(args.path)}'")


def card(args: argparse.Namespace) -> None:
    from reverie.card import PAGE, write_card
    from reverie.library import place, results

    run = place(args.run)
    out = write_card(run, args.out or results(run))
    print(f"{out}\n{out.with_name(PAGE)}")


def atlas(args: argparse.Namespace) -> None:
    from reverie.evaluation.atlas import write_atlas
    from reverie.library import place, results

    run, names = place(args.run), {}
    for text in args.name:
        code, equals, name = text.partition("=")
        if not (equals and code.isdecimal()):
            raise ReverieError(f"--name takes NUMBER=NAME, such as 3=jump, not '{text}'.")
        names[int(code) - 1] = name
    print(write_atlas(run, args.clips, names, results(run)))


def compare(args: argparse.Namespace) -> None:
    if args.config is None:
        from reverie.library import place
        from reverie.side_by_side import side_by_side

        print(side_by_side([place(run) for run in (args.name, *args.runs)], args.out or Path("runs")))
        return
    if args.runs:
        raise ReverieError(
            f"'{args.name}' is a comparison, which takes no runs: name two runs to see them side by side."
        )
    made = changed(args.config, settings(args))
    from reverie.compare import compare

    out = compare(made, args.out or Path("runs") / f"compare-{args.name}", args.seeds, args.jobs)
    print((out / "table.md").read_text(encoding="utf-8"))


def list_(args: argparse.Namespace) -> None:
    known = catalogue()

    def facts(preset: dict[str, Any]) -> str:
        size, steps = preset["parameters"] / 1e6, sum(preset["steps"].values())
        return f"{size:6.1f} M parameters  {steps:7,} steps  {preset['about']} ({preset['takes']})"

    print("presets (reverie train NAME)\n" + table((name, facts(preset)) for name, preset in known["presets"].items()))
    print("\nsources (reverie data NAME OUT)\n" + table(sources_named().items()))
    comparisons = ((name, f"{each['about']} ({each['takes']})") for name, each in known["comparisons"].items())
    print("\ncomparisons (reverie compare NAME)\n" + table(comparisons))


def show(args: argparse.Namespace) -> None:
    run, *others = args.run
    if run in catalogue()["presets"] and not others and not (args.tree or args.mesh):
        from reverie.forecast import forecast
        from reverie.presets import preset

        recipe = preset(run)
        print(forecast(run, recipe, recipe.source.spec()))
        return
    known = {*catalogue()["presets"], *shipped()}
    if not Path(run).exists() and run not in known and (hint := did_you_mean(run, known)).startswith(" Did"):
        raise ReverieError(f"there is no run, world or preset '{run}'.{hint}")
    if others and args.tree:
        raise ReverieError("--tree shows the model of one run.")
    if args.mesh and not args.tree:
        raise ReverieError("--mesh says on which mesh --tree shows a model: give both.")
    from reverie.library import place, results

    if args.tree:
        from rich import print as print_tree

        from reverie.tree import tree

        print_tree(tree(place(run), args.mesh))
        return
    if others:
        from reverie.side_by_side import trainings

        print(f"{len(args.run)} runs side by side: {trainings([place(each) for each in args.run], args.page)}")
        return
    from reverie.show import show

    folder = place(run)
    print(table(show(folder, results(folder)).items()))


def worlds(args: argparse.Namespace) -> None:
    from reverie.library import described

    print("worlds that came with Reverie (reverie play NAME)\n" + table(described()))


def export(args: argparse.Namespace) -> None:
    if [args.out, args.web, args.weights].count(None) != 2:
        raise ReverieError(
            "say where to export to: OUT for a folder or an archive, --web OUT for a page, or --weights FILE."
        )
    if args.web is not None:
        export_web(args)
        return
    from reverie.checksums import sha256
    from reverie.library import place
    from reverie.training import plain
    from reverie.training.archive import is_archive, write_archive
    from reverie.training.export import export, export_weights

    if (ending := Path(args.out or "").suffix) in (".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"):
        raise ReverieError(f"an archive ends in .zip, not in {ending}; a folder has no such name.")
    if ending == plain.SUFFIX:
        raise ReverieError(f"OUT is a folder or NAME.zip: '--weights {args.out}' writes plain weights.")
    if args.weights is not None:
        if args.bits != 32:
            raise ReverieError("plain weights have 32 bits: leave out --bits.")
        print(f"{export_weights(place(args.run), args.weights)}: reverie.load('{args.weights}') loads it")
        return
    if args.bits == 8:
        raise ReverieError(
            "weights of 8 bits are for --web and for 'reverie play'; a folder or an archive has 32 or 16."
        )
    write, run = write_archive if is_archive(args.out) else export, place(args.run)
    write(run, args.out, args.licence, args.bits)
    if args.bits != 32:
        from reverie.narrow_weights import cost_of_copy

        print(cost_of_copy(run, place(args.out)))
    if not (run / "dynamics").is_dir():
        print(f"{args.out}: reverie.load('{args.out}') loads it")
        return
    print(f"{args.out}: 'reverie play {args.out}' plays it")
    if is_archive(args.out):
        print(f"on the web: 'reverie play https://ADDRESS/{args.out.name}#sha256={sha256(args.out)}'")


def export_web(args: argparse.Namespace) -> None:
    from reverie.library import place
    from reverie.web.export import export_web

    out = export_web(place(args.run), args.web, args.runtime, args.licence, args.bits)
    print(
        f"{out}: {out.stat().st_size / 1e6:.2f} MB, open it in a browser"
        if out.is_file()
        else f"{out}: a static site, for a web server such as 'python -m http.server -d {out}'"
    )


def sources_named() -> dict[str, str]:
    """Return what each source is, by its name; those of other packages included."""
    others = {entry.name: f"from another package: {entry.value}" for entry in entry_points(group=SOURCES)}
    return others | catalogue()["sources"]


def source(name: str) -> Any:
    """Return the config class of a source, or of a tool for stores, by name; ReverieError if there is none."""
    if name in STORE_TOOLS:
        from reverie.stores import TOOLS

        return TOOLS[name]
    from reverie.data.sources import sources

    return named(sources(), name, "source")


def games_known() -> list[str]:
    """Return the names of what can be recorded: sources, and a window of the desktop."""
    return [*sources_named(), SCREEN]


def game(name: str) -> Any:
    """Return the config of what is recorded: a source or a window by name, or a Gymnasium environment by id.

    Raises ReverieError if there is no such source.
    """
    if name == SCREEN:
        from reverie.play.screen import ScreenConfig

        return ScreenConfig
    if name in sources_named() or not re.search(r"-v\d+$|[:/]", name):
        return source(name)
    from reverie.data.sources.gymnasium import GymnasiumConfig

    return GymnasiumConfig(path=name)


def named(options: dict[str, Any], name: str, kind: str) -> Any:
    if name not in options:
        raise ReverieError(f"there is no {kind} '{name}'.{did_you_mean(name, options)}")
    return options[name]
