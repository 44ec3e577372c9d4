"""Where Reverie keeps what it can make or fetch again: compiled programs, worlds from the web."""

import os
from pathlib import Path


def cache(name: str) -> Path:
    """Return the folder ``name`` in the user's cache; ``XDG_CACHE_HOME`` moves it. Nothing is created."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reverie" / name
