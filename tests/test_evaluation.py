"""Evaluation can tell: planted worlds that obey their player, ignore him, mix his actions up or fade."""

import dataclasses
import json
import math
from functools import cache

import numpy as np
import pytest
from flax import nnx
from planted import PLATFORMER, Fading, Pixels, Planted, blind, mixed_up, obedient, recorded

from reverie.actions import ActionSpace
from reverie.data.arrays import ArrayDataset
from reverie.data.sources.platformer import PlatformerConfig
from reverie.errors import ReverieError
from reverie.evaluation import inverse, rollouts
from reverie.evaluation.inverse import learned
from reverie.evaluation.meaning import HEADLINES, MEANING
from reverie.evaluation.measure import evaluate, trust
from reverie.evaluation.report import say, write_report
from reverie.evaluation.rollouts import Clips
from reverie.evaluation.verdict import verdict
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.models.lams.pixels import PixelLAMConfig
from reverie.models.tokenizers.vqvae import VQVAEConfig
from reverie.nn.image import LEAST_ERROR
from reverie.nn.quantise import FSQConfig, VQConfig
from reverie.nn.transformer import TransformerConfig
from reverie.world import WorldConfig, WorldModel

CONTEXT = 4


@pytest.fixture(scope="module")
def dataset():
    return recorded()


@pytest.fixture(autouse=True, scope="module")
def one_reader():
    """The reader of actions is trained once for all evaluations on a dataset."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inverse, "learned", cache(learned))
        yield


@pytest.fixture(scope="module")
def judged(dataset):
    """Numbers and pictures of the planted worlds."""
    spec = dataset.spec
    config = WorldConfig(frame=spec.frame, actions=spec.actions, context=CONTEXT, fps=spec.fps)
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


def test_actions_are_read_only_from_rollouts_of_an_obedient_world(judged):
    """From worlds as real as the real one; the ceiling is that of the real frames, to the digit."""
    for numbers, _ in judged.values():
        assert numbers["idm_accuracy_real"] == numbers["idm_accuracy_floor"] > 0.7
        assert numbers["idm_chance"] < 0.4
    read = {name: numbers["idm_accuracy"] for name, (numbers, _) in judged.items()}
    assert read["obedient"] == judged["obedient"][0]["idm_accuracy_real"]
    assert judged["blind"][0]["idm_accuracy_ci"][1] < 0.5 and judged["mixed_up"][0]["idm_accuracy_ci"][1] < 0.5


def test_rollouts_of_the_simulator_do_not_drift(judged):
    for name in ("obedient", "mixed_up"):
        numbers, _ = judged[name]
        assert numbers["drift_frames"] == 12 and numbers["drift_ci"][0] < 2 * numbers["drift_floor"]
        assert numbers["drift"] < 1 and numbers["frechet_random"] < 2 * numbers["frechet_random_floor"]
    assert judged["obedient"][0]["frechet_random"] == judged["obedient"][0]["frechet_random_floor"]
    assert judged["obedient"][0]["frechet_random_actions"] < 2 * judged["obedient"][0]["frechet_random_floor"]
    assert judged["obedient"][0]["frechet_random_copy_last"] > 2 * judged["obedient"][0]["frechet_random_floor"]


def test_a_world_that_fades_is_found_out(dataset, judged):
    spec = dataset.spec
    world = WorldModel(
        WorldConfig(frame=spec.frame, actions=spec.actions, context=CONTEXT, fps=spec.fps),
        Fading(),
        None,
        Planted(obedient),
    )
    numbers, _ = evaluate(world, dataset, clips=40, horizon=6, speed=False, sessions=0, trained=3)
    healthy = judged["obedient"][0]
    assert numbers["drift_ci"][0] > 3 * max(healthy["drift"], healthy["drift_floor"])
    assert numbers["drift"] > 3 * numbers["drift_copy_last"]
    for name in ("frechet_random", "frechet_random_actions"):
        assert numbers[name] > 3 * numbers["frechet_random_floor"]
    assert numbers["idm_accuracy"] is None, "it had no episodes to train a reader on"


def test_the_second_part_can_be_left_out(dataset):
    spec = dataset.spec
    world = WorldModel(
        WorldConfig(frame=spec.frame, actions=spec.actions, context=CONTEXT, fps=spec.fps),
        Pixels(),
        None,
        Planted(blind),
    )
    numbers, _ = evaluate(world, dataset, clips=4, horizon=2, speed=False, deep=False, sessions=0)
    assert all(numbers[name] is None for name in ("drift", "frechet_random", "action_shuffle_ratio", "parameters"))


def tiny_world(latent: bool) -> WorldModel:
    """A real world of real parts, untrained, for the platformer's frames."""
    spec, rngs = PLATFORMER.spec(), nnx.Rngs(0)
    net = TransformerConfig(width=32, depth=1, heads=2, window=CONTEXT + 1)
    see = VQVAEConfig(frame=spec.frame, patch=4, encoder=net, decoder=net, quantiser=FSQConfig(levels=(4, 4, 4)))
    tokenizer = see.make(rngs)
    quantiser = VQConfig(codes=3, width=8)
    acts = PixelLAMConfig(frame=spec.frame, patch=8, encoder=net, decoder=net, quantiser=quantiser)
    lam = acts.make(rngs) if latent else None
    space = ActionSpace("latent", 3) if latent else spec.actions
    dynamics = MaskGITConfig(codes=tokenizer.codes, grid=tokenizer.grid, actions=space, transformer=net, passes=3)
    return WorldModel(
        WorldConfig(frame=spec.frame, actions=space, context=CONTEXT, fps=spec.fps), tokenizer, lam, dynamics.make(rngs)
    )


