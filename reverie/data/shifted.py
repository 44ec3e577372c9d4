"""A small dataset made larger: the same episodes again, with the picture moved by some pixels.

A folder with a few minutes of video is learned by heart within minutes. What is seen a little to the left and a little
lower is the same world, so it is shown so as well (random shifts, arXiv 2004.13649), each episode by one amount: the
tokens of all its frames are computed once, like those of the others.
"""

import numpy as np

from reverie.data.episode import Dataset

REACH = 8  # a picture moves by at most this part of its side: a patch of the larger kind
MOST = 8  # copies: the tokens of each are computed, and a single short video is not saved by a thousand


class Shifted:
    """``copies`` of each episode, the first as it is; edges are repeated where the picture leaves room.

    A simulator's states say where things were, not where they are shown: they are left out.
    """

    def __init__(self, dataset: Dataset, copies: int):
        self.dataset, self.spec = dataset, dataset.spec
        self.lengths = np.tile(dataset.lengths, copies)
        self.fingerprint = f"{dataset.fingerprint}-shifted{copies}"
        reach = np.array(self.spec.frame[:2]) // REACH
        self.moves = np.random.default_rng(0).integers(-reach, reach + 1, (len(self.lengths), 2))
        self.moves[: len(dataset.lengths)] = 0

    def read(self, episode: int, start: int, length: int) -> dict[str, np.ndarray]:
        """See ``Dataset.read``."""
        window = self.dataset.read(episode % len(self.dataset.lengths), start, length)
        rows, columns = (
            np.clip(np.arange(side) - move, 0, side - 1)  # down, and to the right
            for side, move in zip(self.spec.frame[:2], self.moves[episode], strict=True)
        )
        window = {name: array for name, array in window.items() if name != "states"}
        return window | {"frames": window["frames"][:, rows[:, None], columns]}


def enlarged(dataset: Dataset, frames: int) -> Dataset:
    """Return a dataset of ``frames`` frames or more: itself, or as many copies of it as that takes, up to ``MOST``."""
    copies = min(-(-frames // max(int(dataset.lengths.sum()), 1)), MOST)
    return Shifted(dataset, copies) if copies > 1 else dataset
