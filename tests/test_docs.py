"""What the pages tell a reader to type is typed here, block by block, and the names they drop exist.

The ``sh`` and ``python`` blocks of a page run in order in one empty folder that holds ``clips/``, a few short videos.
``sh`` runs command by command. Some would take long, wait for a player or reach out; REHEARSED says how each of these
is run instead, and why. What it does not name is run as it stands.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from reverie import cli
from reverie.errors import ReverieError

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Notes of what was once done or decided keep their commands as they were.
HISTORY = {ROOT / "docs" / "log.md", *(ROOT / "docs" / "decisions").glob("*.md")}
LIVING = [page for page in PAGES if page not in HISTORY]
TYPED_ELSEWHERE = {ROOT / "docs" / "add-a-dynamics.md"}  # into a copy of the package: tests/test_add_a_dynamics.py

MINIATURE = shlex.join([sys.executable, str(ROOT / "tests" / "rehearsal.py")])
REHEARSED = [  # (how a command begins, what becomes of it)
    ("reverie export platformer --web", "web"),  # needs a file of 33 MB from npm
    ("reverie play", "serve"),  # waits for a player: the page is fetched, then it is interrupted
    ("reverie record", "serve"),
    ("reverie data browse", "serve"),
    ("reverie demo", "miniature --no-play --minutes 1"),
    ("reverie learn", "miniature"),  # minutes of training, or hours
    ("reverie train toy-maskgit --dynamics.mesh", "miniature --dry-run"),  # tests/test_mesh.py trains on such meshes
    ("reverie train", "miniature"),
    ("reverie plan", "traced"),  # compilers for other machines are extras: traced for this one, which may be too small
    ("make", "dry"),  # `make -n` in the repository: the target exists. What it would run is run here and in other tests
    ("git clone", "leave"),  # no network
    ("ssh", "leave"),
    ("cd reverie", "leave"),
    ("pip install", "leave"),  # set-up is tried by .ci/run
    ("uv", "leave"),
    ("python -m benchmarks.jasmine", "leave"),  # needs that checkout
    ("python -m benchmarks.accelerator", "leave"),  # ten minutes; tests/test_accelerator.py runs its parts
    (".ci/run", "leave"),  # runs this
]


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return the (language, text) of a page's fenced blocks that are meant to be run."""
    return re.findall(r"^```(sh|python)\n(.*?)^```", page.read_text("utf8"), re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """The commands of an ``sh`` block: comments gone, continued lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    return [" ".join(words) for line in lines if (words := shlex.split(line, comments=True))]


def serve(command: str, **where) -> None:
    """Start a player, fetch its page, and interrupt it as a person would."""
    words = [*shlex.split(command), "--port", "0", "--no-browser"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, **where) as process:
        try:
            assert process.stdout
            printed = ""
            while not (address := re.search(r"http://[\d.]+:\d+\S*", printed)):
                line = process.stdout.readline()
                assert line, f"'{command}' ended without printing an address: {printed}"
                printed += line
            assert b"<canvas" in urllib.request.urlopen(address[0], timeout=120).read()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=300) in (0, 130)
        finally:
            process.kill()


def rehearse(command: str, place: Path, env: dict[str, str]) -> None:
    while (first := command.partition(" ")[0]).partition("=")[0].isupper():  # a variable for this command
        env, command = env | {first.partition("=")[0]: first.partition("=")[2]}, command.partition(" ")[2]
    how = next((how for start, how in REHEARSED if f"{command} ".startswith(f"{start} ")), "")
    if how == "leave":
        return
    if how == "web":
        from reverie.web.runtime import runtime

        try:
            runtime()
        except ReverieError:  # tests/test_web_browser.py says so when it skips
            return
    if how == "serve":
        serve(command, cwd=place, env=env)
        return
    if how == "dry":
        command, place = f"make -n {command.removeprefix('make')}", ROOT
    if how == "traced":
        command = re.sub(r"--topology \S+", "--topology cpu:8 --quick", command)
    if how.startswith("miniature"):
        command = f"{MINIATURE} {command.removeprefix('reverie')} {how.removeprefix('miniature')}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=place, env=env, capture_output=True, text=True
    )
    assert done.returncode in ((0, 1) if how == "traced" else (0,)), (
        f"'{command}' ends with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    )


@pytest.mark.parametrize("page", [page for page in LIVING if page not in TYPED_ELSEWHERE], ids=lambda page: page.name)
def test_every_block_of_a_page_runs(page, tmp_path):
    found = blocks(page)
    if not found:
        return
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    env["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    if any("clips" in text for _, text in found):
        write_clips(tmp_path / "clips")
    for language, text in found:
        if language == "python":
            subprocess.run([sys.executable, "-c", text], cwd=tmp_path, env=env, check=True, timeout=600)
        else:
            for command in commands(text):
                rehearse(command, tmp_path, env)


def write_clips(folder: Path) -> None:
    """Fill a folder with the kind of thing a reader has: a few seconds of video of a game."""
    from reverie.data.sources.platformer import PlatformerConfig
    from reverie.evaluation.video import write_mp4

    folder.mkdir()
    for i, episode in enumerate(PlatformerConfig(count=3, frames=40).episodes()):
        write_mp4(folder / f"{i}.mp4", episode.frames, fps=10)


@pytest.mark.parametrize("page", LIVING, ids=lambda page: page.name)
def test_commands_named_in_passing_exist(page):
    text = page.read_text("utf8")
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text) + [
        c for lang, b in blocks(page) if lang == "sh" for c in commands(b)
    ]
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf8"), re.MULTILINE))
    known = cli.parser()[1]
    for span in spans:
        if found := re.match(r"reverie ([a-z]+)\b", span):
            assert found[1] in known, f"{page.name} names '{span}', which is no command"
            flags = {flag for action in known[found[1]]._actions for flag in action.option_strings}
            if not known[found[1]].named:
                assert set(re.findall(r"(?<!\S)--[a-z-]+", span)) <= flags, f"{page.name}: '{span}' has an unknown flag"
        for target in re.findall(r"^make ([a-z]+)", span):
            assert target in targets, f"{page.name} names '{span}', which is no target of the Makefile"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text("utf8")
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert re.match(r"https?://", link) or (page.parent / link).exists(), f"{page.name} links to {link}"
    if page in HISTORY:
        return
    for path in re.findall(r"`((?:reverie|tests|docs|benchmarks|examples|\.ci)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), f"{page.name} speaks of {path}"


SOAKS = sorted({soak for page in LIVING for soak in re.findall(r"`(make soak[^`\n]*)`", page.read_text("utf8"))})


def pytest_called_by(command: str) -> list[str]:
    """Return the words of the one call of pytest that a ``make`` command would make."""
    shown = subprocess.run(["bash", "-c", command.replace("make", "make -n")], cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in shown.stdout.splitlines() if "-m pytest" in line]  # set-up may stand before it
    assert len(lines) == 1, f"'{command}' shows {len(lines)} calls of pytest:\n{shown.stdout}{shown.stderr}"
    return shlex.split(lines[0])[1:]


@pytest.fixture(scope="module")
def long_tests():
    """The names of all long tests, collected once: each collection takes six seconds."""
    words = [*pytest_called_by("make soak"), "--collect-only", *map(str, ROOT.glob("tests/soak_*.py"))]
    found = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    names = [line for line in found.stdout.splitlines() if line.startswith("tests/soak_")]
    assert names, f"'make soak' finds nothing:\n{found.stdout}{found.stderr}"
    return names


@pytest.mark.parametrize("command", SOAKS)
def test_a_soak_that_a_page_names_finds_long_tests(command, long_tests):
    """A pattern that matches nothing long would pass in seconds, and look like success."""
    words = pytest_called_by(command)
    pattern = words[words.index("-k") + 1] if "-k" in words else ""
    assert re.fullmatch(r"\w*", pattern), "a pattern of one word, so that it can be compared without pytest"
    assert any(pattern in name for name in long_tests), f"'{command}' finds no soak"


def test_a_planted_fault_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "`reverie lern x` `reverie eval runs/x --jsn` `make cofee` [gone](gone.md) `reverie/gone.py`\n"
        "```sh\nfalse\n```\n"
    )
    for test in (test_commands_named_in_passing_exist, test_links_and_paths_lead_somewhere):
        with pytest.raises(AssertionError, match="page.md"):
            test(page)
    with pytest.raises(AssertionError, match="'false' ends with 1"):
        test_every_block_of_a_page_runs(page, tmp_path)
