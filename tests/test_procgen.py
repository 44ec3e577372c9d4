"""Procgen's games, where the extra is installed: levels, policies, parts of an array job."""

from typing import get_args

import numpy as np
import pytest

from reverie.data.sources.procgen import GOALS, SPACE, Name, ProcgenConfig
from reverie.data.takes import Take, game_of
from reverie.errors import ReverieError


@pytest.fixture
def envpool():
    pytest.importorskip("envpool", reason="needs the extra 'coinrun'", exc_type=ImportError)


def same(a, b):
    return a.source == b.source and all(np.array_equal(x, b.arrays()[name]) for name, x in a.arrays().items())


@pytest.mark.parametrize("game", get_args(Name))
def test_every_game_is_recorded_on_numbered_levels(envpool, game):
    config = ProcgenConfig(game=game, count=3, frames=30, first_level=5)
    episodes = list(config.episodes())
    assert [episode.source for episode in episodes] == [f"{game}, level {level}" for level in (5, 6, 7)]
    assert len({episode.frames[0].tobytes() for episode in episodes}) == 3
    for episode in episodes:
        episode.validate(config.spec())
        assert len(episode.frames) == 30 or episode.ends[-1]
        assert not episode.ends[:-1].any()
    assert any((episode.frames[1:] != episode.frames[:-1]).any() for episode in episodes)  # a maze may block one


def test_a_game_can_be_played_and_gives_what_is_recorded(envpool):
    config = ProcgenConfig(game="maze", count=1, frames=12, size=32, first_level=7)
    (episode,), game = config.episodes(), game_of(config)
    take = Take(game.spec, 7, game.reset(7))
    for action in episode.actions[1:]:
        take.add(action, game.step(int(action)))
    game.close()
    assert same(take.episode("maze"), episode)


def test_parts_are_what_one_job_records(envpool):
    config = ProcgenConfig(game="maze", count=5, frames=12, policy="scripted")
    whole = list(config.episodes())
    parts = [episode for part in range(2) for episode in config.episodes(shard=(part, 2))]
    assert len(whole) == len(parts) and all(same(a, b) for a, b in zip(whole, parts, strict=True))
    fewer = list(ProcgenConfig(game="maze", count=4, frames=12, levels=2).episodes())
    assert [episode.source[-1] for episode in fewer] == ["0", "1", "0", "1"]


def test_policies_hold_or_head_for_the_goal():
    rng, taken = np.random.default_rng(0), {}
    for policy in ("sticky", "random", "scripted"):
        config, action, taken[policy] = ProcgenConfig(game="climber", policy=policy), -1, []
        share = config._goal_share(rng)
        for _ in range(2000):
            action = config._next(rng, action, share)
            taken[policy].append(action)
    repeats = {policy: np.mean(np.diff(actions) == 0) for policy, actions in taken.items()}
    assert repeats["random"] < 0.1 and repeats["sticky"] > 0.7
    up = [SPACE.names.index(name) for name in GOALS["climber"]]
    assert np.isin(taken["scripted"], up).mean() > 0.75 > 0.3 > np.isin(taken["sticky"], up).mean()
    assert set(GOALS) <= set(get_args(Name))
    shares = [ProcgenConfig(policy="mixed")._goal_share(rng) for _ in range(100)]
    assert 0.2 < min(shares) < 0.3 and 0.9 < max(shares) < 1


def test_a_game_is_named_by_either_flag():
    assert ProcgenConfig(path="procgen-maze-v0").game == ProcgenConfig(path="maze").game == "maze"
    with pytest.raises(ReverieError, match="no game 'mase' of Procgen. Did you mean 'maze'"):
        ProcgenConfig(path="mase")


@pytest.mark.parametrize("bad", [{"count": 0}, {"frames": 1001}, {"levels": -1}, {"first_level": 2**31}])
def test_a_wrong_field_is_named(bad):
    with pytest.raises(ReverieError, match=next(iter(bad))):
        ProcgenConfig(**bad)
