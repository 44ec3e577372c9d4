"""Every kind of action: as arrays and codes, counted through, embedded, stored, obeyed, played and measured."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.tiny import FRAME, dynamics, eyes, frames, tokenizer, watch
from flax import nnx

from reverie import config
from reverie.actions import START, UNLABELLED, ActionSpace
from reverie.data.arrays import ArrayDataset
from reverie.data.episode import Episode, Spec
from reverie.data.loader import batches
from reverie.data.sources.square import SPACES, SquareConfig
from reverie.data.store import open_dataset, write_store
from reverie.errors import ReverieError
from reverie.evaluation.measure import evaluate
from reverie.models.dynamics import maskgit
from reverie.nn.batch import row_keys
from reverie.nn.embed import ActionEmbedding, from_start, random_actions, table_for
from reverie.play.buttons import rest
from reverie.world import Session, WorldConfig, WorldModel

MINECRAFT = ActionSpace("multi", 24, sizes=(2,) * 23 + (121,))  # 23 keys and the mouse, on a grid of 11 x 11
KINDS = SPACES | {"latent": ActionSpace("latent", 6), "none": ActionSpace(), "minecraft": MINECRAFT}
VECTORS = ["binary", "multi", "continuous"]
KEY = jax.random.key(0)


@pytest.fixture(params=KINDS)
def space(request):
    return KINDS[request.param]


def some(space: ActionSpace, *shape: int, key=KEY) -> np.ndarray:
    return np.asarray(random_actions(space, key, shape))


# -- arrays and codes ------------------------------------------------------------------------------------------------


def test_codes_are_no_actions_and_actions_no_codes(space):
    for which, other, code in [
        (space.is_start, space.is_unlabelled, space.start((2, 3))),
        (space.is_unlabelled, space.is_start, space.unlabelled((2, 3))),
    ]:
        assert code.shape == (2, 3, *space.shape) and code.dtype == space.dtype
        assert which(code).all() and not other(code).any() and not space.is_action(code).any()
        assert np.array_equal(jax.jit(which)(code), which(code))
    if space.size:
        drawn = some(space, 4, 50)
        assert drawn.shape == (4, 50, *space.shape) and drawn.dtype == space.dtype
        assert space.is_action(drawn).all() and not (space.is_start(drawn) | space.is_unlabelled(drawn)).any()
        assert len(np.unique(drawn.reshape(200, -1), axis=0)) > min(3, space.count - 1), "all drawn alike"


def test_an_action_has_a_number_and_a_name(space):
    index = np.unique(np.random.default_rng(0).integers(0, space.count, 100))
    actions = space.nth(index)
    assert actions.shape == (len(index), *space.shape) and actions.dtype == space.dtype
    assert [space.number(action) for action in actions] == index.tolist()
    if space.size:
        assert space.is_action(actions).all()
        assert len(np.unique(actions.reshape(len(index), -1), axis=0)) == len(index)
        assert len({space.label(int(i)) for i in index}) == len(index)
        for a, level in space.named_levels:
            levels = list(rest(space))
            levels[a] = level
            assert space.is_action(space.nth(np.ravel_multi_index(levels, space.levels)))
        with pytest.raises(ValueError):
            space.nth(space.count)


def test_the_squares_keys_push_it_as_they_say():
    """What the page shows: a button's name is what happens when it alone is pressed."""
    ways = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0), "stay": (0, 0)}
    kind: Any
    for kind in SPACES:
        simulator = SquareConfig(actions=kind).make()
        space = simulator.actions
        for (a, level), name in zip(space.named_levels, space.names, strict=True):
            levels = list(rest(space))
            levels[a] = level
            index = int(np.ravel_multi_index(levels, space.levels))
            assert np.array_equal(np.sign(simulator.push(space.nth(index))), ways[name])
            assert name in space.label(index)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "multi", "size": 2, "sizes": (3,)},
        {"kind": "multi", "size": 1, "sizes": (0,)},
        {"kind": "binary", "size": 2, "sizes": (2, 2)},
        {"kind": "continuous", "size": 2, "low": (0.0,), "high": (1.0, 1.0)},
        {"kind": "continuous", "size": 1, "low": (1.0,), "high": (1.0,)},
        {"kind": "continuous", "size": 1, "low": (-1e6,), "high": (1.0,)},
        {"kind": "discrete", "size": 2, "low": (0.0, 0.0), "high": (1.0, 1.0)},
        {"kind": "binary", "size": 2, "names": ("a",)},
        {"kind": "none", "size": 1},
    ],
)
def test_a_space_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError):
        ActionSpace(**wrong)


