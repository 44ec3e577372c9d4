"""The floors of docs/reading-order.md, held against what the modules really import."""

import ast
import fnmatch
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reading-order.md"
ROOMS_WE_DO_NOT_NAME_SO = {"util", "utils", "common", "helper", "helpers", "base", "manager", "managers", "misc"}


def floors(page: str) -> dict[str, int]:
    """Return {path pattern: floor} from the page's headings and list items."""
    table, floor = {}, None
    for line in page.splitlines():
        if heading := re.match(r"## (?:Floor (\d+))?", line):
            floor = int(heading[1]) if heading[1] else None
        elif floor is not None:
            table |= dict.fromkeys(re.findall(r"`(reverie/[^`]+)`", line.partition(": ")[0]), floor)
    return table


def pattern_of(path: str, table: dict[str, int]) -> str | None:
    """The most telling line for a file: the longest pattern it fits."""
    if path.endswith("/__init__.py") and path != "reverie/__init__.py":
        path = path.removesuffix("__init__.py") + "*"  # a folder's own file is on the floor of the folder
    fitting = [p for p in table if p == path or fnmatch.fnmatch(path, p)]
    return max(fitting, key=len, default=None)


def imports(source: str, path: str, files: set[str]) -> Iterator[str]:
    """Yield the files of the package that one imports, anywhere in it: lazily inside a function counts as well."""

    def file_of(module: str) -> str | None:
        stem = module.replace(".", "/")
        return next((f for f in (f"{stem}.py", f"{stem}/__init__.py") if f in files), None)

    folder = path.removesuffix(".py").removesuffix("/__init__").split("/")
    if not path.endswith("__init__.py"):
        folder = folder[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from filter(None, (file_of(alias.name) for alias in node.names))
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(folder[: len(folder) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (above, node.module)))
            for alias in node.names:  # `from package import module` reaches the module, not the package's own file
                yield from filter(None, [file_of(f"{module}.{alias.name}") or file_of(module)])


def complaints(sources: dict[str, str], table: dict[str, int]) -> list[str]:
    """Everything wrong with a package, given as {path: source}, one sentence each."""
    found, reaches = [], {}
    for path, source in sorted(sources.items()):
        if path.endswith("__init__.py") and not source.strip():
            continue
        names = set(Path(path).with_suffix("").parts)
        if bad := names & ROOMS_WE_DO_NOT_NAME_SO:
            found.append(f"{path}: no room here is named '{bad.pop()}'; name it after what it does")
        if (lines := len(source.splitlines())) > 400:
            found.append(f"{path} has {lines} lines; above 400 it is two modules")
        for node in ast.walk(ast.parse(source)):
            if "TYPE_CHECKING" in (getattr(node, "id", None), getattr(node, "attr", None)):
                found.append(f"{path}:{node.lineno} hides an import behind TYPE_CHECKING")
        if (own := pattern_of(path, table)) is None:
            found.append(f"{path} is on no floor; give it a line in docs/reading-order.md")
            continue
        reaches[path] = set(imports(source, path, set(sources))) - {path}
        for other in sorted(reaches[path]):
            if (theirs := pattern_of(other, table)) is None:
                continue
            mine, its = table[own], table[theirs]
            here, there = Path(path).parent, Path(other).parent
            one_folder = here == there or here in there.parents or there in here.parents
            if its > mine or (its == mine and not one_folder):
                found.append(f"{path} (floor {mine}) may not import {other} (floor {its})")
    return found + circles(reaches)


def too_long(sources: dict[str, str]) -> list[str]:
    """One sentence for each function that does not fit on a screen."""
    return [
        f"{path}:{node.lineno}: {node.name} has {lines} lines; above 60 it is two functions"
        for path, source in sources.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno
        and (lines := node.end_lineno - node.lineno + 1) > 60
    ]


def circles(reaches: dict[str, set[str]]) -> list[str]:
    """One sentence for each set of modules that import each other."""
    done: set[str] = set()

    def walk(path: str, trail: list[str]) -> list[str]:
        if path in trail:
            return [f"these import each other: {' -> '.join([*trail[trail.index(path) :], path])}"]
        if path in done:
            return []
        found = [c for other in sorted(reaches.get(path, ())) for c in walk(other, [*trail, path])]
        done.add(path)
        return found

    return [c for path in sorted(reaches) for c in walk(path, [])]


def package(folder: str = "reverie") -> dict[str, str]:
    return {p.relative_to(ROOT).as_posix(): p.read_text("utf8") for p in sorted((ROOT / folder).rglob("*.py"))}


def test_every_import_goes_down():
    found = complaints(package(), floors(PAGE.read_text("utf8")))
    assert not found, "\n" + "\n".join(found)


def test_every_line_of_the_reading_order_leads_somewhere():
    files = {p.relative_to(ROOT).as_posix() for p in (ROOT / "reverie").rglob("*") if p.is_file()}
    for pattern in floors(PAGE.read_text("utf8")):
        assert fnmatch.filter(files, pattern), f"docs/reading-order.md speaks of {pattern}, which does not exist"


def test_every_function_fits_on_a_screen():
    found = too_long(package() | package("benchmarks"))
    assert not found, "\n" + "\n".join(found)
    assert len(too_long({"long.py": "class A:\n    def f(self):\n" + 60 * "        pass\n"})) == 1


BAD = {
    "reverie/low.py": (
        "import os\ndef f():\n    from reverie import high",
        "low.py (floor 0) may not import reverie/high",
    ),
    "reverie/low/a.py": ("from ..high import x", "reverie/low/a.py (floor 0) may not import reverie/high.py (floor 2)"),
    "reverie/one/a.py": (
        "import reverie.two.b",
        "reverie/one/a.py (floor 1) may not import reverie/two/b.py (floor 1)",
    ),
    "reverie/low/c.py": ("import reverie.low.d", "reverie/low/c.py -> reverie/low/d.py -> reverie/low/c.py"),
    "reverie/attic.py": ("", "reverie/attic.py is on no floor"),
    "reverie/one/utils.py": ("", "no room here is named 'utils'"),
    "reverie/one/long.py": ("x = 1\n" * 401, "has 401 lines"),
    "reverie/one/sly.py": ("import typing\nif typing.TYPE_CHECKING:\n    import os", "sly.py:2 hides an import"),
}


@pytest.mark.parametrize("path", BAD)
def test_a_planted_fault_is_found(path):
    table = floors(
        "## Floor 0: x\n- `reverie/low/*`, `reverie/low.py`: y\n## Floor 1\n- `reverie/one/*`: y\n"
        "- `reverie/two/*`: y\n## Floor 2\n- `reverie/high.py`: y"
    )
    good = {
        "reverie/high.py": "from reverie.two import b\nfrom reverie.low import a",
        "reverie/two/b.py": "from .c import x\nfrom reverie.low.a import x",
        "reverie/two/c.py": "import numpy",
        "reverie/low/a.py": "",
        "reverie/low/d.py": "from reverie.low import c",
    }
    assert complaints(good, table) == []
    source, sentence = BAD[path]
    found = complaints(good | {path: source}, table)
    assert any(sentence in line for line in found), found


def loaded_after(code: str) -> set[str]:
    """The top-level modules a fresh interpreter holds after running ``code``."""
    code += "\nimport sys; print('\\n' + ' '.join({name.partition('.')[0] for name in sys.modules}))"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


HELP = "import reverie.cli\ntry:\n    reverie.cli.main({})\nexcept SystemExit: pass"


@pytest.mark.parametrize(
    "code",
    ["import reverie, reverie.config, reverie.errors, reverie.actions", *(HELP.format(args) for args in (
        "['--help']", "['play', '--help']", "['learn', '--help']", "['train', '--help']", "['compare', '--help']",
        "['data', '--help']", "['list']", "['--completion', 'bash']", "['eval']", "['lern']"))],
)  # fmt: skip
def test_help_and_wrong_usage_answer_without_loading_jax(code):
    heavy = {"jax", "jaxlib", "flax", "orbax", "grain", "matplotlib", "av"} & loaded_after(code)
    assert not heavy, f"{sorted(heavy)} loaded by: {code}"


@pytest.mark.parametrize("module", ["data.arrays", "data.episode"])
def test_in_memory_data_needs_numpy_only(module):
    heavy = {"jax", "grain", "array_record"} & loaded_after(f"import reverie.{module}")
    assert not heavy, f"reverie.{module} loads {sorted(heavy)}"


PICKLE = r"(?:import|from) (?:cloud)?pickle\b|pickle\.loads?|allow_pickle=True|torch\.load"


def test_no_pickle():
    found = [
        f"{path}: {call}"
        for path, source in package().items()
        for call in re.findall(
            r"(?:import|from) (?:cloud)?pickle\b|pickle\.loads?|allow_pickle=True|torch\.load", source
        )
    ]
    assert not found, found


def test_everything_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    declared = {re.split(r"[\[<>=; ]", line)[0].lower().replace("_", "-") for line in lines}
    owners = importlib.metadata.packages_distributions()
    for path in (*ROOT.glob("reverie/**/*.py"), *ROOT.glob("tests/*.py"), *ROOT.glob("benchmarks/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for top in {module.partition(".")[0] for module in modules} & owners.keys() - sys.stdlib_module_names:
                names = {name.lower().replace("_", "-") for name in owners[top]} - {"reverie-worlds"}
                assert not names or names & declared, f"{path.name} imports {top}, of {sorted(names)}"


def test_the_picture_in_the_readme_shows_these_floors():
    picture = re.search(r"^```text\n( *\d .*?)^```", (ROOT / "README.md").read_text("utf8"), re.MULTILINE | re.DOTALL)
    assert picture
    table = floors(PAGE.read_text("utf8"))
    for line in picture[1].splitlines():
        for path in re.findall(r"\S+(?:/|\.py)(?=\s|$)", line):
            found = {floor for pattern, floor in table.items() if pattern.startswith(f"reverie/{path}")}
            assert found == {int(line.split()[0])}, f"README.md has {path} on another floor than the reading order"
