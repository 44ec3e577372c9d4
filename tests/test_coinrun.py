"""Real CoinRun, where the extra is installed; and the line that says how to install it, everywhere."""

import importlib.util

import numpy as np
import pytest

from reverie.actions import START
from reverie.data.sources import coinrun
from reverie.data.sources.coinrun import ACTIONS, CoinRunConfig
from reverie.errors import ReverieError


@pytest.fixture(scope="module")
def recorded():
    pytest.importorskip("envpool", reason="needs the extra 'coinrun'", exc_type=ImportError)
    config = CoinRunConfig(count=12, frames=40, num_envs=5)
    return config, list(config.episodes())


def test_episodes_are_what_the_spec_says(recorded):
    config, episodes = recorded
    assert len(episodes) == 12 and len({episode.source for episode in episodes}) == 12
    for episode in episodes:
        episode.validate(config.spec())
        assert config.shortest <= len(episode.frames) <= config.frames
        assert not episode.ends[:-1].any()  # nothing follows an end
        assert len(episode.frames) == config.frames or episode.ends[-1]
        assert set(np.unique(episode.rewards)) <= {0, 10} and episode.rewards[:-1].sum() == 0
    assert len({episode.frames[0].tobytes() for episode in episodes}) == 12


def test_no_frame_of_the_next_level_slips_in(recorded):
    _, episodes = recorded
    change = [np.abs(np.diff(episode.frames.astype(int), axis=0)).mean((1, 2, 3)).max() for episode in episodes]
    apart = [np.abs(a.frames[-1].astype(int) - b.frames[0]).mean() for a in episodes for b in episodes if a is not b]
    assert max(change) < np.percentile(apart, 25)


def test_the_same_config_gives_the_same_episodes(recorded):
    config, episodes = recorded
    for a, b in zip(episodes, config.episodes(), strict=True):
        assert a.source == b.source and all((x == b.arrays()[name]).all() for name, x in a.arrays().items())
    other = next(CoinRunConfig(count=12, frames=40, num_envs=5, seed=1).episodes())
    assert other.source not in {episode.source for episode in episodes}


def test_parts_are_what_one_job_records(recorded):
    config, episodes = recorded
    parts = [episode for part in range(2) for episode in config.episodes(shard=(part, 2))]
    for a, b in zip(episodes, parts, strict=True):
        assert a.source == b.source and all((x == b.arrays()[name]).all() for name, x in a.arrays().items())


def test_actions_matter_and_are_named_rightly(recorded):
    # The same level under one held action each: the camera follows the player, so the picture shifts with it.
    last = {}
    for name in ("stay", "right", "jump", "key q"):
        env = coinrun._make(CoinRunConfig(num_envs=8, levels=50))
        env.reset()
        for _ in range(4):
            pictures, *_ = env.step(np.full(8, ACTIONS.names.index(name), np.int32))
        last[name] = pictures.astype(int)
        env.close()
    apart = {name: np.abs(pictures - last["stay"]).mean((1, 2, 3)) for name, pictures in last.items()}
    assert (apart["right"] > 0.5).sum() >= 6 and (apart["jump"] > 0.5).all() and (apart["key q"] == 0).all()
    # to the right: the scenery of the start moves to the left
    before, after = last["stay"], last["right"]
    shifts = [np.abs(before[:, :, s:] - after[:, :, : 64 - s]).mean((1, 2, 3)) for s in range(8)]
    assert (np.argmin(shifts, axis=0) > 0).sum() >= 6


def test_levels_are_those_asked_for(recorded):
    config = CoinRunConfig(count=8, frames=20, levels=3, first_level=500, num_envs=4)
    played = {int(episode.source.split()[1]) for episode in config.episodes()}
    assert played and played <= {500, 501, 502}


def test_other_sizes(recorded):
    config = CoinRunConfig(count=1, frames=20, num_envs=1, size=32)
    (episode,) = config.episodes()
    episode.validate(config.spec())
    assert episode.frames.shape[1:] == (32, 32, 3) and episode.actions[0] == START


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    def missing(name, *rest):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(coinrun.importlib, "import_module", missing)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert CoinRunConfig().spec().actions.size == len(ACTIONS.names) == len(set(ACTIONS.keys)) == 15
    with pytest.raises(ReverieError, match=r"No module named 'envpool'.*pip install 'reverie-worlds\[coinrun\]'"):
        next(CoinRunConfig().episodes())


@pytest.mark.parametrize(
    "bad", [{"count": 0}, {"frames": 1001}, {"shortest": 1}, {"hold": 1.0}, {"levels": -1}, {"first_level": 3}]
)
def test_a_wrong_field_is_named(bad):
    with pytest.raises(ReverieError, match=next(iter(bad))):
        CoinRunConfig(**bad)


def test_a_game_plays_any_level_and_not_only_those_of_the_data(recorded):
    game = CoinRunConfig(levels=3).as_game()
    first = {level: game.reset(level).frame for level in (0, 1, 2, game.unseen, game.unseen + 1)}
    assert len({frame.tobytes() for frame in first.values()}) == 5
    assert (game.reset(1).frame == first[1]).all()
    game.close()
