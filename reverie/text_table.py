"""Pairs of names and values as lines of text."""

from collections.abc import Iterable
from typing import Any


def table(rows: Iterable[tuple[Any, Any]]) -> str:
    """Return one line per pair, with the values aligned."""
    rows = [(str(a), str(b)) for a, b in rows]
    width = max((len(a) for a, _ in rows), default=0)
    return "\n".join(f"  {a:{width}}  {b}".rstrip() for a, b in rows)
