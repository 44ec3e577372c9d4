"""Evaluation can tell: planted worlds that obey their player, ignore him, mix his actions up or fade."""

import dataclasses
import io
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import nnx
from rich.console import Console

from reverie.actions import ActionSpace
from reverie.data import loader
from reverie.data.arrays import ArrayDataset
from reverie.data.sources.platformer import PlatformerConfig
from reverie.errors import ReverieError
from reverie.evaluation import control, dreams
from reverie.evaluation.image import LEAST_ERROR
from reverie.evaluation.measure import evaluate
from reverie.evaluation.report import MEANING, table, write_report
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.models.lams.pixels import PixelLAMConfig
from reverie.models.tokenizers.vqvae import VQVAEConfig
from reverie.nn.batch import Loss, mean
from reverie.nn.quantise import FSQConfig, VQConfig
from reverie.nn.transformer import TransformerConfig
from reverie.world import WorldConfig, WorldModel

PLATFORMER = PlatformerConfig(tiles=6, tile=4, count=12, frames=24)
CONTEXT = 4


# -- control -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset() -> ArrayDataset:
    return ArrayDataset.from_episodes(PLATFORMER.spec(), PLATFORMER.episodes())


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


# -- whole worlds ------------------------------------------------------------------------------------------------------


class Pixels(nnx.Module):
    """A tokenizer without loss: a token is a byte of the picture."""

    codes = 256

    def encode(self, frames):
        return rearrange(frames, "b t h w c -> b t (h w c)").astype(jnp.int32)

    def decode(self, latents):
        height, width, _ = PLATFORMER.spec().frame
        return rearrange(latents, "b t (h w c) -> b t h w c", h=height, w=width).astype(jnp.float32) / 255

    def empty(self, batch):
        return jnp.zeros((batch,))

    def decode_frame(self, memory, latents):
        return memory, self.decode(latents[:, None])[:, 0]


class Planted(nnx.Module):
    """Dynamics that look up where they are and ask the simulator, with the player's actions replaced by ``obey``."""

    temperature = 0.0

    def __init__(self, obey):
        self.obey = obey

    def empty(self, batch):
        return jnp.zeros((batch, 10), jnp.int32)

    def observe(self, memory, latents, actions):
        memory = jax.ShapeDtypeStruct((len(latents), 10), jnp.int32)
        return jax.pure_callback(_recognise, memory, latents), None

    def imagine(self, memory, actions, key, temperature):
        like = jax.ShapeDtypeStruct((len(actions), math.prod(PLATFORMER.spec().frame)), jnp.int32)
        memory, latents = jax.pure_callback(_simulate, (memory, like), memory, self.obey(actions))
        return memory, latents, jnp.zeros((len(actions), 1))

    def loss(self, latents, actions, key):
        """How much of a frame is not what it expects, and a little for surprise at all."""
        time_first = jnp.moveaxis(latents, 1, 0), self.obey(actions.T)
        wrong = jax.lax.map(lambda pair: self._wrong(*pair), (time_first[0][:-1], time_first[0][1:], time_first[1][1:]))
        return Loss((mean(0.01 + wrong),), {})

    def _wrong(self, seen, following, actions):
        memory, _ = self.observe(None, seen, None)
        return jnp.mean((self.imagine(memory, actions, None, None)[1] != following).astype(jnp.float32))

    def report(self, latents, actions, key):
        return {"seen": latents[0, 0, 0].astype(jnp.float32), "picture": latents}


STATES: dict[bytes, np.ndarray] = {}  # picture -> a state that looks so; nothing in the platformer is hidden


def _recognise(latents):
    rows = [STATES.get(np.asarray(row, np.uint8).tobytes()) for row in np.asarray(latents)]
    return np.stack([np.zeros(10, np.int32) if row is None else row for row in rows])


def _simulate(memory, actions):
    simulator = PLATFORMER.make()
    states = [simulator.step(state, int(action))[0] for state, action in zip(memory, actions, strict=True)]
    return np.stack(states), np.stack([simulator.render(state) for state in states], dtype=np.int32).reshape(
        len(states), -1
    )


def obedient(actions):
    return actions


