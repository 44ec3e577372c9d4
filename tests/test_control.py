"""Numbers of control tell an oracle from the blind, and intervals hold the truth as often as they say."""

import math

import numpy as np
import pytest
from planted import PLATFORMER, recorded

from reverie.data import loader
from reverie.errors import ReverieError
from reverie.evaluation import control


@pytest.fixture(scope="module")
def dataset():
    return recorded()


@pytest.fixture(scope="module")
def moments(dataset):
    """Frames, next frames, actions and states at every fifth moment of the data."""
    windows = [dataset.read(episode, at, 2) for episode in range(12) for at in range(3, 22, 5)]
    return {name: np.stack([window[name] for window in windows]) for name in windows[0]}


def test_outcomes_are_the_recorded_future(moments):
    true = control.outcomes(PLATFORMER.make(), moments["states"][:, 0], moments["frames"][:, 0])
    taken = true[np.arange(len(true)), moments["actions"][:, 1]]
    np.testing.assert_array_equal(taken, moments["frames"][:, 1])


def test_states_of_other_data_are_refused(moments):
    with pytest.raises(ReverieError, match="record it again"):
        control.outcomes(PLATFORMER.make(), moments["states"][::-1, 0], moments["frames"][:, 0])


def test_swap_tells_an_oracle_from_the_blind(moments):
    true = control.outcomes(PLATFORMER.make(), moments["states"][:, 0], moments["frames"][:, 0])
    recorded = moments["frames"][:, 1]
    oracle = control.action_swap(true, true, recorded)
    assert oracle["right"].sum() == oracle["asked"].sum() > 50
    noise = np.random.default_rng(0).integers(-2, 3, true.shape)
    blurred = np.clip(true.astype(int) + noise, 0, 255).astype(np.uint8)
    assert (control.action_swap(blurred, true, recorded)["right"] == oracle["right"]).all()

    actions = true.shape[1]
    for seen in (recorded, moments["frames"][:, 0], true[:, 0], true.mean(1).astype(np.uint8)):
        same = np.repeat(seen[:, None], actions, axis=1)
        blind = control.action_swap(same, true, recorded)
        assert (blind["right"] <= blind["blind"]).all()
    assert control.action_swap(np.repeat(recorded[:, None], actions, axis=1), true, recorded)["right"].sum() == 0
    assert (oracle["blind"] < oracle["asked"]).any() and (oracle["chance"] <= oracle["asked"] / 2).all()


def test_swap_merges_equal_outcomes_and_counts_ties_as_misses():
    black, grey, white = (np.full((2, 2, 1), value, np.uint8) for value in (0, 100, 200))
    true = np.stack([black, white, white])[None]
    found = control.action_swap(true, true, black[None])
    assert [int(found[name][0]) for name in ("right", "asked", "blind")] == [2, 2, 2] and found["chance"][0] == 1
    between = np.stack([grey, grey, grey])[None]
    assert control.action_swap(between, true, black[None])["right"][0] == 0
    still = np.stack([black, black, black])[None]
    assert control.action_swap(still, still, black[None])["asked"][0] == 0


def test_agreement_knows_names_from_nonsense():
    rng = np.random.default_rng(0)
    actions = rng.choice(4, 4000, p=[0.4, 0.3, 0.2, 0.1])
    renamed = control.agreement(np.array([5, 0, 3, 1])[actions], actions)
    assert renamed["accuracy"] == 1 and renamed["nmi"] == pytest.approx(1)
    assert renamed["chance"] == pytest.approx(0.4, abs=0.03)
    nonsense = control.agreement(rng.integers(0, 6, 4000), actions)
    assert nonsense["accuracy"] == pytest.approx(nonsense["chance"], abs=0.01) and nonsense["nmi"] < 0.01
    collapsed = control.agreement(np.zeros(4000, int), actions)
    assert collapsed["accuracy"] == collapsed["chance"] and collapsed["nmi"] == 0


def test_a_code_means_the_action_it_mostly_goes_with():
    pairs = np.array([[0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4], [1, 1, 0, 1, 1, 1, 0, 0, 2, 2, 2, 0, 0, 0]])
    pairs = np.append(pairs, [[5, 5, 5, 5, 5], [3, 3, 4, 5, 6]], axis=1)  # the most, and less than half
    assert control.meanings(*pairs, 6) == [None, 1, None, 2, 0, None]
    assert control.meanings(np.zeros(0, int), np.zeros(0, int), 2) == [None, None]


def test_intervals_hold_the_mean_and_shrink():
    rng = np.random.default_rng(0)
    few, many = (control.interval(rng.normal(5, 2, (count, 3))) for count in (20, 2000))
    for found in (few, many):
        assert found.shape == (3, 2) and (found[:, 0] < 5).all() and (found[:, 1] > 5).all()
    assert (np.ptp(many, axis=1) < np.ptp(few, axis=1) / 5).all()
    np.testing.assert_allclose(np.ptp(many, axis=1), 2 * 1.96 * 2 / math.sqrt(2000), rtol=0.1)
    asked = rng.integers(0, 4, 200)
    low, high = control.interval(asked * 0.5, asked)
    assert low == pytest.approx(0.5) and high == pytest.approx(0.5)


@pytest.mark.parametrize("episodes", [4, 12, 40])
def test_intervals_over_overlapping_clips_hold_the_mean_as_often_as_they_say(episodes):
    """Clips of one episode share most of what they show; by episode 95 % hold, clip by clip a third or so."""
    rng = np.random.default_rng(0)
    group = np.sort(np.arange(64) % episodes)
    by_episode = by_clip = 0
    for _ in range(200):
        values = rng.normal(0, 1, episodes)[group] + rng.normal(0, 0.2, 64)
        low, high = control.interval(values, groups=group, draws=400)
        by_episode += low < 0 < high
        low, high = control.interval(values, draws=400)
        by_clip += low < 0 < high
    assert by_episode >= 0.9 * 200 and (episodes > 12 or by_clip < 0.7 * 200)


def test_one_episode_cannot_tell():
    assert np.isnan(control.interval(np.arange(6.0), groups=np.zeros(6, int))).all()
    assert control.interval(np.ones((5, 3)), groups=np.arange(5) // 3).shape == (3, 2)
    low, high = control.interval(np.array([3, 0, 1]), np.array([4, 0, 2]), np.array([0, 0, 1]))
    assert low < 4 / 6 < high


def test_clips_know_their_episodes(dataset):
    choice = {"length": 9, "count": 20, "seed": 3}
    found, episodes = loader.clips(dataset, **choice), loader.episodes_of_clips(dataset, **choice)
    levels = [int(dataset.read(episode, 0, 1)["states"][0, 0]) for episode in episodes]
    assert levels == found["states"][:, 0, 0].tolist() and (np.diff(episodes) >= 0).all()