def test_a_space_survives_json_and_one_of_an_older_version_is_read(space):
    data = json.loads(json.dumps(config.to_json(space)))
    assert config.from_json(data) == space
    if space.kind in ("discrete", "latent", "none"):
        assert config.from_json({k: v for k, v in data.items() if k not in ("sizes", "low", "high")}) == space


def test_spaces_are_alike_until_a_name_differs(space):
    other = SPACES["discrete" if space.kind != "discrete" else "binary"]
    nameless, keyless = (dataclasses.replace(space, **{"keys": (), **more}) for more in ({"names": ()}, {}))
    assert all(space.is_like(each) for each in (space, nameless, keyless)) and not space.is_like(other)
    if space.names:
        assert not space.is_like(dataclasses.replace(space, names=("other", *space.names[1:])))


# -- embedding -------------------------------------------------------------------------------------------------------


def test_every_component_is_embedded_and_codes_differ(space):
    embed = ActionEmbedding(space, 8, rngs=nnx.Rngs(0))
    actions = jnp.asarray(some(space, 2, 5))
    sums = jax.jit(embed)(actions)
    assert sums.shape == (2, 5, 8) and sums.dtype == jnp.float32
    start, unlabelled = (embed(jnp.asarray(code((1, 1))))[0, 0] for code in (space.start, space.unlabelled))
    assert np.abs(start - unlabelled).max() > 1e-3
    assert space.kind == "none" or all(
        np.abs(sums - code[None, None]).max(-1).min() > 1e-3 for code in (start, unlabelled)
    )
    for a in range(space.size if space.shape else 0):
        other = actions.at[..., a].set((actions[..., a] + 1) % 2 if space.dtype is np.int32 else -actions[..., a])
        assert (np.abs(embed(other) - sums).max(-1) > 1e-3).all(), f"component {a} is not seen"


@pytest.mark.parametrize("kind", VECTORS)
def test_a_vector_is_the_sum_of_its_components_and_a_base(kind):
    """Dreamer 4: an unlabelled action is the base alone; a number adds in proportion, from -1 at its lowest to 1."""
    space = SPACES[kind]
    if kind == "continuous":
        space = dataclasses.replace(space, low=(-3.0, 0.0), high=(1.0, 8.0), names=(), keys=())
    embed = ActionEmbedding(space, 8, rngs=nnx.Rngs(0))
    table = np.asarray(embed.table[...])
    action = some(space, 1, 1)
    expected = table[0].copy()
    at = 2
    for a, part in enumerate(action[0, 0]):
        if kind == "continuous":
            expected += table[at] * (2 * (part - space.low[a]) / (space.high[a] - space.low[a]) - 1)
        else:
            expected += table[at + int(part)]
        at += 1 if kind == "continuous" else space.levels[a]
    assert at == len(table)
    np.testing.assert_allclose(embed(jnp.asarray(action))[0, 0], expected, atol=1e-5)
    np.testing.assert_array_equal(embed(jnp.asarray(space.unlabelled((1, 1))))[0, 0], table[0])
    np.testing.assert_array_equal(embed(jnp.asarray(space.start((1, 1))))[0, 0], table[1])


