"""Strict JAX for every test: nothing is promoted, broadcast or warned about in silence, and nothing leaves the machine.

Four CPU devices, so that sharding is real where a test asks for it (``devices``); the others train on one, as a laptop
does. Warnings are errors (pyproject.toml lists the few exceptions and why).
"""

import gc
import os
import socket
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parents[1]
# Files that take half a minute or more go first, the longest ahead: workers take whole files, and should end together.
LONG = [
    "docs", "learn", "evaluation", "lam", "dynamics", "add_a_dynamics", "compare", "web_browser", "dreamer4_tokenizer",
    "actions", "benchmarks", "resume", "long_play", "parts", "smoke",
]  # fmt: skip

# Before XLA starts: of 60 CPU seconds that 24 contract tests took, 29 were spent in fusion emitters (MLIR), and 5 on
# cutting each program into 32 pieces. Later jaxlibs do not know the first flag, and stop at what they do not know.
if version("jaxlib").startswith("0.10."):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
# Of the 20 ms in which JAX compiles an addition, 6 went into a new MLIR context: one serves all programs of a process.
if version("jax").startswith("0.10."):
    jax._src.interpreters.mlir.make_ir_context = cache(jax._src.interpreters.mlir.make_ir_context)
# What `make test` was called with belongs to that make: a make that a test calls would repeat its arguments, and say
# which folder it enters.
MAKES = "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"
for name in (*MAKES, "TEST_ARGS", "DEMO_ARGS", "BENCH_ARGS", "MUTANT_ARGS", "EXTRAS", "VENV"):
    os.environ.pop(name, None)

gc.set_threshold(50_000, 20, 100)  # tracing makes garbage by the million: a tenth of all work was looking for it

# Each worker keeps to a core of its own: XLA's threads of one in the way of the other's cost a seventh of all work.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Most of the suite's time is XLA compiling: programs that end long before they would have been optimised, save those of
# tests that train something (`optimised`). Every program is kept, for the other worker, for processes that tests start
# and for later runs: an addition loads in a quarter of the time.
for name, value in {
    "jax_disable_most_optimizations": True,
    "jax_compilation_cache_dir": str(ROOT / ".cache" / "jax-tests"),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
}.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value).lower() if isinstance(value, bool) else str(value)

# Shapes written as jaxtyping annotations are checked at every call; only here, so they cost a user nothing.
install_import_hook(
    [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "reverie").rglob("*.py")
        if "jaxtyping" in path.read_text("utf8")
    ],
    "beartype.beartype",
)


SLOW = frozenset((ROOT / "tests" / "slow.txt").read_text("utf8").splitlines())  # ids, the slowest first, as measured


@pytest.hookimpl(tryfirst=True)  # before pytest asks for marks
def pytest_collection_modifyitems(items):
    order = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    for item in items:
        if item.nodeid in SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="session")
def one_device():
    """Training runs on the first device: on four a step of a tiny model is mostly their waiting for each other.

    The fixture is the function it replaces.
    """
    from reverie.training import sharding

    every = sharding.laid_over
    with pytest.MonkeyPatch.context() as patch:
        use(patch, 1)
        yield every


@pytest.fixture
def optimised():
    """Compile as for users: for a test that trains for longer than that takes."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def devices(monkeypatch):
    """Call it with how many of the four CPU devices to train on from here."""
    return partial(use, monkeypatch)


def use(patch: pytest.MonkeyPatch, count: int) -> None:
    from reverie.training import sharding

    patch.setattr(sharding, "laid_over", lambda: jax.devices()[:count])


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """A test that reaches for another machine fails with a sentence instead of hanging or passing by luck."""
    connect = socket.socket.connect

    def local_only(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"tests stay on this machine, but something connects to {address}")
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", local_only)
        yield


@pytest.fixture(autouse=True)
def own_place(monkeypatch, tmp_path):
    """Relative paths of a test (runs/...) lie in its own temporary folder, never in the repository."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def store(tmp_path, caplog):
    """Return a function that imports a path by ``reverie data NAME`` and opens what it wrote."""
    from reverie.cli import main
    from reverie.data.store import open_dataset

    def imported(name, path, *flags, status=0):
        out = tmp_path / f"store{len(list(tmp_path.glob('store*')))}"
        assert main(["data", name, str(out), "--path", str(path), "--val", "0", *flags]) == status
        return open_dataset(out) if status == 0 else None

    caplog.set_level("WARNING")
    return imported
