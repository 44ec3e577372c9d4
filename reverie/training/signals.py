"""Ctrl-C and SIGTERM as a question the training loop asks once a step, instead of an exception anywhere."""

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
    """Yield a function that returns the number of the signal that asked to stop, 0 if none did.

    A second signal acts as it would have without this, and so does one that came after the last question. Processes
    of one job must stop at the same step: there the function answers only when called with True, at the same steps by
    all, and all get the same answer.
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

    if threading.current_thread() is threading.main_thread():  # signals go there, and only it may ask for them
        for each in (signal.SIGINT, signal.SIGTERM):
            before[each] = signal.signal(each, note)
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    if caught and not answered:
        signal.raise_signal(caught[0])
