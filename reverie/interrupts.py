"""Ctrl-C that always works.

Python drops the exception of a signal handler while an object is deleted or in a callback of the garbage collector (JAX
has one). So an interrupt is repeated until the command begins to end. While a module is imported it waits, because
half-imported compiled modules end in an ImportError or a crash.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

AGAIN = 1.0  # seconds until an interrupt that had no effect is repeated
SOON = 0.02  # and one that was dropped or had to wait


@contextlib.contextmanager
def heeded() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt on SIGINT, repeatedly until the block ends; yield the list of received signals.

    Does nothing if interrupts are already ignored or handled, in threads, and on systems without timers.
    """
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        importing = _imports(frame)
        signal.setitimer(signal.ITIMER_REAL, SOON if importing else AGAIN)
        if not importing:
            raise KeyboardInterrupt

    def again(*_: Any) -> None:
        if _ends(sys.exc_info()[1]):
            signal.setitimer(signal.ITIMER_REAL, AGAIN)
        else:
            signal.raise_signal(signal.SIGINT)  # not by a call: others may handle it by now

    def dropped(what: Any) -> None:
        if what.exc_type is KeyboardInterrupt and came:
            signal.setitimer(signal.ITIMER_REAL, SOON)  # instead of a traceback that helps no user
        else:
            shown(what)

    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "setitimer") or signal.getsignal(signal.SIGINT) != signal.default_int_handler:
        yield came
        return
    before, shown = signal.signal(signal.SIGALRM, again), sys.unraisablehook
    sys.unraisablehook = dropped
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield came
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = shown
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGALRM, before)


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported in this frame, or in one that called it."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _ends(error: BaseException | None) -> bool:
    """Whether an error being handled is an interrupt or came of one: then what is done now ends the command."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