def test_gradients_stay_finite_beside_codes_and_pass_through_numbers():
    space = SPACES["continuous"]
    embed = ActionEmbedding(space, 8, rngs=nnx.Rngs(0))
    actions = jnp.concatenate([jnp.asarray(part((1, 1))) for part in (space.start, space.unlabelled)], axis=1)
    actions = jnp.concatenate([actions, jnp.asarray([[[0.5, -0.2]]], jnp.float32)], axis=1)
    grad = np.asarray(jax.grad(lambda a: jnp.sum(embed(a)))(actions))
    assert np.isfinite(grad).all() and (grad[0, :2] == 0).all() and (grad[0, 2] != 0).all()


@pytest.mark.parametrize("kind", ["discrete", *VECTORS])
def test_a_table_for_other_actions_has_the_mean_and_spread_of_the_old(space, kind):
    if space.kind == "none":
        return
    old, width = SPACES[kind], 4096

    def embedded(space, table):
        embed = ActionEmbedding(space, width, rngs=nnx.Rngs(0))
        embed.table[...] = table
        return np.asarray(embed(jnp.asarray(some(space, 16, 16)))).reshape(-1, width)

    rows = ActionEmbedding(old, width, rngs=nnx.Rngs(0)).table[...] + 0.3
    was, now = embedded(old, rows), embedded(space, made := table_for(space, rows, old, jax.random.key(1)))
    assert np.array_equal(made[1], rows[1])
    assert np.abs(now.mean(0) - was.mean(0)).mean() < 0.5 * was.std(0).mean() + 0.1
    assert 0.5 < now.std(0).mean() / was.std(0).mean() < 1.6


def test_of_discrete_actions_rows_are_what_they_were():
    """Names, shapes and values: the weights of worlds trained before other kinds came must mean the same."""
    space = ActionSpace("discrete", 3)
    embed = ActionEmbedding(space, 8, rngs=nnx.Rngs(7))
    assert [path for path, _ in nnx.to_flat_state(nnx.state(embed))] == [("table",)]
    np.testing.assert_array_equal(embed.table[...], jax.random.normal(nnx.Rngs(7).params(), (5, 8)) * 0.5)
    actions = jnp.asarray([[START, 2, 0, UNLABELLED]], jnp.int32)
    np.testing.assert_array_equal(embed(actions)[0], embed.table[...][jnp.asarray([1, 4, 2, 0])])
    weights = jax.nn.one_hot(actions[:, :3], 3)
    np.testing.assert_allclose(embed(weights), embed(actions[:, :3]), atol=1e-6)
    assert from_start(weights, space) is weights


# -- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", VECTORS)
def test_a_square_of_every_kind_can_be_replayed_stored_and_read(kind, tmp_path):
    source = SquareConfig(count=5, frames=12, actions=kind)
    space, episodes = source.spec().actions, list(source.episodes())
    simulator = source.make()
    episode: Any
    for episode in episodes:
        assert episode.actions.shape == (12, *space.shape)
        for t in range(1, 12):
            state, reward, _ = simulator.step(episode.states[t - 1], episode.actions[t])
            assert np.array_equal(state, episode.states[t]) and np.float32(reward) == episode.rewards[t]
            assert np.array_equal(simulator.render(state), episode.frames[t])
    write_store(tmp_path / "store", source.spec(), episodes)
    write_store(tmp_path / "one.npz", source.spec(), episodes)
    for path in (tmp_path / "store", tmp_path / "one.npz"):
        dataset = open_dataset(path)
        assert dataset.spec == source.spec()
        np.testing.assert_array_equal(dataset.read(0, 0, 12)["actions"], episodes[0].actions)
        batch = next(batches(dataset, batch=4, length=6, seed=0))
        assert batch["actions"].shape == (4, 6, *space.shape) and batch["actions"].dtype == space.dtype


