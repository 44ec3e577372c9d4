"""Whatever is wrong with what a user brings: status 2, one line that says so, and every file as it was before."""

import hashlib
import re
import shlex
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mistakes_with_worlds  # noqa: F401  (its cases register themselves)
import pytest
from mistakes import CASES, SPEC, copy, episodes, scratch, weights_of

from reverie import cli
from reverie.data.store import write_store
from reverie.errors import ReverieError
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.models.tokenizers.vqvae import VQVAEConfig
from reverie.nn.quantise import VQConfig
from reverie.nn.transformer import TransformerConfig
from reverie.training import checkpoint
from reverie.training.engine import Run, fit
from reverie.training.objectives import DynamicsObjective, TokenizerObjective

NET = TransformerConfig(width=16, depth=1, heads=2, hidden=32, window=4)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A world, two steps old, with its data."""
    place = tmp_path_factory.mktemp("made") / "world"
    write_store(place / "data", SPEC, episodes(), val=0.25)
    tokenizer = VQVAEConfig(patch=8, encoder=NET, decoder=NET, quantiser=VQConfig(codes=8, width=8))
    stages = {
        "tokenizer": TokenizerObjective(tokenizer=tokenizer),
        "dynamics": DynamicsObjective(dynamics=MaskGITConfig(transformer=NET, passes=2), context=3),
    }
    for name, objective in stages.items():
        run = Run(objective=objective, batch=2, length=4, steps=2, log_every=1, report_every=0, save_every=1)
        fit(run, place / name, progress=False)
    return place


def everything() -> dict[str, str]:
    """Return every file and folder here, and what is in it, save what Python itself leaves beside a module."""
    here = sorted(path for path in Path().rglob("*") if "__pycache__" not in path.parts)
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "" for p in here}


def refused(capfd, line: str, says: str, note: str = "") -> None:
    capfd.readouterr()
    status = cli.main(shlex.split(line))
    *notes, last = capfd.readouterr().err.splitlines() or [""]
    assert last.startswith("reverie: error: "), last
    assert re.search(says, last), last
    assert last[-1] in ".?" and status == 2
    assert all(note and re.search(note, line) for line in notes), notes


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_nothing_lost(name, world, capfd):
    prepare, says, note = CASES[name]
    line = prepare(world)
    before = everything()
    refused(capfd, line, says, note)
    assert everything() == before


def test_a_port_in_use(world, capfd):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused(capfd, f"play {world} --port {port} --no-browser", f"Port {port} is in use: try --port {port + 1}")


def test_of_several_checkpoints_the_newest_whole_one_is_used(world, capfd):
    mine = copy(world)
    for file in weights_of(mine / "dynamics", 2):
        scratch(file)
    assert cli.main(["export", "mine", "there"]) == 0
    assert "The checkpoint of step 2 in" in capfd.readouterr().err
    assert sorted(path.name for path in Path("there/dynamics/checkpoints").iterdir()) == ["1", "1.saved"]


def test_other_data_under_a_run_are_refused(world):
    mine = copy(world)
    shutil.rmtree(mine / "data")
    write_store(mine / "data", SPEC, episodes(seed=1), val=0.25)
    run = checkpoint.read_record(mine / "tokenizer").run
    with pytest.raises(ReverieError, match="was trained on other data .*choose another folder"):
        fit(replace(run, steps=4), mine / "tokenizer", progress=False)


def test_relative_paths_work(world, capfd, monkeypatch):
    copy(world)
    Path("deeper").mkdir()
    monkeypatch.chdir("deeper")
    for run in ("../mine", "../mine/../mine/dynamics", "../mine/tokenizer/"):
        assert cli.main(["show", run]) == 0
    assert cli.main(["data", "show", "../mine/data"]) == 0
    assert "3 episodes, 36 frames" in capfd.readouterr().out


FULL = """
import resource, signal, sys
from reverie import cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))  # no file may grow beyond: EFBIG
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
@pytest.mark.parametrize("line", ["data square store --count 64 --frames 64", "data square store.npz --count 64"])
def test_a_full_disk(line):
    done = subprocess.run([sys.executable, "-c", FULL, *shlex.split(line)], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr[-2000:]
    assert done.stderr.startswith("reverie: error: ") and done.stderr.count("\n") == 1, done.stderr[-2000:]
    assert "arge" in done.stderr or "full" in done.stderr
    assert not list(Path().iterdir()), "something half-written was left behind"
