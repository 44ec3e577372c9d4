"""Strict JAX for every test: nothing is promoted, broadcast or warned about in silence, and nothing leaves the machine.

Eight CPU devices, so that sharding is real. Warnings are errors (pyproject.toml lists the few exceptions and why).
"""

import socket
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parents[1]

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Most of the suite's time is XLA compiling; what took it long once is kept between runs.
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax-tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

# Shapes written as jaxtyping annotations are checked at every call; only here, so they cost a user nothing.
install_import_hook(
    [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "reverie").rglob("*.py")
        if "jaxtyping" in path.read_text("utf8")
    ],
    "beartype.beartype",
)


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