@pytest.mark.parametrize("kind", VECTORS)
def test_behaviour_on_the_square_holds_each_way_as_long_as_ever(kind):
    source = SquareConfig(count=30, frames=100, actions=kind)
    simulator, runs, moved = source.make(), [], 0
    for episode in source.episodes():
        ways = [simulator.push(action) for action in episode.actions[1:]]
        starts = [0, *(t for t in range(1, len(ways)) if ways[t] != ways[t - 1]), len(ways)]
        runs += list(np.diff(starts))[:-1]
        moved += sum(way != (0, 0) for way in ways)
    assert set(runs) == set(range(4, 10)) and moved > 0.7 * 30 * 99
    with pytest.raises(IndexError):
        simulator.step(simulator.reset(0), np.full(simulator.actions.shape, 5))


@pytest.mark.parametrize("kind", VECTORS)
def test_wrong_actions_are_refused_in_one_line(kind):
    spec = SquareConfig(actions=kind).spec()
    space, length = spec.actions, 4

    def episode(actions):
        none = np.zeros(length, np.float32)
        return Episode(np.zeros((length, *spec.frame), np.uint8), actions, none, none > 0)

    good = np.concatenate([space.start((1,)), some(space, 2), space.unlabelled((1,))])
    episode(good).validate(spec)
    half = good.copy()
    half[3, 0] = good[1, 0]
    beyond = good.copy()
    beyond[1, 1] = 3
    for actions, says in [
        (good[:, :1], "it needs"),
        (good[:, 0], "it needs"),
        (good.astype(np.float64), "actions float64"),
        (np.concatenate([good[1:], good[:1]]), "begin with action START"),
        (half, "has action"),
        (beyond, "has action"),
    ]:
        with pytest.raises(ReverieError, match=says) as error:
            episode(actions).validate(spec)
        assert "\n" not in str(error.value)


def test_a_store_whose_actions_are_not_those_of_its_spec_is_damaged(tmp_path):
    source = SquareConfig(count=2, frames=4, actions="multi")
    write_store(tmp_path / "store", source.spec(), source.episodes())
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    manifest["spec"]["actions"] = config.to_json(SPACES["continuous"])
    del manifest["checksum"]
    (tmp_path / "store" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ReverieError, match="not those its spec says"):
        open_dataset(tmp_path / "store")