def blind(actions):
    return jnp.zeros_like(actions)


def mixed_up(actions):
    """Obeys the player of another clip."""
    return jnp.roll(actions, 1)


@pytest.fixture(scope="module")
def judged(dataset):
    """Numbers and pictures of the planted worlds."""
    spec = dataset.spec
    for frame, state in zip(dataset.arrays["frames"], dataset.arrays["states"], strict=True):
        STATES[frame.tobytes()] = state
    config = WorldConfig(spec.frame, spec.actions, CONTEXT, spec.fps)
    return {
        obey.__name__: evaluate(
            WorldModel(config, Pixels(), None, Planted(obey)),
            dataset,
            clips=40,
            horizon=6,
            speed=False,
            sessions=0,
            trained=3,
            practice=dataset,
        )
        for obey in (obedient, blind, mixed_up)
    }


def test_an_obedient_world_is_perfect(judged):
    numbers, _ = judged["obedient"]
    most = -10 * math.log10(LEAST_ERROR)
    np.testing.assert_allclose(numbers["psnr"], most, rtol=1e-5)
    np.testing.assert_allclose(numbers["floor_psnr"], most, rtol=1e-5)
    np.testing.assert_allclose(numbers["ssim"], 1, atol=1e-5)
    assert numbers["swap_accuracy"] == 1 and numbers["swap_accuracy_ci"] == [1, 1] and numbers["swap_pairs"] > 50
    assert numbers["swap_blind"] < 0.9 and numbers["swap_chance"] <= 0.5
    assert min(numbers["delta_psnr"]) > 5 and numbers["delta_psnr_4_ci"][0] > 5
    assert max(numbers["copy_last_psnr"]) < most - 5


def test_a_blind_world_is_found_out(judged):
    numbers, _ = judged["blind"]
    assert numbers["delta_psnr"] == [0] * 6 and numbers["delta_psnr_4"] == 0
    assert numbers["swap_accuracy"] <= numbers["swap_blind"]
    assert numbers["swap_accuracy_ci"][1] < 0.9
    assert numbers["psnr"][0] > numbers["copy_last_psnr"][0]  # pretty all the same: this is why control is measured


def test_a_world_of_mixed_up_actions_is_found_out(judged):
    numbers, _ = judged["mixed_up"]
    assert abs(numbers["delta_psnr_4"]) < 4 and numbers["psnr"][3] < judged["obedient"][0]["psnr"][3] - 10


def test_actions_lower_the_loss_of_an_obedient_world_alone(judged):
    ratios = {name: numbers["action_shuffle_ratio"] for name, (numbers, _) in judged.items()}
    assert ratios["blind"] == 1 and judged["blind"][0]["action_shuffle_ratio_ci"] == [1, 1]
    assert judged["obedient"][0]["action_shuffle_ratio_ci"][0] > 2 > ratios["mixed_up"]


def test_actions_are_read_off_dreams_of_an_obedient_world_alone(judged):
    """From worlds as real as the real one; the ceiling is that of the real frames, to the digit."""
    for numbers, _ in judged.values():
        assert numbers["idm_accuracy_real"] == numbers["idm_accuracy_floor"] > 0.7
        assert numbers["idm_chance"] < 0.4
    read = {name: numbers["idm_accuracy"] for name, (numbers, _) in judged.items()}
    assert read["obedient"] == judged["obedient"][0]["idm_accuracy_real"]
    assert judged["blind"][0]["idm_accuracy_ci"][1] < 0.5 and judged["mixed_up"][0]["idm_accuracy_ci"][1] < 0.5


def test_dreams_of_the_simulator_do_not_drift(judged):
    for name in ("obedient", "mixed_up"):
        numbers, _ = judged[name]
        assert numbers["drift_frames"] == 12 and numbers["drift_ci"][0] < 2 * numbers["drift_floor"]
        assert numbers["drift"] < 1 and numbers["frechet_random"] < 2 * numbers["frechet_random_floor"]
    assert judged["obedient"][0]["frechet_random"] == judged["obedient"][0]["frechet_random_floor"]
    assert judged["obedient"][0]["frechet_random_actions"] < 2 * judged["obedient"][0]["frechet_random_floor"]
    assert judged["obedient"][0]["frechet_random_copy_last"] > 2 * judged["obedient"][0]["frechet_random_floor"]


