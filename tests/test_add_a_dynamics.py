"""docs/add-a-dynamics.md does what it says: its file, put into a copy of the package, is a family like the others."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_docs import ROOT, blocks, commands

PAGE = ROOT / "docs" / "add-a-dynamics.md"
FAMILY = "recurrent"
MOST_LINES = 120
TESTS = 12  # of the contract: fewer would mean that the family was not found


def parts() -> tuple[str, str, str, list[str], str]:
    """The page's blocks: file, recipe, line in ``presets()``, commands, and what steps through the world."""
    found = blocks(PAGE)
    file, recipe, line, steps = (text for language, text in found if language == "python")
    return file, recipe, line, [c for language, text in found if language == "sh" for c in commands(text)], steps


RECIPES = ("reverie/presets/toy.py", "reverie/presets/__init__.py")
IMPORT = f"from reverie.models.dynamics.{FAMILY} import RecurrentConfig"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the package and its contract tests, changed as the page says."""
    place = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("__pycache__", "worlds")
    shutil.copytree(ROOT / "reverie", place / "reverie", ignore=ignore)
    shutil.copytree(ROOT / "tests" / "contracts", place / "tests" / "contracts", ignore=ignore)
    for name in ("tests/conftest.py", "tests/slow.txt", "tests/rehearsal.py", "tests/miniature.py", "pyproject.toml"):
        shutil.copy(ROOT / name, place / name)
    (ROOT / ".cache").mkdir(exist_ok=True)
    (place / ".cache").symlink_to(ROOT / ".cache")  # of compiled programs
    file, recipe, line, _, _ = parts()
    (place / "reverie" / "models" / "dynamics" / f"{FAMILY}.py").write_text(file, "utf8")
    toys, names = (place / path for path in RECIPES)
    text, count = re.subn(
        r"^from reverie\.models\.dynamics\.shortcut import", rf"{IMPORT}\n\g<0>", toys.read_text("utf8"), flags=re.M
    )
    toys.write_text(f"{text}\n\n{recipe}", "utf8")
    text, again = re.subn(r'^ +"toy-causal": ', rf"{line}\g<0>", names.read_text("utf8"), flags=re.M)
    names.write_text(text, "utf8")
    assert count == again == 1
    return place


def run(words: list[str], place: Path) -> str:
    env = os.environ | {"PYTHONPATH": str(place), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(words, cwd=place, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{words} ends with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_the_page_is_one_short_file_and_says_all_that_is_typed_here():
    file, recipe, _, typed, _ = parts()
    assert len(file.splitlines()) <= MOST_LINES
    assert f"`{FAMILY}.py` in `reverie/models/dynamics/`:\n\n```python\n" in PAGE.read_text("utf8")
    assert "RecurrentConfig" in recipe
    assert [c.split()[0] for c in typed] == ["pytest", "reverie"]


def test_it_keeps_the_contract(checkout):
    printed = run([sys.executable, "-m", *parts()[3][0].split(), "-p", "no:xdist"], checkout)
    passed = re.search(r"(\d+) passed", printed)
    assert passed and int(passed[1]) >= TESTS, printed
    assert not re.search(r"\d+ (failed|skipped|error)", printed), printed


def test_it_is_linted(checkout):
    file = f"reverie/models/dynamics/{FAMILY}.py"
    run(["ruff", "check", file, *RECIPES], checkout)
    run(["ruff", "format", "--check", file, *RECIPES], checkout)


def test_it_is_trained_measured_and_stepped_through(checkout):
    _, _, _, (_, train), steps = parts()
    # As the page has it, it takes minutes; in miniature it goes through every stage.
    run([sys.executable, "tests/rehearsal.py", *train.split()[1:]], checkout)
    assert "delta_psnr" in (checkout / "runs" / f"toy-{FAMILY}" / "eval.json").read_text("utf8")
    assert len(run([sys.executable, "-c", steps], checkout).split(",")) == 4


def test_a_planted_fault_is_found(checkout, tmp_path):
    """Tokens that see only their own place break the contract, as the page says."""
    place = tmp_path / "broken"
    shutil.copytree(checkout, place, symlinks=True, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    file = place / "reverie" / "models" / "dynamics" / f"{FAMILY}.py"
    file.write_text(file.read_text("utf8").replace("time_every=0)", "time_every=0, space=False)"), "utf8")
    with pytest.raises(AssertionError, match="can be changed unnoticed"):
        run(
            [sys.executable, "-m", "pytest", "tests/contracts", "-k", f"{FAMILY} and every_token", "-p", "no:xdist"],
            place,
        )
