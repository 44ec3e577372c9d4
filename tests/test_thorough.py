"""The second part of an evaluation can tell: closed forms, independent references, and planted faults it must find."""

import sys

import numpy as np
import pytest
import scipy.stats
from contracts import tiny

from reverie.actions import START, UNLABELLED, ActionSpace
from reverie.data.arrays import ArrayDataset
from reverie.data.episode import Episode, Spec
from reverie.data.sources.platformer import PlatformerConfig
from reverie.errors import ReverieError
from reverie.evaluation import drift, frechet, inverse
from reverie.evaluation.control import interval, jackknife
from reverie.evaluation.pool import pool
from reverie.evaluation.rollouts import Rollouts, cost
from reverie.models.dynamics import families
from reverie.nn.image import shrunk


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    """Real clips of the platformer, uint8 (64, 16, 24, 24, 3), of 64 levels."""
    config = PlatformerConfig(tiles=6, tile=4, count=64, frames=24)
    return np.stack([episode.frames[8:] for episode in config.episodes()])


# -- how sure a number is ----------------------------------------------------------------------------------------------


def test_jackknife_of_a_mean_is_the_t_interval_over_groups():
    values = np.random.default_rng(0).normal(3, 2, 80)
    low, high = jackknife(lambda rows: values[rows].mean(), np.arange(80)) or [0, 0]
    groups = values.reshape(4, 10, 2).mean((0, 2))  # clips (2k, 2k+1) of group k mod 10
    reach = scipy.stats.t.ppf(0.975, 9) * scipy.stats.sem(groups)
    np.testing.assert_allclose([low, high], [values.mean() - reach, values.mean() + reach], rtol=1e-3)
    few, enough = np.arange(7), np.arange(8)
    assert jackknife(lambda rows: 0.0, few) is None and jackknife(lambda rows: 0.0, enough) == [0, 0]


def test_jackknife_leaves_out_whole_episodes():
    """Or clips that are as good as copies would make a distance look certain."""
    episodes = np.repeat(np.arange(4), 20)
    values = np.random.default_rng(0).normal(0, 1, 4)[episodes]
    low, high = jackknife(lambda rows: 10 + values[rows].mean(), episodes) or [0, 0]
    reach = scipy.stats.t.ppf(0.975, 3) * scipy.stats.sem(values[::20])
    np.testing.assert_allclose(high - low, 2 * reach, rtol=1e-3)
    assert jackknife(lambda rows: 0.0, np.zeros(80, int)) is None, "one episode cannot tell"


def test_the_interval_of_a_ratio_of_small_sums_holds_it():
    """Losses are far below 1: an interval that counts weights as pairs would lie elsewhere."""
    true = np.random.default_rng(0).uniform(0.001, 0.003, 60)
    low, high = interval(3 * true, true)
    assert low == pytest.approx(3) == high


def test_pooled_runs():
    rules = {"dataset": "platformer", "fingerprint": "f", "clips": 64, "horizon": 2, "device": "cpu"}
    runs = [rules | {"psnr": [20.0 + i, 30.0], "swap": 0.5 + i / 10, "psnr_ci": [[0, 1], [0, 1]]} for i in range(3)]
    runs = [run | {"lam_nmi": None, "error": 0.1} for run in runs]
    pooled = pool([runs[0] | {"other": 1.0}, *runs[1:]])
    assert pooled["runs"] == 3 and pooled["dataset"] == "platformer" and pooled["clips"] == 64
    assert pooled["psnr"] == [21.0, 30.0] and pooled["lam_nmi"] is None and pooled["other"] is None
    reach = scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem([20, 21, 22])
    np.testing.assert_allclose(pooled["psnr_ci"], [[21 - reach, 21 + reach], [30, 30]], rtol=1e-3)
    assert pooled["swap_ci"][0] < 0.6 < pooled["swap_ci"][1]
    assert pool(runs[:1])["psnr"] == [20.0, 30.0] and pool(runs[:1])["psnr_ci"] is None
    with pytest.raises(ReverieError, match="measured differently .fingerprint"):
        pool([runs[0], runs[1] | {"fingerprint": "g"}])
    with pytest.raises(ReverieError, match="no runs"):
        pool([])


# -- Frechet -----------------------------------------------------------------------------------------------------------


