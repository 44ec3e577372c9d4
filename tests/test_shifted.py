"""Copies of a small dataset, moved by some pixels."""

import numpy as np
from playground import FPS, FRAME, STEER

from reverie.actions import START
from reverie.data.arrays import ArrayDataset
from reverie.data.episode import Spec
from reverie.data.shifted import Shifted, enlarged


def dataset(lengths=(5, 9)):
    rng, total = np.random.default_rng(0), sum(lengths)
    arrays = {
        "frames": rng.integers(0, 256, (total, *FRAME), np.uint8),
        "actions": np.concatenate([np.r_[START, np.ones(length - 1)] for length in lengths]).astype(np.int32),
        "states": np.zeros((total, 1), np.int32),
    }
    return ArrayDataset(Spec(FRAME, STEER, FPS, "noise"), np.array(lengths), arrays)


def test_the_first_copies_are_the_episodes_themselves_and_the_others_are_moved():
    plain = dataset()
    more = Shifted(plain)
    assert more.lengths.tolist() == [5, 9] * 5 and more.fingerprint != plain.fingerprint
    height, width, _ = FRAME
    different = set()
    for episode in range(10):
        window, true = more.read(episode, 1, 4), plain.read(episode % 2, 1, 4)
        assert "states" not in window
        np.testing.assert_array_equal(window["actions"], true["actions"])
        down, right = more.moves[episode]
        assert abs(down) <= height // 8 and abs(right) <= width // 8
        into = window["frames"][:, max(down, 0) : height + down, max(right, 0) : width + right]
        out_of = true["frames"][:, max(-down, 0) : height - down, max(-right, 0) : width - right]
        np.testing.assert_array_equal(into, out_of)
        if down > 0:
            np.testing.assert_array_equal(window["frames"][:, 0], window["frames"][:, down])
        if episode < 2:
            assert (down, right) == (0, 0)
        different.add((down, right))
    assert len(different) > 4


def test_only_a_small_dataset_is_made_larger():
    plain = dataset()
    assert enlarged(plain, 0) is enlarged(plain, 14) is plain
    assert enlarged(plain, 15).lengths.sum() == 5 * 14