class Fading(Pixels):
    """Every dreamed frame is nearer to grey than the one before: the tokenizer's memory counts them."""

    def decode_frame(self, memory, latents):
        share = jnp.exp2(-memory / 4).reshape(-1, 1, 1, 1)
        return memory + 1, share * self.decode(latents[:, None])[:, 0] + (1 - share) / 2


def test_a_world_that_fades_is_found_out(dataset, judged):
    spec = dataset.spec
    world = WorldModel(WorldConfig(spec.frame, spec.actions, CONTEXT, spec.fps), Fading(), None, Planted(obedient))
    numbers, _ = evaluate(world, dataset, clips=40, horizon=6, speed=False, sessions=0, trained=3)
    healthy = judged["obedient"][0]
    assert numbers["drift_ci"][0] > 3 * max(healthy["drift"], healthy["drift_floor"])
    assert numbers["drift"] > 3 * numbers["drift_copy_last"]
    for name in ("frechet_random", "frechet_random_actions"):
        assert numbers[name] > 3 * numbers["frechet_random_floor"]
    assert numbers["idm_accuracy"] is None, "nobody gave it episodes to learn to read from"


def test_the_second_part_can_be_left_out(dataset):
    spec = dataset.spec
    world = WorldModel(WorldConfig(spec.frame, spec.actions, CONTEXT, spec.fps), Pixels(), None, Planted(blind))
    numbers, _ = evaluate(world, dataset, clips=4, horizon=2, speed=False, deep=False, sessions=0)
    assert all(numbers[name] is None for name in ("drift", "frechet_random", "action_shuffle_ratio", "parameters"))


def tiny_world(latent: bool) -> WorldModel:
    """A real world of real parts, untrained, for the platformer's frames."""
    spec, rngs = PLATFORMER.spec(), nnx.Rngs(0)
    net = TransformerConfig(width=32, depth=1, heads=2, window=CONTEXT + 1)
    tokenizer = VQVAEConfig(frame=spec.frame, patch=4, encoder=net, decoder=net, quantiser=FSQConfig((4, 4, 4))).make(
        rngs
    )
    quantiser = VQConfig(codes=3, width=8)
    acts = PixelLAMConfig(frame=spec.frame, patch=8, encoder=net, decoder=net, quantiser=quantiser)
    lam = acts.make(rngs) if latent else None
    space = ActionSpace("latent", 3) if latent else spec.actions
    dynamics = MaskGITConfig(codes=tokenizer.codes, grid=tokenizer.grid, actions=space, transformer=net, passes=3).make(
        rngs
    )
    return WorldModel(WorldConfig(spec.frame, space, CONTEXT, spec.fps), tokenizer, lam, dynamics)


def pooled(clips: np.ndarray) -> np.ndarray:
    """Mean colours of a clip's frames, (B, T * C): features such as a user may bring."""
    return clips.mean((2, 3)).reshape(len(clips), -1)


@pytest.fixture(scope="module")
def real(dataset):
    """Numbers and pictures of untrained worlds, by whether their actions are latent; speed of the latent one alone."""
    return {latent: in_full(latent, dataset, speed=latent) for latent in (False, True)}