def by_definition(a: np.ndarray, b: np.ndarray) -> float:
    """FID by the letter, with the root of the product of covariances."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    trace_of_root = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).real).sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b) - 2 * trace_of_root)


def test_frechet_is_the_definition():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)), rng.normal(1, 2, (200, 6)) @ rng.normal(size=(6, 6))
    found = frechet.frechet(a, b)
    assert found == pytest.approx(by_definition(a, b), rel=1e-9) == frechet.frechet(b, a)
    alone = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T))
    assert abs(alone - found) > 0.1 * found, "forgetting what they have in common would go unseen"


def test_frechet_of_gaussians_in_closed_form():
    """Sets with exactly known mean and covariance: corners of boxes."""
    corners = np.array([[x, y] for x in (-1.0, 1.0) for y in (-1.0, 1.0)])
    a, b = corners * [1, 2], corners * [3, 1] + np.array([5, 0])
    unit = 4 / 3  # variance of corners at +-1, with one degree of freedom less
    assert frechet.frechet(a, b) == pytest.approx(25 + unit * (2**2 + 1**2))
    assert frechet.frechet(a, a + np.array([3, 4])) == pytest.approx(25)


def test_frechet_of_few_samples_in_many_dimensions():
    rng = np.random.default_rng(1)
    a = rng.normal(size=(8, 500))  # covariances of rank 7
    assert frechet.frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet.frechet(a, a[::-1]) == pytest.approx(0, abs=1e-9)
    assert frechet.frechet(a, a + 0.01) == pytest.approx(500 * 0.01**2, rel=1e-6)
    flat = np.ones((8, 500))
    assert frechet.frechet(flat, flat + 1) == pytest.approx(500)
    for bad in ((a, a[:, :3]), (a[:1], a), (a[0], a)):
        with pytest.raises(ReverieError, match="2 or more"):
            frechet.frechet(*bad)


def spoiled(clips: np.ndarray) -> dict[str, np.ndarray]:
    """What a bad world may show, by what is wrong."""
    rng = np.random.default_rng(0)
    order = np.stack([rng.permutation(clips.shape[1]) for _ in clips])
    grey, white = np.full_like(clips, 120), np.full_like(clips, 255)
    share = np.linspace(0, 1, clips.shape[1])[None, :, None, None, None] ** 0.5

    def towards(other):
        return np.rint(clips * (1 - share) + other * share).astype(np.uint8)

    return {
        "noise": rng.integers(0, 256, clips.shape, np.uint8),
        "noisy": np.clip(clips + rng.normal(0, 25, clips.shape), 0, 255).astype(np.uint8),
        "frozen": np.repeat(clips[:, :1], clips.shape[1], axis=1),
        "shuffled in time": np.take_along_axis(clips, order[:, :, None, None, None], axis=1),
        "fading": towards(grey),
        "burning out": towards(white),
        "losing red": np.rint(clips * (1 - share * np.array([1, 0, 0]))).astype(np.uint8),
        "one collapsed": np.repeat(clips[:1], len(clips), axis=0),
    }


FAULTS = ("noise", "noisy", "frozen", "shuffled in time", "fading", "burning out", "losing red", "one collapsed")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_lies_farther_from_real_clips_than_other_real_clips(fault, clips):
    views = {"truth": clips, "rollout": spoiled(clips)[fault], "copy_last": spoiled(clips)["frozen"], "random": clips}
    found = frechet.distances("frechet_random", frechet.at_random(views), np.arange(64))
    assert found["frechet_random_actions"] == found["frechet_random_floor"]
    times = found["frechet_random"] / found["frechet_random_floor"]
    assert times > (1.4 if fault == "shuffled in time" else 3)
    low, high = found["frechet_random_ci"]
    assert low < found["frechet_random"] < high
    healthy = frechet.distances("frechet_random", frechet.at_random(views | {"rollout": clips}), np.arange(64))
    assert healthy["frechet_random"] == healthy["frechet_random_floor"] < low or times < 2


def test_random_features_are_fixed_and_of_every_size(clips):
    features = frechet.random_features(clips[:3, :4])
    assert features.shape == (3, sum(frechet.LOOK + frechet.MOVE)) and np.isfinite(features).all()
    np.testing.assert_array_equal(features, frechet.random_features(clips[:3, :4]))
    large = np.repeat(np.repeat(clips[:2, :4], 6, axis=2), 7, axis=3)  # 144 x 168: seen at a third of it
    assert frechet.random_features(large).shape == (2, sum(frechet.LOOK + frechet.MOVE))
    grey = frechet.random_features(clips[:2, :4].mean(-1, keepdims=True).astype(np.uint8))
    assert grey.shape == (2, sum(frechet.LOOK + frechet.MOVE))
    assert frechet.at_random({"truth": clips[:, :1]}) == {}, "one frame is no clip"
    few = dict.fromkeys(("truth", "rollout", "copy_last"), clips[:3])
    assert frechet.distances("x", frechet.at_random(few), np.arange(3)) == {}


def test_shrunk_frames_are_means_of_blocks():
    frames = np.random.default_rng(0).integers(0, 256, (2, 70, 131, 3), np.uint8)
    small = shrunk(frames)
    assert small.shape == (2, 23, 43, 3) and small.dtype == np.uint8
    np.testing.assert_allclose(small[1, 2, 5], frames[1, 6:9, 15:18].mean((0, 1)), atol=0.5001)
    assert shrunk(frames[:, :64, :64]) is not None and shrunk(frames[:, :64, :64]).shape == (2, 64, 64, 3)


def test_a_users_function_is_found_and_held_to_its_word(tmp_path, clips):
    (tmp_path / "my_features_a.py").write_text(
        "import numpy as np\n"
        "def means(clips): return clips.mean((2, 3)).reshape(len(clips), -1)\n"
        "def one(clips): return np.float32(1)\n"
        "def holes(clips): return np.full((len(clips), 2), np.nan)\n"
    )
    before = list(sys.path)
    means = frechet.user_features("my_features_a:means")
    assert sys.path == before
    views = {"truth": clips, "rollout": 255 - clips, "copy_last": clips}
    found = frechet.distances("frechet_user", frechet.by_function(means, views), np.arange(64))
    assert found["frechet_user"] > 5 * found["frechet_user_floor"] == 5 * found["frechet_user_copy_last"]
    for name in ("one", "holes"):
        with pytest.raises(ReverieError, match="finite numbers .64, F., not so|fail on clips"):
            frechet.by_function(frechet.user_features(f"my_features_a:{name}"), views)


# -- drift -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["noise", "noisy", "fading", "burning out", "losing red"])
def test_a_world_that_leaves_the_data_is_found_out(fault, clips):
    found = drift.measured(spoiled(clips)[fault], clips, clips[:, 0], np.arange(64))
    healthy = drift.measured(clips, clips, clips[:, 0], np.arange(64))
    assert found["drift"] > 3 * found["drift_floor"] and found["drift"] > 1
    assert found["drift_ci"][0] > healthy["drift"] == healthy["drift_floor"]
    assert found["drift"] == max(found[f"drift_{part}"] for part in ("brightness", "contrast", "sharpness"))
    assert found["drift_frames"] == 16 and found["drift_copy_last"] == healthy["drift_copy_last"] < 1


def test_half_of_the_rollouts_up_and_half_down_is_drift(clips):
    """Means over all clips do not see it."""
    up = np.where(np.arange(64)[:, None, None, None, None] // 2 % 2 == 0, 0, 255).astype(np.uint8) + 0 * clips
    found = drift.measured(up, clips, clips[:, 0], np.arange(64))
    assert found["drift_brightness"] > 1.5


def test_drift_is_in_standard_deviations():
    real = {"x": np.random.default_rng(0).normal(5, 2, (400, 3, 2))}
    late = {"x": np.random.default_rng(1).normal(5, 2, (400, 3, 2)) + 4}
    assert drift.drift(late, real, np.arange(400))["drift"] == pytest.approx(2, abs=0.15)
    still = {"x": np.full((8, 3, 2), 0.5)}
    assert drift.drift({"x": still["x"] + 1 / 255}, still, np.arange(8))["drift"] == pytest.approx(1)


# -- actions read back -------------------------------------------------------------------------------------------------


def squares(count: int, frames: int = 18, obey: bool = True, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A square on a torus of 12 pixels that follows its actions (or does not), and these actions."""
    rng = np.random.default_rng(seed)
    actions = rng.integers(0, 4, (count, frames), np.int32)
    moves = np.array([[0, 2], [0, -2], [2, 0], [-2, 0]])
    steps = moves[actions if obey else rng.integers(0, 4, actions.shape)]
    places = (rng.integers(0, 12, (count, 1, 2)) + np.cumsum(steps, axis=1)) % 12
    pictures = np.zeros((count, frames, 12, 12, 3), np.uint8)
    for index in np.ndindex(count, frames):
        x, y = (np.arange(4)[:, None] + places[index]).T % 12
        pictures[index][np.ix_(x, y)] = 255
    actions[:, 0] = START
    return pictures, actions


