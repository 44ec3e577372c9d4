"""Shift augmentation of a small dataset: copies of its episodes, shifted by some pixels.

A model overfits a few minutes of video within minutes of training. Shift augmentation (random shifts, arXiv 2004.13649)
adds shifted copies of each episode. All frames of a copy have the same shift, so their tokens are computed once, as for
other episodes.
"""

from collections.abc import Collection

import numpy as np

from reverie.data.episode import Dataset

REACH = 8  # a frame is shifted by at most this part of its side, which is a large patch
COPIES = 5  # of each episode, including the original


class Shifted:
    """``COPIES`` of each episode, the first unchanged, the others shifted with edges repeated.

    A simulator's states do not match shifted frames, so they are dropped.
    """

    def __init__(self, dataset: Dataset):
        self.dataset, self.spec, self.split = dataset, dataset.spec, dataset.split
        self.lengths = np.tile(dataset.lengths, COPIES)
        self.tasks = [*getattr(dataset, "tasks", ())] * COPIES
        self.groups = getattr(dataset, "groups", None)
        if self.groups:
            self.groups = np.tile(self.groups[0], COPIES), self.groups[1]
        self.fingerprint = f"{dataset.fingerprint}-shifted{COPIES}"
        reach = np.array(self.spec.frame[:2]) // REACH
        self.moves = np.random.default_rng(0).integers(-reach, reach + 1, (len(self.lengths), 2))
        self.moves[: len(dataset.lengths)] = 0

    def read(
        self, episode: int, start: int, length: int, names: Collection[str] | None = None
    ) -> dict[str, np.ndarray]:
        """See ``Dataset.read``."""
        window = self.dataset.read(episode % len(self.dataset.lengths), start, length, names)
        window.pop("states", None)
        if "frames" not in window:
            return window
        rows, columns = (
            np.clip(np.arange(side) - move, 0, side - 1)  # down, and to the right
            for side, move in zip(self.spec.frame[:2], self.moves[episode], strict=True)
        )
        return window | {"frames": window["frames"][:, rows[:, None], columns]}


def enlarged(dataset: Dataset, below: int) -> Dataset:
    """Return the dataset with shift augmentation if it has fewer than ``below`` frames, else itself.

    With enough frames augmentation lowers quality, since every object appears at every offset to the patches.
    """
    return Shifted(dataset) if int(dataset.lengths.sum()) < below else dataset
