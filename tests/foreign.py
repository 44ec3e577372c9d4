"""Episodes for tests of files that other programs wrote, made so that every mistake shows.

Every frame holds its episode and its number, and a mark in one corner; the action taken at frame t is t % 7 + 10.
"""

import io

import numpy as np
from PIL import Image


def frames(count, episode=0, size=(16, 24)):
    """Pictures uint8 (T,H,W,3) that hold their number, their episode, and which side is up and left."""
    made = np.zeros((count, *size, 3), np.uint8)
    made[..., 0], made[..., 1] = np.arange(count)[:, None, None], episode
    made[:, 0, 0, 2] = 200
    return made


def taken(count):
    """The actions taken at frames 0..count-1."""
    return np.arange(count) % 7 + 10


def check(dataset, lengths, actions=None, rewards=None, ends=None, shown=None):
    """Compare a dataset with episodes 0, 1, ...; shown: the numbers in the frames of each, by default 0, 1, ..."""
    assert dataset.lengths.tolist() == lengths
    for index, length in enumerate(lengths):
        window = dataset.read(index, 0, length)
        numbers = list(range(length)) if shown is None else shown[index]
        assert window["frames"][:, 1, 1, 0].tolist() == numbers, index
        assert (window["frames"][:, 0, 0, 2] == 200).all() and not window["frames"][:, -1, -1, 2].any()
        assert bool(dataset.spec.actions.is_start(window["actions"])[0])
        if actions is not None:
            assert np.allclose(window["actions"][1:], actions[index]), index
        if rewards is not None:
            assert np.flatnonzero(window["rewards"]).tolist() == rewards[index], index
        if ends is not None:
            assert np.flatnonzero(window["ends"]).tolist() == ends[index], index


def encoded(image, kind="PNG"):
    """The bytes of a picture's file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()
