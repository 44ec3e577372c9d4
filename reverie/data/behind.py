"""Calls that are made behind the caller's back: in another thread, in order, a bounded number at a time."""

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any


class Behind:
    """A thread that makes calls one after another, while the thread that hands them over goes on.

    limit: calls that may wait, further ones block. After an error no call is made: the next ``call``, or the end of the
    ``with`` block, raises it. A block that ends in an error drops the calls that wait. No thread outlives the block.
    """

    def __init__(self, limit: int):
        self._room, self._calls = threading.Semaphore(limit), SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="behind", daemon=True)

    def __enter__(self) -> "Behind":
        self._thread.start()
        return self

    def call(self, function: Callable[..., object], *given: Any) -> None:
        """Have ``function(*given)`` called."""
        self._room.acquire()
        if self._error is not None:
            raise self._error
        self._calls.put((function, given))

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if error is None:
                self._calls.put(None)
                self._thread.join()
        except BaseException as interrupt:
            error = interrupt
            raise
        finally:
            failed, self._error = self._error, self._error or error
            self._calls.put(None)
            self._thread.join()
        if error is None and failed is not None:
            raise failed

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            function, given = call
            try:
                if self._error is None:
                    function(*given)
            except BaseException as error:
                self._error = error
            self._room.release()
