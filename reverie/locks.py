"""The lock of a file, which the system releases however the process ends; Windows has none of this kind."""

from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def lock(file: IO) -> None:
    """Lock an open file; BlockingIOError if another process holds it. On Windows this does nothing."""
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
