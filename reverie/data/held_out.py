"""The held-out episodes of a dataset, for every number and picture. No other module chooses a split."""

import copy
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from reverie.data.episode import CHUNK, Dataset
from reverie.data.splits import NoSplit
from reverie.data.store import open_dataset

NEAR = 16  # of 255: frames whose pixels all differ by no more count as equal


def held_out(place: str | Path, length: int = 1) -> Dataset:
    """Return the split "val" of a dataset; the result's ``split`` is its name.

    If there is no "val", or no episode of it has ``length`` frames, it returns the split "train" and prints a line on
    stderr. Raises ReverieError if "val" is damaged, since numbers of other episodes would be misleading.
    """
    try:
        found = open_dataset(place, "val")
    except NoSplit:
        why = f"'{place}' has no split 'val'"
    else:
        if (found.lengths >= length).any():
            return found
        why = f"no episode in the split 'val' of '{place}' has {length} frames"
    print(f"{why}: the split 'train' is used, which is what was trained on, not held out.", file=sys.stderr)
    return open_dataset(place, "train")


def train_and_held_out(
    place: str | Path, length: int, train: Dataset | None = None, unseen: Dataset | None = None
) -> tuple[Dataset, Dataset]:
    """Return the datasets for training and for reports; they default to the splits of ``place``.

    If no held-out episode has ``length`` frames, reports use the training split; its ``split`` and stderr say so.
    """
    if train is None:
        train, unseen = open_dataset(place, "train"), unseen or held_out(place, length)
    if unseen is None or not (unseen.lengths >= length).any():
        unseen = copy.copy(train)
        unseen.split = "train"
        print(f"no held-out clips of {length} frames: reports are of the split 'train'.", file=sys.stderr)
    return train, unseen


def leak(train: Dataset, val: Dataset, *, count: int = 128, among: int = 20_000) -> float:
    """Return the share of held-out frames that occur in training, to within ``NEAR`` of 255 in every pixel.

    It looks for ``count`` frames spread over ``val`` in at most about ``among`` frames spread over ``train``.
    """
    wanted = np.concatenate(list(_frames(val, count)))
    left = np.ones(len(wanted), bool)
    for frames in _frames(train, among):
        for index in np.flatnonzero(left):
            near = frames[_near(frames[:, ::8, ::8], wanted[index, ::8, ::8])]  # a few pixels rule out most frames
            left[index] = not _near(near, wanted[index]).any()
    return 1 - float(left.mean())


def _near(frames_THWC: np.ndarray, frame_HWC: np.ndarray) -> np.ndarray:
    return np.abs(frames_THWC.astype(np.int16) - frame_HWC).max(axis=(1, 2, 3), initial=0) <= NEAR


def _frames(dataset: Dataset, count: int) -> Iterator[np.ndarray]:
    """Yield every n-th frame of each episode, about ``count`` in all."""
    every = max(1, int(dataset.lengths.sum()) // count)
    for episode, length in enumerate(dataset.lengths.tolist()):
        if every <= CHUNK:  # most records are needed anyway
            yield dataset.read(episode, 0, length, ("frames",))["frames"][::every]
        else:
            single = [dataset.read(episode, at, 1, ("frames",))["frames"] for at in range(0, length, every)]
            yield np.concatenate(single)