def reader_of(space: ActionSpace, pictures, actions) -> inverse.Reader:
    none = np.zeros(18, np.float32)
    spec = Spec((12, 12, 3), space, 10.0, "squares")
    episodes = [Episode(p, a, none, none > 0) for p, a in zip(pictures, actions, strict=True)]
    made = inverse.learned(ArrayDataset.from_episodes(spec, episodes))
    assert made is not None
    return made


@pytest.fixture(scope="module")
def reader() -> inverse.Reader:
    pictures, actions = squares(60)
    actions[::3, 5] = UNLABELLED
    return reader_of(ActionSpace("discrete", 4), pictures, actions)


@pytest.mark.parametrize(
    "space",
    [
        ActionSpace("multi", 3, sizes=(2, 1, 2)),
        ActionSpace("binary", 2),
        ActionSpace("continuous", 2, low=(0.0, -1.0), high=(3.0, 1.0)),
    ],
    ids=lambda space: space.kind,
)
def test_each_component_of_an_action_is_read(space):
    def seen(count, seed=0):  # each of the four ways is a number of two binary components
        pictures, ways = squares(count, seed=seed)
        levels = np.stack([ways // 2, *[ways * 0] * (space.size - 2), ways % 2], -1) * (
            1 + (space.kind == "continuous")
        )
        actions = space.nth(np.ravel_multi_index(tuple(np.moveaxis(np.maximum(levels, 0), -1, 0)), space.levels))
        actions[:, 0] = space.start()
        return pictures, actions

    reader, (pictures, actions) = reader_of(space, *seen(60)), seen(20, seed=1)
    actions[0, 3:] = space.unlabelled()
    found = inverse.read(reader, pictures, actions)
    assert found["asked"].tolist() == [2 * space.size, *[17 * space.size] * 19]
    assert found["right"].sum() / found["asked"].sum() > 0.9
    still = inverse.read(reader, np.repeat(pictures[:, :1], 18, axis=1), actions)
    chance = inverse.chance(space, actions)
    assert chance is not None and still["right"].sum() / still["asked"].sum() < chance + 0.1 < 0.8


def test_actions_are_read_off_worlds_that_obey_and_no_others(reader):
    def accuracy(pictures, actions):
        found = inverse.read(reader, pictures, actions)
        return found["right"].sum() / found["asked"].sum()

    obedient = squares(20, seed=1)
    assert accuracy(*obedient) > 0.9
    assert 0.1 < accuracy(*squares(20, obey=False, seed=1)) < 0.4
    assert 0.1 < accuracy(obedient[0], np.roll(obedient[1], 1, axis=0)) < 0.4, "the players of other clips"
    frozen = np.repeat(obedient[0][:, :1], 18, axis=1)
    assert 0.1 < accuracy(frozen, obedient[1]) < 0.4
    assert accuracy(obedient[0][:, ::-1], obedient[1][:, ::-1]) < 0.4, "backwards"


def test_unknown_actions_are_not_asked(reader):
    pictures, actions = squares(4, seed=2)
    actions[0, 3:], actions[1] = UNLABELLED, UNLABELLED
    assert inverse.read(reader, pictures, actions)["asked"].tolist() == [2, 0, 17, 17]


def test_nothing_is_learned_where_no_actions_are_recorded():
    pictures, actions = squares(4)
    actions[:, 1:] = UNLABELLED
    none = np.zeros(18, np.float32)
    for space in (ActionSpace(), ActionSpace("discrete", 4)):
        episodes = [Episode(p, a, none, none > 0) for p, a in zip(pictures, actions, strict=True)]
        data = ArrayDataset.from_episodes(Spec((12, 12, 3), space, 10.0, "squares"), episodes)
        assert inverse.learned(data) is None


# -- every family of dynamics ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(families()))
def test_losses_along_true_and_other_actions_differ_by_the_actions_alone(family):
    world = tiny.world(families()[family])
    latents, actions = (np.asarray(x) for x in tiny.clip(batch=3, of=world.dynamics.config))
    rollouts = Rollouts(world, batch=2)
    same = rollouts.losses(latents, actions, actions)
    assert same.shape == (3, 2) and np.array_equal(same[:, 0], same[:, 1]) and (same > 0).all()
    other = rollouts.losses(latents, actions, np.where(actions >= 0, (actions + 1) % 3, actions))
    np.testing.assert_array_equal(other[:, 0], same[:, 0])
    assert (other[:, 1] != same[:, 1]).all()


@pytest.mark.parametrize("family", sorted(families()))
def test_cost_of_a_played_frame(family):
    """Every matrix is used for every token, some of them in several passes."""
    world = tiny.world(families()[family])
    found = cost(world)
    weights = sum(np.size(leaf) for leaf in tiny.state(world.dynamics).values())
    assert found["parameters"] == weights
    kernels = sum(leaf.size for name, leaf in tiny.state(world.dynamics).items() if name.endswith("kernel"))
    assert found["flop_per_frame"] > 2 * kernels
