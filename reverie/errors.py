"""The exceptions that users read: a single clear line that says what to do."""

import difflib
from collections.abc import Iterable


class ReverieError(Exception):
    """What went wrong and what to do about it, in one line. The command line prints it and exits with status 2."""


class Damaged(ReverieError):
    """What is in a file is not what was written there, as its checksum or its structure proves."""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest of ``options``, or all of them when none is close."""
    options = sorted(options)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Choose from: {', '.join(options)}." if options else ""


def first_line(error: BaseException) -> str:
    """Return what another library's exception says, in one short line without a full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
