"""The command line keeps its manners: one line for what a user got wrong, the right status, nothing heavy loaded."""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from typing import Any, get_args

import pytest

import reverie
from reverie import cli, commands, interrupts, stores
from reverie.catalogue import catalogue
from reverie.config import flatten
from reverie.errors import ReverieError
from reverie.flags import flags_of
from reverie.presets import preset
from reverie.training import sharding
from reverie.training.log import LoggerName
from reverie.training.signals import stop_signals


@pytest.fixture
def run(capfd):
    """Return a function: words -> (status, stdout, stderr) of ``reverie`` given those words."""

    def run(*words: str) -> tuple[int, str, str]:
        try:
            status = cli.main(list(words))
        except SystemExit as stop:  # --help and --version end argparse
            status = int(stop.code or 0)
        return status, *capfd.readouterr()

    return run


COMMANDS = list(cli.parser()[1])


def test_alone_it_shows_what_there_is(run):
    status, out, err = run()
    assert (status, err) == (0, "")
    assert all(f"    {name}" in out for name in COMMANDS)
    assert run("--help")[1] == out
    assert run("--version")[1] == f"reverie {reverie.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps_with_an_example_that_parses(run, command):
    status, out, _ = run(command, "--help")
    assert status == 0
    examples = [line.split() for line in out.partition("examples:")[2].splitlines() if line.strip()]
    assert any(words[1] == command for words in examples)
    for words in examples:
        words = words[: words.index(">")] if ">" in words else words
        if "--help" not in words:
            cli.parser()[0].parse_known_args(words[1:])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["lern"], "there is no command 'lern'. Did you mean 'learn'?"),
        (["evaluate", "runs/demo"], "there is no command 'evaluate'. Did you mean 'eval'?"),
        (["--xyz"], "'reverie' does not know '--xyz'. 'reverie --help' lists every flag."),
        (["eval"], "the following arguments are required: RUN. 'reverie eval --help' lists every flag."),
        (["eval", "x", "--jsn"], "'reverie eval' does not know '--jsn'. Did you mean '--json'?"),
        (["eval", "x", "y"], "'reverie eval' does not take 'y'. 'reverie eval --help' lists every flag."),
        (["play", "--port", "many"], "argument --port: 'many' is not a whole number. 'reverie play --help' lists"),
        (["learn", "x", "--minutes"], "argument --minutes: expected one argument. 'reverie learn --help' lists"),
        (["learn", "x", "--log", "wandbb"], "argument --log: there is no 'wandbb'. Did you mean 'wandb'?"),
        (["train"], "the following arguments are required: PRESET. 'reverie train --help' lists every flag."),
        (["train", "--out", "x", "toy-maskgti"], "there is no preset 'toy-maskgti'. Did you mean 'toy-maskgit'?"),
        (["train", "toy-maskgit", "--stesp", "3"], "does not know '--stesp'. Did you mean '--steps'?"),
        (["train", "toy-maskgit", "--mesh", "fdsp"], "mesh 'fdsp': 'fdsp' is not an axis. Did you mean 'fsdp'?"),
        (
            ["train", "toy-maskgit", "--dynamics.optimizer.kind", "moun"],
            "argument --dynamics.optimizer.kind: there is no 'moun'. Did you mean 'muon'? 'reverie train toy-maskgit "
            "--help-all' lists every flag.",
        ),
        (["train", "toy-maskgit", "--dynamics.optimizer.warmup", "-1"], "warmup -1 >= 0"),
        (["train", "toy-maskgit", "--lr", "-1", "--out", "out"], "rate -1.0 >= 0"),
        (["train", "toy-maskgit", "--mesh", "data=2,fsdp=64", "--out", "out"], "cannot be laid over"),
        (["train", "toy-maskgit", "--steps", "0", "--out", "out"], "steps must be at least 1, not 0"),
        (["train", "toy-maskgit", "--weights", "1"], "--weights needs the stores that it weighs: --data A --data B"),
        (["data", "platformer"], "the following arguments are required: PATH. 'reverie data platformer --help-all'"),
        (["compare", "tyo"], "there is no comparison 'tyo'. Did you mean 'toy'?"),
        (["train", "no-such-preset"], "no-such-preset"),
        (["train", "no-such-preset", "--help"], "no-such-preset"),
        (["data", "platfromer", "out"], "there is no source 'platfromer'. Did you mean 'platformer'?"),
        (["eval", "no/such/run"], "no/such/run"),
        (["play", "no/such/run"], "no/such/run"),
        (["show", "no/such/run"], "no/such/run"),
        (["export", "no/such/run", "out"], "no/such/run"),
        (["data", "show", "no/such/store"], "no/such/store"),
        (["learn", "no/such/videos", "--out", "out"], "no/such/videos"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_a_user_gets_wrong_costs_one_line(run, tmp_path, words, line):
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert err.startswith("reverie: error: ")
    assert err.count("\n") == 1
    assert line in err
    assert not list(tmp_path.iterdir()), "something was left behind"


def test_debug_shows_where_an_error_came_from(run, monkeypatch):
    monkeypatch.setenv("REVERIE_DEBUG", "1")
    with pytest.raises(ReverieError, match="lern"):
        run("lern")


def test_flags_of_a_source_are_its_fields(run, tmp_path):
    status, out, _ = run("data", "platformer", "--help")
    assert status == 0
    assert "--tile INT" in out and "pixels of a tile's side" in out
    store = str(tmp_path / "store")
    status, out, err = run("data", "platformer", store, "--count", "4", "--frames", "8", "--val", "0.25")
    assert status == 0, err
    assert f"reverie data show {store}" in out
    status, out, err = run("data", "show", store)
    assert "train: 3 episodes, 24 frames" in out
    assert "val: 1 episodes, 8 frames" in out
    status, _, err = run("data", "platformer", str(tmp_path / "other"), "--coumt", "4")
    assert (status, err.count("\n")) == (2, 1)
    assert "'reverie data platformer' does not know '--coumt'. Did you mean '--count'?" in err
    status, _, err = run("data", "platformer", str(tmp_path / "other"), "--count", "0")
    assert (status, err.count("\n")) == (2, 1)
    assert not (tmp_path / "other").exists()


def test_list_names_every_preset_and_source(run):
    out = run("list")[1]
    assert all(f"  {name} " in out for part in catalogue().values() for name in part)


def made(*words: str) -> Any:
    """The recipe that ``reverie train`` would follow."""
    top, known = cli.parser()
    known["train"].extend(words)
    args = top.parse_args(["train", *words])
    args.config = known["train"].chosen(args)
    return commands.recipe_of(args)


@pytest.mark.parametrize("name", catalogue()["presets"])
def test_flags_of_a_preset_are_its_fields(name):
    assert made(name) == preset(name)
    depth, steps = "dynamics.objective.dynamics.transformer.depth", "tokenizer.steps"
    other = made(name, f"--{depth}", "24", "--tokenizer.steps=11")
    was = flatten(preset(name))
    assert {key: new for key, new in flatten(other).items() if new != was[key]} == {depth: 24, steps: 11}


def test_a_short_flag_is_for_every_stage_and_a_full_one_wins():
    words = ["--steps", "9", "--batch", "4", "--lr", "1e-2", "--seed", "3", "--mesh", "fsdp", "--log", "wandb"]
    full = ["--dynamics.steps", "7", "--tokenizer.optimizer.rate", "0.5"]
    for order in (words + full, full + words):
        recipe = made("toy-maskgit-latent", *order)
        runs = [recipe.tokenizer, recipe.lam, recipe.dynamics]
        assert [run.steps for run in runs] == [9, 9, 7]
        assert [run.optimizer.rate for run in runs] == [0.5, 0.01, 0.01]
        assert all((run.batch, run.seed, run.mesh, run.loggers) == (4, 3, "fsdp", ("wandb",)) for run in runs)
    assert made("--steps", "9", "toy-maskgit") == made("toy-maskgit", "--steps", "9")


def test_names_that_are_kept_to_start_at_once_are_those_there_are():
    assert get_args(cli.Logger) == get_args(LoggerName) and cli.AXES == sharding.AXES
    assert tuple(stores.TOOLS) == commands.STORE_TOOLS


@pytest.mark.parametrize("name", catalogue()["presets"])
def test_the_help_of_a_preset_is_short_and_all_of_it_on_request(run, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = run("train", name, "--help")
    assert status == 0
    assert out.count("\n") <= 140  # five stages
    assert all(len(line) <= 80 for line in out.splitlines())
    assert re.search(r"--steps INT +training steps\n", out) and "--dynamics.steps INT" in out
    status, out, _ = run("train", name, "--help-all")
    assert status == 0
    shown = set(re.findall(r"^  --(\S+)", out, re.MULTILINE))
    assert {flag.name.removeprefix("--") for flag in flags_of(preset(name))} <= shown


def named_configs() -> list[tuple[str, str]]:
    kinds = {"presets": "train", "sources": "data", "comparisons": "compare"}
    return [("", ""), *((kinds[kind], name) for kind, part in catalogue().items() for name in part)]


@pytest.mark.parametrize(("command", "name"), named_configs())
def test_no_flag_is_without_a_text(command, name):
    top, known = cli.parser()
    if command:
        known[command].extend([name, "--help-all"])
    for each in [known[command]] if command else [top, *known.values()]:
        for action in each._actions:
            text = str(action.help or "") if not isinstance(action, argparse._SubParsersAction) else "its own"
            assert text and text != argparse.SUPPRESS, f"{each.prog}: {action.option_strings or action.dest}"
            assert text[0] not in "(" and "``" not in text and len(text.partition("; one of ")[0]) < 160, text


def test_as_a_module_it_is_the_same(run):
    words = [sys.executable, "-m", "reverie", "--version"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == run("--version")[1]


def test_an_interrupt_is_130_and_leaves_only_what_the_same_command_goes_on_from(tmp_path):
    words = ["data", "platformer", "store", "--count", "100000"]
    # What a shell starts in the background ignores interrupts, and so would this.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{heed}; from reverie.cli import main; raise SystemExit(main())", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 300
        while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=300)[1]
    assert process.returncode == 130
    assert "Traceback" not in error
    assert {path.name for path in tmp_path.iterdir()} <= {".store.import", ".store.lock"}


@pytest.fixture
def heeding(monkeypatch):
    """Interrupts as the command line has them, repeated quickly."""
    monkeypatch.setattr(interrupts, "AGAIN", 0.02)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Deleted:
    """An object during whose deletion an interrupt comes: Python drops it."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)
        sum(range(3))


def test_an_interrupt_that_python_drops_is_repeated(heeding):
    ended = []
    with pytest.raises(KeyboardInterrupt), interrupts.heeded():
        try:
            Deleted()
            time.sleep(60)
        finally:
            time.sleep(0.2)  # what is tidied up is not interrupted again
            ended.append(True)
    assert ended
    time.sleep(0.05)  # nor is what comes later


def test_an_interrupt_waits_for_an_import_to_end(heeding, tmp_path, monkeypatch):
    """JAX's compiled parts crash otherwise, one time in five."""
    (tmp_path / "slowly_imported.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\nWHOLE = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt), interrupts.heeded():
        import slowly_imported  # pyright: ignore[reportMissingImports]

        assert slowly_imported.WHOLE
        time.sleep(60)
    assert sys.modules.pop("slowly_imported").WHOLE


def test_an_interrupt_repeated_while_others_handle_it_comes_once(heeding):
    """Training asks at its own time whether one came; a second one would end it without saving."""
    with pytest.raises(KeyboardInterrupt), interrupts.heeded():
        Deleted()
        with stop_signals() as stop:
            while not stop(True):
                time.sleep(0.01)
            time.sleep(0.2)
        raise KeyboardInterrupt


def test_an_interrupt_that_training_no_longer_asks_about_is_not_lost(heeding):
    """It came while the last checkpoint was being written: the next stage must not begin."""
    with pytest.raises(KeyboardInterrupt):
        with stop_signals() as stop:
            assert not stop(True)
            signal.raise_signal(signal.SIGINT)
        time.sleep(60)


def test_what_a_module_makes_of_an_interrupt_is_one_all_the_same(heeding, monkeypatch, capsys):
    def imported(_):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error

    monkeypatch.setattr(cli, "dispatch", imported)
    assert cli.main(["list"]) == 130
    assert capsys.readouterr().err == "\nreverie: stopped\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_early_is_no_error(unbuffered):
    words = [sys.executable, "-m", "reverie.cli", "--help"]
    read, write = os.pipe()
    os.close(read)
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    process = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, env=env)
    os.close(write)
    assert (process.returncode, process.stderr) == (0, b"")


def test_the_package_names_what_it_has():
    assert set(dir(reverie)) >= {"load", "Session"}
    assert callable(reverie.load)
    assert callable(reverie.Session)
    with pytest.raises(AttributeError, match="lode"):
        reverie.lode  # noqa: B018
