"""Ctrl-C and SIGTERM as a flag that the training loop reads once per step, instead of an exception anywhere."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[bool], int]]:
    """Yield a function that returns the number of the received signal, 0 if none was received.

    A second signal has its usual effect, and so has one that arrives after the last call. The processes of a job must
    stop at the same step. There the function communicates only if called with True, which all must do at the same
    steps, and all get the same number.
    """
    caught: list[int] = []
    answered: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, _: Any) -> None:
        caught.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    def stop(together: bool) -> int:
        answer = caught[0] if caught else 0
        if jax.process_count() > 1:
            with jax.transfer_guard("allow"):
                answer = int(multihost_utils.process_allgather(np.int32(answer)).max()) if together else 0
        if answer:
            answered.append(answer)
        return answer

    if threading.current_thread() is threading.main_thread():  # only the main thread may handle signals
        for each in (signal.SIGINT, signal.SIGTERM):
            before[each] = signal.signal(each, note)
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    if caught and not answered:
        signal.raise_signal(caught[0])
