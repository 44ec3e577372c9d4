"""A tiny world written by the code of November 2026 (run format 1): every later version must load it and train it on.

``goldens/world.tar.xz`` holds what ``learn`` left in a world's folder then: a store, three stages of four steps with
their token caches, starts, ``world.json`` and ``eval.json``. It cannot be regenerated: it is the old format.
"""

import tarfile
from pathlib import Path

WORLD = Path(__file__).parent / "goldens" / "world.tar.xz"


def unpack(folder: Path) -> Path:
    """Unpack the world as ``folder`` and return that."""
    folder.mkdir(parents=True)
    with tarfile.open(WORLD) as archive:
        archive.extractall(folder, filter="data")
    return folder