SPEEDS = {"frames_per_second", "frames_per_second_uncached", "latency_p95_ms"}


def pooled(clips: np.ndarray) -> np.ndarray:
    """Mean colours of a clip's frames, (B, T * C): features such as a user may bring."""
    return clips.mean((2, 3)).reshape(len(clips), -1)


@pytest.fixture(scope="module")
def real(dataset):
    """Numbers and pictures of untrained worlds, by whether their actions are latent; of that one everything."""
    return {latent: measured(latent, dataset, speed=latent, deep=latent) for latent in (False, True)}


def measured(latent: bool, dataset, **how: bool):
    """What an evaluation finds, of a long play in the first frames."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reverie.evaluation.long_play.STEPS", (16, 64))
        return evaluate(
            tiny_world(latent), dataset, clips=10, horizon=5, sessions=2, practice=dataset, features=pooled, **how
        )


@pytest.mark.parametrize("latent", [False, True])
def test_a_real_world_gets_a_whole_report(latent, real, tmp_path, capsys):
    numbers, pictures = real[latent]
    assert set(MEANING) <= set(numbers)
    assert len(numbers["uncertainty_rank"]) == len(numbers["psnr"]) and min(numbers["uncertainty"]) > 0
    path = write_report(numbers, pictures, tmp_path / "world")
    written = json.loads(path.read_text())
    assert written.pop("checksum")
    assert written == json.loads(json.dumps(numbers)), "nothing of it was infinite"
    assert written["action_source"] == ("latent" if latent else "true")
    absent = {name for name in MEANING if written[name] is None}
    assert not absent if latent else absent >= SPEEDS | {name for name in MEANING if name.startswith("lam_")}
    assert not absent & {"delta_psnr_4", "swap_accuracy", "top1", "code_usage"}
    assert len(written["lam_actions"]) == 3 if latent else "lam_actions" not in written
    assert all(written[name] > 0 for name in SPEEDS - absent)
    for view in ("", "floor_", "copy_last_", "random_"):
        assert len(written[f"{view}psnr"]) == len(written[f"{view}ssim_ci"]) == 5
    for name in ("swap_accuracy", "delta_psnr_4"):
        low, high = written[f"{name}_ci"]
        assert low <= written[name] <= high
    made = {file.name for file in (tmp_path / "world" / "eval").iterdir()}
    assert made == {"index.html", "sheet.png", "actions.png", "long_play.png", "dream.gif", "curves.png"}
    say(numbers)
    shown = capsys.readouterr().out
    rows = {line.split()[0] for line in shown.splitlines() if line and line[0] != " "}
    assert set(HEADLINES) & rows == {name for name in HEADLINES if numbers[name] is not None} and "top16" not in shown
    assert all(f"- {sentence}\n" in shown for sentence in verdict(numbers))
    assert list(written["long_play"]["held"]["frozen"]) == ["16", "64"] and 1 < numbers["episodes"] <= 10


def test_video_without_actions_gets_what_it_can(dataset, judged, tmp_path):
    """Without actions and simulator those numbers are null, and the others are there."""
    spec = dataclasses.replace(dataset.spec, actions=ActionSpace(), simulator=None)
    arrays = dataset.arrays | {"actions": np.minimum(dataset.arrays["actions"], -1)}
    video = ArrayDataset(spec, dataset.lengths, arrays)
    world = WorldModel(
        WorldConfig(frame=spec.frame, actions=spec.actions, context=CONTEXT, fps=spec.fps),
        Pixels(),
        None,
        Planted(blind),
    )
    numbers, pictures = evaluate(world, video, clips=40, horizon=6, speed=False, sessions=0, practice=video)
    assert numbers["action_source"] == "none" and numbers["psnr"] == judged["blind"][0]["psnr"]
    absent = ("delta_psnr", "delta_psnr_4", "swap_accuracy", "lam_nmi", "top1", "action_shuffle_ratio", "idm_accuracy")
    assert (
        all(numbers[name] is None for name in (*absent, "uncertainty"))
        and numbers["drift"] > 0
        and numbers["frechet_random"] > 0
    )
    write_report(numbers, pictures, tmp_path)
    assert not (tmp_path / "eval" / "actions.png").exists()


def test_the_same_evaluation_gives_the_same_bits(real, dataset, monkeypatch):
    monkeypatch.setattr(inverse, "learned", learned)
    first, second = real[True], measured(True, dataset, speed=False)
    assert {**first[0], **dict.fromkeys(SPEEDS)} == second[0]
    assert all(np.array_equal(first[1][name], second[1][name]) for name in first[1])


def test_batches_do_not_change_a_rollout(dataset):
    """A clip's rollout is the same in a full batch and in a padded one."""
    frames = np.stack([dataset.read(episode, 0, CONTEXT)["frames"] for episode in range(12)])
    world, actions = rollouts.Rollouts(tiny_world(False), batch=10), np.ones((12, CONTEXT + 5), np.int32)
    whole, filled = (world.rollout(frames[:count], actions[:count]) for count in (12, 3))
    np.testing.assert_array_equal(whole[:3], filled)
    assert whole.shape == (12, 5, *dataset.spec.frame) and whole.dtype == np.uint8