def in_full(latent: bool, dataset, speed: bool):
    """Everything that can be measured, of a long play the first frames."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reverie.evaluation.long_play.STEPS", (16, 64))
        return evaluate(
            tiny_world(latent), dataset, clips=10, horizon=5, speed=speed, sessions=2, practice=dataset, features=pooled
        )


@pytest.mark.parametrize("latent", [False, True])
def test_a_real_world_gets_a_whole_report(latent, real, tmp_path):
    numbers, pictures = real[latent]
    assert set(MEANING) <= set(numbers)
    path = write_report(numbers, pictures, tmp_path / "world")
    written = json.loads(path.read_text())
    assert written.pop("checksum")
    assert written == json.loads(json.dumps(numbers)), "nothing of it was infinite"
    assert written["action_source"] == ("latent" if latent else "true")
    speeds = {"frames_per_second", "frames_per_second_uncached", "latency_p95_ms"}
    absent = {name for name in MEANING if written[name] is None}
    assert absent == (set() if latent else speeds | {name for name in MEANING if name.startswith("lam_")})
    assert len(written["lam_actions"]) == 3 if latent else "lam_actions" not in written
    assert all(written[name] > 0 for name in speeds - absent)
    for view in ("", "floor_", "copy_last_", "random_"):
        assert len(written[f"{view}psnr"]) == len(written[f"{view}ssim_ci"]) == 5
    for name in ("swap_accuracy", "delta_psnr_4"):
        low, high = written[f"{name}_ci"]
        assert low <= written[name] <= high
    made = {file.name for file in (tmp_path / "world" / "eval").iterdir()}
    assert made == {"sheet.png", "actions.png", "dream.gif", "curves.png"}
    console = Console(record=True, width=150, file=io.StringIO())
    console.print(table(numbers))
    shown = console.export_text()
    assert "swap_accuracy" in shown and "random keys" in shown and f"of {numbers['episodes']} episodes" in shown
    assert list(written["long_play"]["held"]["frozen"]) == ["16", "64"] and 1 < numbers["episodes"] <= 10


def test_video_without_actions_gets_what_it_can(dataset, judged, tmp_path):
    """Without actions and simulator those numbers are null, and the others are there."""
    spec = dataclasses.replace(dataset.spec, actions=ActionSpace(), simulator=None)
    arrays = dataset.arrays | {"actions": np.minimum(dataset.arrays["actions"], -1)}
    video = ArrayDataset(spec, dataset.lengths, arrays)
    world = WorldModel(WorldConfig(spec.frame, spec.actions, CONTEXT, spec.fps), Pixels(), None, Planted(blind))
    numbers, pictures = evaluate(world, video, clips=40, horizon=6, speed=False, sessions=0, practice=video)
    assert numbers["action_source"] == "none" and numbers["psnr"] == judged["blind"][0]["psnr"]
    absent = ("delta_psnr", "delta_psnr_4", "swap_accuracy", "lam_nmi", "top1", "action_shuffle_ratio", "idm_accuracy")
    assert all(numbers[name] is None for name in absent) and numbers["drift"] > 0 and numbers["frechet_random"] > 0
    write_report(numbers, pictures, tmp_path)
    assert not (tmp_path / "eval" / "actions.png").exists()


def test_the_same_evaluation_gives_the_same_bits(real, dataset):
    second = in_full(False, dataset, speed=False)
    first = real[False]
    assert first[0] == second[0]
    assert all(np.array_equal(first[1][name], second[1][name]) for name in first[1])


def test_batches_do_not_change_the_dream(dataset):
    """A clip's own dream is the same in a full batch and in one that had to be filled up."""
    frames = np.stack([dataset.read(episode, 0, CONTEXT)["frames"] for episode in range(12)])
    world, actions = dreams.Dreams(tiny_world(False), batch=10), np.ones((12, CONTEXT + 5), np.int32)
    whole, filled = (world.dream(frames[:count], actions[:count]) for count in (12, 3))
    np.testing.assert_array_equal(whole[:3], filled)
    assert whole.shape == (12, 5, *dataset.spec.frame) and whole.dtype == np.uint8


def test_a_world_of_other_data_is_refused(dataset):
    other = ArrayDataset.from_episodes(
        *(lambda c: (c.spec(), c.episodes()))(PlatformerConfig(tiles=7, tile=4, count=1))
    )
    with pytest.raises(ReverieError, match="frames"):
        evaluate(tiny_world(False), other)
    with pytest.raises(ReverieError, match="long enough"):
        evaluate(tiny_world(False), dataset, horizon=100)


def test_numbers_that_are_not_finite_are_null(judged, tmp_path):
    numbers, pictures = judged["blind"]
    path = write_report(numbers | {"psnr_now": [1.0, math.inf], "share": math.nan}, pictures, tmp_path)
    assert json.loads(path.read_text())["psnr_now"] == [1.0, None] and json.loads(path.read_text())["share"] is None
