"""Fast motion is no cut, however fast; a cut is found, however alike the scenes. Measured at length: docs/log.md."""

import zlib
from itertools import chain, cycle

import numpy as np
import pytest
from filming import config, write
from motions import MOTIONS, SCENES, SIDE, room, seen, spin, textured

from reverie.data.cuts import cuts

SHORTEST = 16  # frames of an episode, as VideosConfig has it


def generator(*words):
    return np.random.default_rng(zlib.crc32(repr(words).encode()))


def begins(frames, apart=1):
    """The places at which a scene begins."""
    return [place for place, cut in cuts(enumerate(frames), 9.0, apart) if cut]


def lost(frames):
    """How many frames are in scenes too short to be used."""
    ends = [0, *begins(frames, SHORTEST), len(frames)]
    lengths = np.diff(ends)
    return int(lengths[lengths < SHORTEST].sum())


def sampled(name, rate):
    """A motion filmed at ``rate`` and brought to at most 15 frames per second, as videos are."""
    return MOTIONS[name](generator(name, rate), rate)[:: -(-rate // 15)]


def test_fast_motion_loses_at_most_one_frame_in_a_hundred():
    films = {(name, rate): sampled(name, rate) for name, rate in zip(MOTIONS, cycle((10, 60, 30)), strict=False)}
    gone = {key: lost(frames) for key, frames in films.items()}
    worst = {key: number for key, number in gone.items() if number}
    assert sum(gone.values()) <= 0.01 * sum(map(len, films.values())), worst
    pieces = sum(len(begins(frames, SHORTEST)) for frames in films.values())
    assert pieces <= len(films) / 4, "motion is taken for cuts, if not where it costs frames"


@pytest.mark.parametrize("kind", [*SCENES, "unlike"])
def test_every_cut_is_found_where_it_is(kind):
    rng = generator(kind)
    kinds = rng.permutation(list(SCENES)) if kind == "unlike" else [kind] * 5
    scenes = [SCENES[name](generator(kind, place))[: rng.integers(SHORTEST, 45)] for place, name in enumerate(kinds)]
    places = np.cumsum([len(scene) for scene in scenes])[:-1].tolist()
    assert begins(chain(*scenes), SHORTEST) == places


def test_a_film_of_two_scenes_is_two_episodes_and_a_spin_is_one(tmp_path):
    rng = np.random.default_rng(1)
    pan = spin(rng, 30, 60)[:90] + spin(rng, 30, 60)[:70]
    episodes = list(config(write(tmp_path / "a.mp4", pan, 30), cuts=9.0, shortest=16).episodes())
    assert [len(episode.frames) for episode in episodes] == [45, 35]
    turn = spin(rng, 30, 950)
    episodes = list(config(write(tmp_path / "b.mp4", turn, 30), cuts=9.0, shortest=16).episodes())
    assert [len(episode.frames) for episode in episodes] == [60]


def test_no_cut_is_seen_in_pans_sprites_fades_and_flashes():
    rng = np.random.default_rng(2)
    scene, sprite = textured(rng, SIDE, 512), textured(rng, 16, 16, 4)
    white = np.full((SIDE, SIDE, 3), 255, np.uint8)
    still = [scene[:, 64:128]] * 10
    pan = [scene[:, 64 + 12 * i : 128 + 12 * i] for i in range(20)]
    assert not begins(still + pan + pan[::-1] + still)  # from a stand into a fast pan, and back
    walked = []
    for y, x in np.clip(np.cumsum(rng.integers(-9, 10, (200, 2)), axis=0), 0, 48):
        walked.append(scene[:, 300:364].copy())
        walked[-1][y : y + 16, x : x + 16] = sprite
    assert not begins(walked)
    assert not begins([(still[0] * (1 - i / 30)).astype(np.uint8) for i in range(31)])
    for length in 1, 2, 3:
        assert not begins(still + [white] * length + still + [white - still[0]] * length + still)


def test_cuts_are_found_one_by_one_and_at_the_right_frame():
    rng = np.random.default_rng(3)
    scenes = [[textured(rng, SIDE, SIDE)] * int(length) for length in rng.integers(5, 20, 30)]
    assert begins(chain(*scenes)) == np.cumsum([len(scene) for scene in scenes[:-1]]).tolist()
    assert begins([]) == begins([scenes[0][0]]) == []
    assert begins([scenes[0][0], scenes[1][0]]) == [1]


def test_a_cut_through_black_is_found():
    rng = np.random.default_rng(4)
    scenes = [[seen(world, 4 * i) for i in range(20)] for world in (room(rng), room(rng), room(rng))]
    black = np.zeros((SIDE, SIDE, 3), np.uint8)
    for length in 1, 2, 4:
        film = [*scenes[0], *[black] * length, *scenes[1], *[black] * length, *scenes[2]]
        found = begins(film, SHORTEST)
        assert [place - 20 - length for place in found] == [0, 20 + length]


def test_of_cuts_closer_than_a_scene_may_be_one_is_kept_and_no_frame_is_lost():
    rng = np.random.default_rng(5)
    turns = list(chain(*([textured(rng, SIDE, SIDE)] * 6 for _ in range(20))))  # each turn within one frame
    assert lost(turns) == 0
    still = [textured(rng, SIDE, SIDE)] * 30
    assert begins(still[:15] + [textured(rng, SIDE, SIDE)] * 30, SHORTEST) == [15]  # alone and certain, though early


def test_a_menu_shortly_before_or_after_a_cut_does_not_hide_it():
    """It is a larger change than the cut, and none itself, since the game goes on behind it."""
    for place in range(6):
        rng = generator("menu", place)
        palette = rng.integers(60, 190, (8, 3))
        scenes = [
            [frame.copy() for _ in range(30)]
            for frame in (seen(room(rng, 640, palette), 0), seen(room(rng, 640, palette), 0))
        ]
        menu = textured(rng, 56, 56, 24) // 128 * 255
        for scene, begin in zip(scenes, (18, 6), strict=True):
            for frame in scene[begin : begin + 6]:
                frame[4:60, 4:60] = menu
        assert begins(chain(*scenes), SHORTEST) == [30]