def test_a_world_of_other_data_is_refused(dataset):
    larger = PlatformerConfig(tiles=7, tile=4, count=1)
    other = ArrayDataset.from_episodes(larger.spec(), larger.episodes())
    with pytest.raises(ReverieError, match="frames"):
        evaluate(tiny_world(False), other)
    with pytest.raises(ReverieError, match="long enough"):
        evaluate(tiny_world(False), dataset, horizon=100)


def test_uncertainty_is_ranked_against_the_error_so_far():
    truth = np.zeros((6, 3, 2, 2, 3), np.uint8)
    generated = np.broadcast_to(np.arange(6, dtype=np.uint8)[:, None, None, None, None] * 9, truth.shape)
    given = Clips(truth, np.zeros((6, 3)), np.zeros((6, 3)), 0, np.arange(6))
    rising = np.arange(6.0)[:, None] + np.zeros(3)
    late = np.concatenate([rising[:, :1], -9 * rising[:, 1:]], axis=1)  # of the second and third frame: turned around
    for unsure, ranks in ((rising, [1, 1, 1]), (late, [1, -1, -1]), (np.ones((6, 3)), [0, 0, 0])):
        found = trust(given, generated, unsure)
        assert found["uncertainty_rank"] == pytest.approx(ranks) and len(found["uncertainty"]) == 3
    low, high = found["uncertainty_rank_ci"][0]
    assert -1 < low < 0 < high < 1, "six clips say little"


def test_numbers_that_are_not_finite_are_null(judged, tmp_path):
    numbers, pictures = judged["blind"]
    path = write_report(numbers | {"psnr_now": [1.0, math.inf], "share": math.nan}, pictures, tmp_path)
    assert json.loads(path.read_text())["psnr_now"] == [1.0, None] and json.loads(path.read_text())["share"] is None
