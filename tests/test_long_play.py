"""A thousand frames of a world: planted worlds that freeze or lose their player are found out, real ones are not."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from planted import Pixels

import reverie
from reverie import config
from reverie.data.arrays import ArrayDataset
from reverie.data.episode import record
from reverie.data.sources.platformer import TILES, Platformer, PlatformerConfig, X, Y, _level, _scenery
from reverie.data.store import write_store
from reverie.data.writing import write_source
from reverie.errors import ReverieError
from reverie.evaluation import long_play
from reverie.evaluation.measure import evaluate
from reverie.evaluation.rollouts import Rollouts
from reverie.evaluation.run import evaluate_run
from reverie.presets import preset
from reverie.training.checkpoint import read_record
from reverie.world import WorldConfig, WorldModel

SOURCE = PlatformerConfig(tiles=6, tile=4, count=8, frames=24)
QUICK = {"sessions": 0, "deep": False, "speed": False}
SHIPPED = Path(reverie.__file__).parent / "worlds" / "platformer"


# -- what frozen, lost and seen mean -----------------------------------------------------------------------------------


def test_standing_still_counts_when_it_lasts_and_keys_change():
    still = np.zeros((4, 40), bool)
    still[0, 5:15] = True  # ten in a row are no loss
    still[1, 5:16] = True
    still[2:, 20:] = True
    keys = np.tile(np.arange(40) % 3, (4, 1))
    keys[2] = 1  # pushed against a wall for as long as the key is held
    found = long_play.stuck(still, keys)
    assert found.sum(1).tolist() == [0, 11, 0, 20] and found[1, 5:16].all()
    assert long_play.stuck(still, None).sum(1).tolist() == [0, 11, 20, 20], "without keys nothing explains it"
    several = np.stack([keys, np.zeros_like(keys)], axis=-1)
    np.testing.assert_array_equal(long_play.stuck(still, several), found)


def test_what_it_may_cost_decides_how_long_is_played():
    cheap, dear = long_play.affordable(1e6), long_play.affordable(5e9)
    assert cheap == (16, 1000) and 0 < dear[0] <= 16 and dear[1] < 1000
    assert long_play.affordable(1e12) == (0, 0) and long_play.affordable(1e6, 1) == (1, 1000)


@pytest.mark.parametrize("source", [
    SOURCE, PlatformerConfig(tiles=8, themes=6, anywhere=True), PlatformerConfig(tiles=6, tile=8, speed=4),
    PlatformerConfig(tiles=6, tile=16, speed=8),
])  # fmt: skip
def test_the_simulator_finds_its_player_and_nothing_else(source):
    simulator = source.make()
    rng = np.random.default_rng(0)
    for seed in range(6):
        film = record(simulator, seed=seed, frames=12, rng=rng, fps=6.0).frames
        blurred = np.clip(film + rng.normal(0, 12, film.shape), 0, 255).astype(np.uint8)
        assert simulator.visible(film).all() and simulator.visible(blurred).all()
        empty = _scenery(seed, 0b11, source.tiles, source.tile, source.themes)
        assert not simulator.visible(empty) and not simulator.visible(np.zeros_like(empty))


def test_starts_anywhere_are_free_places_from_which_the_game_goes_on():
    source = PlatformerConfig(tiles=8, anywhere=True)
    simulator, poses, rows = source.make(), set(), set()
    for seed in range(60):
        state = simulator.reset(seed)
        level = _level(seed, 8, source.themes)
        row, column = int(state[Y]) // 8, int(state[X]) // 8
        assert TILES[level.pictures[row, column]] not in ("earth", "stone", "grass", "flower", "platform")
        poses.add(int(state[3]))
        rows.add(row)
        for action in (1, 3, 2, 0):
            state = simulator.step(state, action)[0]
            assert simulator.visible(simulator.render(state))
    assert poses == {0, 2, 3} and {0, 1, 2, 3} <= rows
    assert (Platformer(SOURCE).reset(5) == Platformer(PlatformerConfig(tiles=6, tile=4)).reset(5)).all()


# -- planted worlds ----------------------------------------------------------------------------------------------------


class Film(nnx.Module):
    """Dynamics that show a film, over and over, and from frame ``until`` on, in every other session, another one."""

    temperature = 0.0

    def __init__(self, film, after, until):
        self.film, self.after, self.until = (nnx.Variable(jnp.asarray(x)) for x in (film, after, until))

    def empty(self, batch):
        return jnp.full((batch,), -1, jnp.int32)

    def observe(self, memory, latents, actions):
        return memory + 1, None

    def imagine(self, memory, actions, key, temperature):
        rows = jnp.arange(len(memory))
        lost = (memory >= self.until[...]) & (rows % 2 == 1)
        first, then = (x[...][memory % len(x[...])] for x in (self.film, self.after))
        return memory + 1, jnp.where(lost[:, None], then, first), jnp.zeros((len(memory), 1))

    def report(self, latents, actions, key):
        return {}


@pytest.fixture(scope="module")
def dataset() -> ArrayDataset:
    return ArrayDataset.from_episodes(SOURCE.spec(), SOURCE.episodes())


@pytest.fixture(scope="module")
def films() -> dict[str, np.ndarray]:
    """A game that goes on; one frame of it for ever; a game in which only a coin comes and goes."""
    film = record(SOURCE.make(), seed=3, frames=60, rng=np.random.default_rng(1), fps=6.0).frames
    empty = np.stack([_scenery(3, coins, 6, 4, SOURCE.themes) for coins in (1, 3)])
    return {name: x.reshape(len(x), -1).astype(np.int32) for name, x in
            {"goes on": film, "freezes": film[7:8], "loses its player": empty}.items()}  # fmt: skip


@pytest.mark.parametrize("fate", ["goes on", "freezes", "loses its player"])
def test_a_world_that_goes_wrong_late_is_found_out(fate, films, dataset, monkeypatch):
    """In 256 frames; the shipped world below plays all thousand."""
    monkeypatch.setattr(long_play, "STEPS", (64, 256))
    spec = dataset.spec
    dynamics = Film(films["goes on"], films[fate], np.int32(100))
    world = WorldModel(
        WorldConfig(frame=spec.frame, actions=spec.actions, context=2, fps=spec.fps), Pixels(), None, dynamics
    )
    numbers, pictures = evaluate(world, dataset, clips=8, horizon=2, speed=False, deep=False, sessions=4)
    played = numbers["long_play"]
    assert long_play.moments(played["frames"]) == [1, 4, 16, 64, 128, 256]
    even, odd = (_strip(pictures["long_play"], row, moments=6) for row in (0, 1))
    shown = films["goes on"].reshape(-1, *spec.frame)
    np.testing.assert_array_equal(even, shown[[moment % 60 for moment in (1, 4, 16, 64, 128, 256)]])
    assert (even[:4] == odd[:4]).all() and (fate == "goes on") == (even[4:] == odd[4:]).all()
    assert played["sessions"] == 4 and played["frames"] == 256 and numbers["episodes"] == 8
    for kind in ("random", "held"):
        found = played[kind]
        frozen, absent, lost = (list(found[name].values()) for name in ("frozen", "absent", "lost"))
        assert list(found["frozen"]) == ["64", "256"]
        wrong = [0, 0.5 * 156 / 256]
        np.testing.assert_allclose(frozen, wrong if fate == "freezes" else [0, 0], atol=0.01)
        np.testing.assert_allclose(absent, wrong if fate == "loses its player" else [0, 0], atol=0.01)
        assert lost == ([0, 0] if fate == "goes on" else [0, 0.5])
        assert all(share <= 0.05 for share in found["frozen_real"].values()), "the bird flies on"
        assert all(np.isfinite(list(found["drift"].values())))


def _strip(sheet_HWC: np.ndarray, row: int, moments: int) -> np.ndarray:
    """Return the frames of one row of a contact sheet, at their own size."""
    size, scale, gap = 24, 3, 4
    pitch = size * scale + gap
    top, left = gap + row * pitch, sheet_HWC.shape[1] - moments * pitch
    row_HWC = sheet_HWC[top : top + size * scale : scale, left:]
    return np.stack([row_HWC[:, at * pitch : at * pitch + size * scale : scale] for at in range(moments)])


def test_long_play_is_the_same_world_that_is_played(dataset, films):
    """Pieces join without a seam: what one rollout would show, and what a memory that was not handed on would not."""
    spec = dataset.spec
    world = WorldModel(
        WorldConfig(frame=spec.frame, actions=spec.actions, context=1, fps=spec.fps),
        Pixels(),
        None,
        Film(films["goes on"], films["goes on"], 0),
    )
    seen = np.stack([dataset.read(episode, 0, 1)["frames"] for episode in range(2)])
    before, along = np.full((2, 1), -1, np.int32), np.zeros((2, 150), np.int32)
    pieces = list(Rollouts(world, batch=2, temperature=0.0).pieces(seen, before, along))
    assert [len(piece[0]) for piece in pieces] == [64, 64, 64]
    shown = np.concatenate(pieces, axis=1)[0].reshape(192, -1)
    np.testing.assert_array_equal(shown, films["goes on"][np.arange(192) % 60])


# -- the world that comes along ----------------------------------------------------------------------------------------


def test_the_preset_still_makes_the_shipped_world():
    recipe = preset("toy-maskgit-shipped")
    noted = json.loads((SHIPPED / "world.json").read_text("utf-8"))
    assert config.from_json(noted["source"]) == recipe.source  # fields that came later have their defaults
    for name, run in (("tokenizer", recipe.tokenizer), ("dynamics", recipe.dynamics)):
        assert read_record(SHIPPED / name).run == run, name
    numbers = json.loads((SHIPPED / "eval.json").read_text("utf-8"))
    assert numbers["long_play"]["random"]["lost"] == {"64": 0, "256": 0, "1000": 0}
    assert (numbers["clips"], numbers["horizon"], numbers["dataset"]) == (recipe.clips, recipe.horizon, "platformer")


def test_the_shipped_world_keeps_its_player_for_a_thousand_frames(optimised):
    world, source = reverie.load(SHIPPED), read_record(SHIPPED / "dynamics").spec.simulator
    simulator = source.make()
    starts = np.stack([simulator.render(simulator.reset(seed)) for seed in range(1000, 1004)])
    rollouts = Rollouts(world, batch=4, temperature=world.dynamics.temperature)
    keys = np.random.default_rng(0).integers(0, 4, (4, 1000)).astype(np.int32)
    frames = np.concatenate(list(rollouts.pieces(starts[:, None], np.full((4, 1), -1, np.int32), keys)), axis=1)
    gone = ~simulator.visible(frames[:, :1000])
    assert not long_play._long(gone).any(), np.argwhere(gone)[:5]
    assert not long_play.stuck((frames[:, 1:] == frames[:, :-1]).all((-3, -2, -1))[:, :999], keys[:, 1:]).any()


def test_a_world_without_its_data_is_measured_all_the_same(tmp_path):
    """On new episodes of its simulator, or on any store of its kind; on nothing else."""
    world = tmp_path / "world"
    shutil.copytree(SHIPPED, world)
    found = evaluate_run(world, clips=2, horizon=1, **QUICK)
    assert found["clips"] == found["episodes"] == 2 and found["dataset"] == "platformer"
    assert json.loads((world / "eval.json").read_text("utf-8"))["clips"] == 2
    source = read_record(world / "dynamics").spec.simulator
    write_store(tmp_path / "store", source.spec(), {"mine": config.replace(source, count=3, seed=77).episodes()})
    other = evaluate_run(world, clips=2, horizon=1, **QUICK, data=tmp_path / "store", split="mine", seed=5)
    assert (other["seed"], other["split"]) == (5, "mine") and other["fingerprint"] != found["fingerprint"]
    write_source(tmp_path / "other", SOURCE, val=0.5)
    with pytest.raises(ReverieError, match="frames"):
        evaluate_run(world, clips=2, horizon=1, **QUICK, data=tmp_path / "other")
    with pytest.raises(ReverieError, match="--data"):
        evaluate_run(world, clips=2, horizon=1, **QUICK, split="train")