def test_an_npz_from_before_a_field_was_added_is_whole(tmp_path):
    source = SquareConfig(count=2, frames=4)
    ArrayDataset.from_episodes(source.spec(), source.episodes()).save(tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz", allow_pickle=False) as file:
        arrays = dict(file)
    head = json.loads(str(arrays.pop("reverie")))
    for field in ("sizes", "low", "high"):
        del head["spec"]["actions"][field]
    from reverie.data.arrays import _fingerprint

    lengths = arrays.pop("lengths")
    old = ArrayDataset(source.spec(), lengths, arrays)
    head["fingerprint"] = _fingerprint(head["spec"], old)
    np.savez(tmp_path / "old.npz", reverie=np.array(json.dumps(head)), lengths=lengths, **arrays)
    assert ArrayDataset.load(tmp_path / "old.npz").fingerprint == head["fingerprint"] != old.fingerprint
    head["spec"]["fps"] = 11.0
    np.savez(tmp_path / "bad.npz", reverie=np.array(json.dumps(head)), lengths=lengths, **arrays)
    with pytest.raises(ReverieError, match="damaged"):
        ArrayDataset.load(tmp_path / "bad.npz")


# -- models, play, evaluation ----------------------------------------------------------------------------------------


def model_for(space: ActionSpace) -> WorldModel:
    of = maskgit.MaskGITConfig
    return WorldModel(WorldConfig(frame=FRAME, actions=space, context=4), tokenizer(), None, dynamics(of, space))


@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_a_model_sees_every_component_of_now_and_then_but_not_what_was_before_its_time(kind):
    space, length = SPACES[kind], 4
    model = dynamics(maskgit.MaskGITConfig, space)
    latents = jax.jit(eyes(maskgit.MaskGITConfig).encode)(frames(1, length))
    actions = np.concatenate([space.start((1, 1)), some(space, 1, length - 1)], axis=1)
    rows = np.repeat(actions, 1 + 2 * space.size, axis=0)
    for row in range(2 * space.size):
        t, a = length - 1 - row // space.size, row % space.size
        rows[1 + row, t, a] = (rows[0, t, a] + 1) % space.levels[a] if kind != "continuous" else -rows[0, t, a]
    h = jax.jit(lambda x, a: watch(model, x, a)[1][-1])(jnp.repeat(latents, len(rows), axis=0), jnp.asarray(rows))
    assert (np.abs(np.asarray(h[1:] - h[:1])).max(axis=-1) > 1e-7).all()
    loss = jax.jit(lambda a: model.loss(latents, a, row_keys(KEY, len(latents))).value)
    before = actions.copy()
    before[:, 0] = actions[:, 1]
    assert loss(jnp.asarray(actions)) == loss(jnp.asarray(before))
    later = actions.copy()
    later[:, 1] = space.unlabelled((1,))
    assert loss(jnp.asarray(actions)) != loss(jnp.asarray(later))


@pytest.mark.parametrize("kind", ["multi", "continuous"])
def test_a_world_is_played_with_vectors(kind):
    space = SPACES[kind]
    session = Session(model_for(space), temperature=0.0)
    start = frames(1, 3)[0]
    seen = {}
    for actions in (None, np.concatenate([space.start((1,)), some(space, 2)])):
        session.reset(start, actions)
        seen[actions is None] = [session.step(action).tobytes() for action in some(space, 3)]
    assert seen[True] != seen[False], "what led to the start is not seen"
    session.reset(start)
    one = session.step(space.nth(0).tolist())
    session.reset(start)
    assert not np.array_equal(one, session.step(space.nth(space.count - 1)))
    assert session.compilations == 2
    for wrong in (0, [0], [[0, 0]], "up", np.full(space.shape, 9), np.full(space.shape, np.nan), space.start(), None):
        with pytest.raises(ReverieError, match="there is no action") as error:
            session.step(wrong)
        assert "\n" not in str(error.value)
    for wrong in (np.zeros(3, np.int32), np.zeros((3, 9)), np.full((3, *space.shape), 9)):
        with pytest.raises(ReverieError):
            session.reset(start, wrong)


@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_a_world_of_any_kind_is_measured(kind):
    """Delta-PSNR if there are actions; action swap if they can be counted."""
    source = SquareConfig(count=3, frames=8, actions=kind)
    full = ArrayDataset.from_episodes(source.spec(), source.episodes())
    space = SPACES[kind]
    spec = dataclasses.replace(source.spec(), frame=FRAME)
    full.arrays["frames"] = full.arrays["frames"][:, ::4, ::4]  # to the tiny models' size: no simulator draws these
    small = ArrayDataset(dataclasses.replace(spec, simulator=Small(source)), full.lengths, full.arrays)
    much = kind == "continuous"
    numbers, pictures = evaluate(
        model_for(space), small, clips=2, context=2, horizon=4, speed=much, deep=much, sessions=0
    )
    assert len(numbers["delta_psnr"]) == 4 and "actions" in pictures
    assert (numbers["swap_pairs"] is None) == (kind == "continuous")


@dataclasses.dataclass(frozen=True)
class Small:
    """The square's simulator, seen at a quarter of its size."""

    source: SquareConfig

    def make(self):
        simulator = self.source.make()
        whole = simulator.render
        simulator.render = lambda state: whole(state)[::4, ::4]
        return simulator


def test_a_world_is_measured_on_data_of_its_own_kind_only():
    source = SquareConfig(count=2, frames=8)
    dataset = ArrayDataset.from_episodes(source.spec(), source.episodes())
    dataset.spec = dataclasses.replace(dataset.spec, frame=FRAME)
    with pytest.raises(ReverieError, match="on its own data"):
        evaluate(model_for(SPACES["multi"]), dataset)


def test_spec_of_a_dataset_names_its_space():
    assert Spec(FRAME, SPACES["multi"], 10.0, "x").actions.choices == "2 whole numbers, each below its of (3, 3)"
