"""An array of frames in an .npy file, read piece by piece: however large it is, memory holds what is asked for.

A memory-mapped file is as fast, but every page of it that was ever read counts as memory of the process.

Shapes: R clips, T frames of a clip, ... the shape of a frame.
"""

import math
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from reverie.bounded import open_npy
from reverie.errors import ReverieError


class Column:
    """An array (frames, ...) in a file that nothing changes any more. Several threads may read it at once."""

    def __init__(self, path: Path):
        self._path, self._lock = path, threading.Lock()
        self._file, self.dtype, self.shape = open_npy(path)
        weakref.finalize(self, self._file.close)
        self._begin = self._file.tell()
        self._size = math.prod(self.shape[1:]) * self.dtype.itemsize  # bytes of a frame

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, frames: slice) -> np.ndarray:
        """Return the frames of a slice without steps, (T, ...)."""
        start, stop, _ = frames.indices(len(self))
        return self.clips([start], max(stop - start, 0))[0]

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def clips(self, starts: Iterable[int], length: int) -> np.ndarray:
        """Return the frames start .. start + length for each start, (R, T, ...)."""
        starts = list(starts)
        found = np.empty((len(starts), length, *self.shape[1:]), self.dtype)
        wanted = length * self._size
        with self._lock:
            for row, start in enumerate(starts if found.size else ()):
                self._file.seek(self._begin + start * self._size)
                if self._file.readinto(found[row]) != wanted:
                    raise ReverieError(f"'{self._path}' ends too early: something has changed it.")
        return found
