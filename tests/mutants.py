"""Mutation testing: ``make mutants`` changes one line of the package at a time, and the test named beside it must fail.

``mutants.toml`` lists the changes. A mutant that no test kills is a promise that no test holds. The working tree is
never touched: each of ``--jobs`` workers has a copy of its own. ``tests/test_mutants.py`` checks that every change
still applies.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_suffix(".toml")
LIMIT = 1800  # seconds for one test selection


@dataclass(frozen=True)
class Mutant:
    """One change: ``old`` occurs once in ``file`` and becomes ``new``; ``test`` (words for pytest) must fail."""

    promise: str  # what breaks, one of DESIGN's promises where it belongs to one
    file: str
    old: str
    new: str
    test: str

    def source(self, root: Path = ROOT) -> str:
        """Return the changed source; ValueError where the change does not apply."""
        text = (root / self.file).read_text("utf8")
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file} holds {self.old!r} {text.count(self.old)} times instead of once")
        return text.replace(self.old, self.new)


def mutants() -> list[Mutant]:
    """Return the committed list."""
    return [Mutant(**entry) for entry in tomllib.loads(LIST.read_text("utf8"))["mutant"]]


def run(root: Path, test: str) -> int:
    """Run a selection of tests in a copy of the repository; return pytest's status, or 124 after LIMIT seconds."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not soak", *test.split()]
    try:
        return subprocess.run(
            command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, timeout=LIMIT
        ).returncode
    except subprocess.TimeoutExpired:
        return 124


def copy(to: Path) -> Path:
    """Copy what git knows of the working tree, and share the cache of compiled programs."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, to / name)
    (to / ".cache").mkdir()
    (ROOT / ".cache" / "jax-tests").mkdir(parents=True, exist_ok=True)
    (to / ".cache" / "jax-tests").symlink_to(ROOT / ".cache" / "jax-tests")
    return to


def main() -> int:
    """Run the list (or what ``-k`` picks of it); 0 if every mutant was killed by tests that pass without it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("-k", default="", help="only mutants whose promise, file or test contains this")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    chosen = [m for m in mutants() if args.k in f"{m.promise} {m.file} {m.test}"]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        copies: SimpleQueue[Path] = SimpleQueue()
        for job in range(args.jobs):
            copies.put(copy(Path(folder) / str(job)))

        def tried(mutant: Mutant | None, test: str) -> int:
            root = copies.get()
            try:
                if mutant is None:
                    return run(root, test)
                file = root / mutant.file
                plain = file.read_bytes()
                file.write_text(mutant.source(root), "utf8")
                try:
                    return run(root, test)
                finally:
                    file.write_bytes(plain)
            finally:
                copies.put(root)

        tests = sorted({m.test for m in chosen})
        sound = dict(zip(tests, pool.map(lambda test: tried(None, test), tests), strict=True))
        failed = [f"without any change: {test} ends with {status}" for test, status in sound.items() if status]
        for mutant, status in zip(chosen, pool.map(lambda m: tried(m, m.test), chosen), strict=True):
            verdict = {0: "SURVIVED", 1: "killed"}.get(status, f"no verdict, pytest ended with {status}")
            print(f"{verdict:9} {mutant.file}: {mutant.promise}  [{mutant.test}]", flush=True)
            failed += [f"{mutant.file}: {mutant.promise}: {verdict}"] if status != 1 else []
    print(f"{len(chosen)} mutants in {(time.monotonic() - begun) / 60:.1f} minutes, {len(failed)} not killed")
    print(*failed, sep="\n")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
