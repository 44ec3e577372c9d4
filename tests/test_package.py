"""What people install: the wheel, in an environment of its own; the documentation; systems that lack parts of Linux."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from reverie.training import folder

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]


def run(*words: str | Path, cwd: Path, **env: str) -> str:
    """Run a command without this environment's variables of Python; return what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=kept | env, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling", reason="the wheel is built by hatchling")
    out = tmp_path_factory.mktemp("wheel")
    run(
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "-t",
        "wheel",
        "-d",
        out,
        cwd=ROOT,
        PYTHONPATH=os.pathsep.join(sys.path),
    )
    (found,) = out.glob("*.whl")
    return found


def test_the_wheel_carries_what_the_package_needs_and_no_more(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        about = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
        entries = archive.read(next(name for name in archive.namelist() if name.endswith("/entry_points.txt"))).decode()
    kept = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "reverie"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if kept.returncode == 0 and kept.stdout:
        assert names == {name for name in kept.stdout.split("\n") if name and (ROOT / name).is_file()}
    assert {"reverie/play/page/index.html", "reverie/catalogue.json", "reverie/worlds/platformer/starts.npz"} <= names
    assert wheel.stat().st_size < 34e6  # of which four worlds take 23, and the weights to start from 7
    assert f"Version: {PROJECT['version']}" in about and "License-Expression: Apache-2.0" in about
    assert set(re.findall(r"^Provides-Extra: (.+)$", about, re.MULTILINE)) == set(PROJECT["optional-dependencies"])
    assert "reverie = reverie.cli:main" in entries


def test_the_wheel_works_where_it_is_installed(wheel, tmp_path):
    """In an environment with the dependencies of this one, and without the repository."""
    place = tmp_path / "env"
    venv.create(place, with_pip=False, symlinks=os.name != "nt")
    scheme = {"base": str(place), "platbase": str(place), "installed_base": str(place)}
    site = Path(sysconfig.get_path("purelib", "venv", scheme))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)  # what an installer does with a wheel of Python alone
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    python = Path(sysconfig.get_path("scripts", "venv", scheme)) / Path(sys.executable).name
    where = run(python, "-c", "import reverie; print(reverie.__file__)", cwd=tmp_path).strip()
    assert Path(where) == site / "reverie" / "__init__.py"
    assert "toy-maskgit" in run(python, "-m", "reverie", "list", cwd=tmp_path)
    script = "import reverie; print(reverie.load('platformer').config.frame)"
    assert "(64, 64, 3)" in run(python, "-c", script, cwd=tmp_path)


def test_the_documentation_builds_without_a_warning(tmp_path):
    """Strictly: a link that leads nowhere, a page in no list, a module that cannot be read."""
    pytest.importorskip("mkdocs", reason="needs the extra 'docs'")
    pytest.importorskip("mkdocstrings_handlers.python", reason="needs the extra 'docs'")
    out = tmp_path / "site"
    offline = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", out]
    said = run(*words, cwd=ROOT, PYTHONPATH=os.pathsep.join(sys.path), **offline)
    assert "WARNING" not in said
    pages = {page.relative_to(out).as_posix(): page.read_text("utf8") for page in out.rglob("*.html")}
    assert {"index.html", "sharing.html", "changelog.html", "api/reverie.training.html"} <= set(pages)
    assert "Return the trained model of a run" in pages["api/reverie.training.html"]
    for name, text in pages.items():  # nothing is fetched from elsewhere: a link is only followed
        fetched = re.findall(r"""<(?:script|img|link)[^>]*(?:src|href)=["']https?:[^"']*""", text)
        assert not [tag for tag in fetched if "canonical" not in tag], name


ELSEWHERE = """
import sys
for name in ("fcntl", "array_record", "grain"):
    sys.modules[name] = None
from pathlib import Path
from reverie.cli import main
assert main(["data", "square", "x.npz", "--count", "12", "--frames", "16"]) == 0
assert main(["data", "square", "store", "--count", "2", "--frames", "4"]) == 2
def refused(*_, **__):
    raise OSError(1314, "A required privilege is not held by the client")
Path.symlink_to = refused
import rehearsal
assert main(["learn", "x.npz", "--out", "runs/x", "--minutes", "1"]) == 0
assert not Path("runs/x/data").is_symlink()
import reverie
assert type(reverie.load("runs/x")).__name__ == "WorldModel"
"""


@pytest.mark.soak
def test_without_fcntl_arrayrecord_and_grain_a_dataset_in_one_file_trains(tmp_path):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    said = run(sys.executable, "-c", ELSEWHERE, cwd=tmp_path, PYTHONPATH=path)
    assert "reverie: error: datasets in folders need the package array_record" in said
    assert not (tmp_path / "store").exists()


def test_every_module_is_imported_without_what_windows_lacks():
    script = f"""
import sys
for name in ("fcntl", "array_record", "grain"):
    sys.modules[name] = None
import importlib
for name in {modules()}:
    importlib.import_module(name)
"""
    run(sys.executable, "-c", script, cwd=ROOT, PYTHONPATH=str(ROOT))


def modules() -> list[str]:
    files = sorted(file.relative_to(ROOT).with_suffix("") for file in (ROOT / "reverie").rglob("*.py"))
    return [".".join(file.parts) for file in files if file.name not in ("__init__", "__main__")]


def test_where_no_link_can_be_made_a_file_is_copied(tmp_path, monkeypatch):
    (tmp_path / "data.npz").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    folder.link(tmp_path / "one", Path("data.npz"))
    assert (tmp_path / "one").is_symlink()

    def refused(*_, **__):
        raise OSError(1314, "A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refused)
    folder.link(tmp_path / "two", Path("data.npz"))
    assert not (tmp_path / "two").is_symlink() and (tmp_path / "two").read_bytes() == b"x"
    with pytest.raises(OSError, match="privilege"):
        folder.link(tmp_path / "three", Path("folder"))
