"""Environments of Gymnasium as episodes: pictures, every kind of action at its frame, seeds, and what is refused."""

import sys
from dataclasses import replace
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest

from reverie.actions import ActionSpace
from reverie.data.sources.atari import AtariConfig
from reverie.data.sources.coinrun import CoinRunConfig
from reverie.data.sources.craftax import CraftaxConfig
from reverie.data.sources.gymnasium import GymnasiumConfig
from reverie.data.sources.procgen import ProcgenConfig
from reverie.data.sources.vizdoom import ViZDoomConfig
from reverie.data.takes import JUDGED, Moment, Take, game_of
from reverie.errors import ReverieError

SPACES = {
    "discrete": gymnasium.spaces.Discrete(5, start=2),
    "multi": gymnasium.spaces.MultiDiscrete([3, 4]),
    "binary": gymnasium.spaces.MultiBinary(4),
    "continuous": gymnasium.spaces.Box(-1, 2, (3,), np.float32),
    "whole": gymnasium.spaces.Box(-1, 3, (2,), np.int8),
}


class Proof(gymnasium.Env):
    """Shows its seed, its time and the action that led there, in one row of pixels each; ends at frame 9."""

    metadata = {"render_fps": 12, "render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, kind="discrete", shown="observation", render_mode=None):
        self.action_space, self.shown, self.render_mode = SPACES.get(kind, gymnasium.spaces.Text(3)), shown, render_mode
        picture = gymnasium.spaces.Box(0, 255, (16, 24, 3), np.uint8)
        self.observation_space = picture if shown == "observation" else gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def picture(self):
        frame = np.zeros((16, 24, 3), np.uint8)
        frame[0], frame[1] = self.start, self.time
        values = np.ravel(self.last)
        frame[2, : len(values)] = np.round(100 + 20 * values)[:, None]
        return frame

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.start, self.time, self.last = int(self.np_random.integers(200)), 0, np.zeros(0)
        return self.seen(), {}

    def seen(self):
        return self.picture() if self.shown == "observation" else np.zeros(2, np.float32)

    def step(self, action):
        assert self.action_space.contains(action), action
        self.time, self.last = self.time + 1, np.asarray(action, float)
        return self.seen(), float(self.time == 3), self.time == 9, False, {}

    def render(self):
        return self.picture() if self.shown == "render" else None


@pytest.fixture(autouse=True)
def proof():
    made: Any = Proof
    gymnasium.register("Proof-v0", entry_point=made)
    for kind in (*SPACES, "words"):
        gymnasium.register(f"Proof-{kind}-v0", entry_point=made, kwargs={"kind": kind, "shown": "render"})
    gymnasium.register("Proof-blind-v0", entry_point=made, kwargs={"shown": "nothing"})
    yield
    for name in [name for name in gymnasium.registry if name.startswith("Proof")]:
        del gymnasium.registry[name]


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("policy", ["sticky", "random", "mixed"])
def test_every_kind_of_action_leads_to_its_frame(kind, policy):
    source = GymnasiumConfig(path=f"Proof-{kind}-v0", count=3, policy=policy)
    spec, episodes = source.spec(), list(source.episodes())
    assert spec.actions.kind == ("multi" if kind == "whole" else kind) and spec.fps == 12 and spec.frame == (16, 24, 3)
    for episode in episodes:
        episode.validate(spec)
        assert episode.frames[:, 1, 0, 0].tolist() == list(range(10))
        assert np.flatnonzero(episode.rewards).tolist() == [3] and np.flatnonzero(episode.ends).tolist() == [9]
        start = {"discrete": 2, "whole": -1}.get(kind, 0)
        values = episode.actions[1:].reshape(9, -1) + start
        assert np.allclose(episode.frames[1:, 2, : values.shape[1], 0], np.round(100 + 20 * values), atol=1)
    assert len({episode.frames[0, 0, 0, 0] for episode in episodes}) > 1  # a level each
    assert [e.source for e in episodes] == [f"Proof-{kind}-v0, seed {seed}" for seed in range(3)]
    again = list(source.episodes())
    assert all(
        (a.frames == b.frames).all() and (a.actions == b.actions).all() for a, b in zip(episodes, again, strict=True)
    )


def test_mixed_players_prefer_other_actions_in_each_episode():
    def most(policy):
        source = GymnasiumConfig(path="Proof-discrete-v0", count=40, policy=policy)
        found = [np.bincount(episode.actions[1:], minlength=5) / 9 for episode in source.episodes()]
        assert (np.sum(found, axis=0) > 0).all()
        return np.max(found, axis=1).mean()

    assert most("mixed") > most("sticky") + 0.1 > most("random") + 0.2


def test_people_can_play_one_too():
    game = game_of(GymnasiumConfig(path="Proof-discrete-v0"))
    first = game.reset(7)
    assert (game.reset(7).frame == first.frame).all() and not first.over
    for time in range(1, 10):
        moment = game.step(np.int32(4))
        assert moment.frame[1, 0, 0] == time and moment.frame[2, 0, 0] == 220  # action 4 is the environment's 6
    assert moment.over and moment.end and moment.state is None
    game.close()


def test_observations_are_pictures_where_they_can_be_and_have_a_size(store):
    found = store("gymnasium", "Proof-v0", "--count", "2", "--frames", "5", "--size", "8", "12")
    assert found.spec.frame == (8, 12, 3) and found.lengths.tolist() == [5, 5]
    assert not found.read(0, 0, 5)["ends"].any()  # the recording stopped, not the world


def test_what_cannot_be_recorded_is_one_line():
    for config, why in [
        ({"path": "Proof-blind-v0"}, "has no pictures"),
        ({"path": "Proof-words-v0"}, "cannot be recorded"),
        ({"path": "Prof-v0"}, "there is no environment 'Prof-v0'.*Did you mean 'Proof"),
        ({"path": "Proof-v0", "package": "no_such_package"}, "needs a package that is not installed"),
        ({"path": "Proof-v0", "count": 0}, "count >= 1"),
    ]:
        with pytest.raises(ReverieError, match=why) as error:
            GymnasiumConfig(**config).spec()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", [AtariConfig, CraftaxConfig, ViZDoomConfig])
def test_a_game_whose_package_is_missing_is_one_line_that_names_the_extra(config, monkeypatch):
    monkeypatch.setitem(sys.modules, config().package, None)
    with pytest.raises(ReverieError, match=r"needs a package that is not installed.*reverie-worlds\[\w+\]'\.$"):
        config().spec()


@pytest.mark.parametrize("moment", ["made", "drawn"])
def test_gymnasiums_own_error_for_a_missing_package_is_one_line(monkeypatch, moment):
    def missing(*_, **__):
        raise gymnasium.error.DependencyNotInstalled("pygame is not installed")

    monkeypatch.setattr(Proof, "__init__" if moment == "made" else "render", missing)
    with pytest.raises(ReverieError, match="(needs a package|cannot be rendered).*pygame is not installed"):
        GymnasiumConfig(path="Proof-discrete-v0").spec()


def test_craftax_shows_what_its_own_package_draws():
    theirs = pytest.importorskip("craftax.craftax_env", reason="needs the extra 'craftax'", exc_type=ImportError)
    with pytest.raises(ReverieError, match="no game 'Craftax-Symbolic-v1' of Craftax with pictures"):
        CraftaxConfig(path="Craftax-Symbolic-v1")
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        source = CraftaxConfig(count=2, frames=12, seed=5)
        spec, (episode, other) = source.spec(), source.episodes()
        episode.validate(spec)
        assert spec.frame == (63, 63, 3) and spec.actions.size == 17 and spec.actions.names[2] == "right"
        assert (episode.frames[0] != other.frames[0]).any()  # each seed is a world
        (again,) = CraftaxConfig(count=1, frames=12, seed=6).episodes()
        assert (again.frames == other.frames).all() and (again.actions == other.actions).all()
        game, key = theirs.make_craftax_env_from_name(source.path, auto_reset=False), jax.random.key(5)
        picture, state = game.reset(key)
        for time, (frame, action) in enumerate(zip(episode.frames, episode.actions, strict=True)):
            if time:
                picture, state, *_ = game.step(jax.random.fold_in(key, time), state, np.int32(action))
            assert np.abs(np.asarray(picture) * 255 - frame).max() < 0.51


def test_vizdoom_leaves_no_files_in_the_current_folder(tmp_path):
    pytest.importorskip("vizdoom", reason="needs the extra 'vizdoom'", exc_type=ImportError)
    (episode,) = ViZDoomConfig(count=1, frames=4, size=(24, 32)).episodes()
    assert len(episode.frames) == 4 and not list(tmp_path.iterdir())


def test_vizdooms_campaign_maps_are_walked_in_silence():
    """They ask for sound, without a device for which the engine ends the process; and for several buttons at once."""
    pytest.importorskip("vizdoom", reason="needs the extra 'vizdoom'", exc_type=ImportError)
    source = ViZDoomConfig(path="VizdoomFreedoom2MAP01-S1-v0", walk=True, skip=2, count=1, frames=12, size=(24, 32))
    (episode,) = source.episodes()
    episode.validate(source.spec())
    assert {"move forward", "turn left"} < set(source.spec().actions.names) and len(episode.frames) == 12


def test_the_actions_of_boxing_need_no_engine():
    pytest.importorskip("ale_py", reason="needs the extra 'atari'", exc_type=ImportError)
    source = AtariConfig(path="ALE/Boxing-v5", size=(16, 16), fps=15.0)
    assert source.spec() == source._asked()


def test_vizdooms_deathmatch_is_played_by_its_keys_and_its_mouse_rests():
    pytest.importorskip("vizdoom", reason="needs the extra 'vizdoom'", exc_type=ImportError)
    source = ViZDoomConfig(path="VizdoomDeathmatch-v1", count=1, frames=12, size=(24, 32))
    (episode,) = source.episodes()
    names = source.spec().actions.names
    assert len(names) == 18 and names[0] == "wait" and {"attack", "turn left", "move forward"} <= set(names)
    episode.validate(source.spec())
    assert len(set(episode.actions[1:].tolist())) > 1


def test_vizdooms_walker_turns_at_walls_and_needs_no_engine_for_its_spec():
    source = ViZDoomConfig(path="VizdoomMyWayHome-v1", walk=True, skip=2, size=(24, 32), count=1, frames=40)
    spec = source.spec()
    assert (
        spec.fps == 17.5 and dict(zip(spec.actions.names, spec.actions.keys, strict=True))["turn left"] == "ArrowLeft"
    )
    wall, walking = Take(spec, 0, Moment(np.zeros(spec.frame, np.uint8))), spec.actions.names.index("move forward")
    wall.add(walking, wall.moments[0][1])
    free = Take(spec, 0, wall.moments[0][1])
    free.add(walking, Moment(np.full(spec.frame, 99, np.uint8)))
    rng = np.random.default_rng(0)
    chosen = {
        take: [spec.actions.names[int(source._next(take, rng, spec.actions.drawn))] for _ in range(99)]
        for take in (wall, free)
    }
    assert set(chosen[wall]) == {"turn left", "turn right"} and chosen[free].count("move forward") > 80
    with pytest.raises(ReverieError, match="not a scenario to walk in: its actions are fire"):
        source._next(
            Take(replace(spec, actions=ActionSpace("discrete", 1, ("fire",))), 0, wall.moments[0][1]),
            rng,
            spec.actions.drawn,
        )
    with pytest.raises(ReverieError, match="skip of 1 to 35"):
        ViZDoomConfig(skip=0)
    pytest.importorskip("vizdoom", reason="needs the extra 'vizdoom'", exc_type=ImportError)
    found = source._asked()
    assert replace(found, actions=spec.actions) == spec and found.actions.names == spec.actions.names
    (episode,) = source.episodes()
    episode.validate(spec)
    assert (episode.frames[1:] != episode.frames[:-1]).any((1, 2, 3)).mean() > 0.9


@pytest.mark.parametrize(
    "source",
    [
        GymnasiumConfig(seed=JUDGED - 1, count=2),
        ViZDoomConfig(seed=JUDGED),
        ProcgenConfig(first_level=JUDGED - 5, count=6),
        CoinRunConfig(levels=2, first_level=JUDGED - 1),
    ],
)
def test_levels_in_which_agents_are_judged_are_not_recorded(source):
    with pytest.raises(ReverieError, match=f"agents are judged in seeds and levels from {JUDGED} on"):
        next(source.episodes())
