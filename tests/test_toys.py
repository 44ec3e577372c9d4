"""The built-in worlds: exact, visible, fair, and no level without a way."""

import itertools
from collections import Counter, deque
from typing import Any

import exact_platformer
import jax
import numpy as np
import pytest

from reverie import config
from reverie.data.episode import Spec
from reverie.data.sources import platformer, sources
from reverie.data.sources.platformer import COINS, FACING, POSE, PlatformerConfig, X, Y
from reverie.data.sources.square import HOLDS, Square, SquareConfig
from reverie.errors import ReverieError

WORLDS = [
    PlatformerConfig(count=3),
    PlatformerConfig(count=3, tile=4, themes=6),
    PlatformerConfig(count=3, tiles=6, speed=2, seed=5),
    SquareConfig(count=3),
]


def test_every_source_is_found_by_its_file_name():
    found = sources()
    assert found["platformer"] is PlatformerConfig and found["square"] is SquareConfig


@pytest.mark.parametrize("world", WORLDS, ids=repr)
def test_episodes_are_valid_repeatable_and_follow_from_their_states(world):
    spec, simulator = world.spec(), world.make()
    assert config.from_json(config.to_json(spec)) == spec and isinstance(spec, Spec)
    episodes = list(world.episodes())
    assert len(episodes) == world.count and len({e.source for e in episodes}) == world.count
    for episode, again in zip(episodes, world.episodes(), strict=True):
        episode.validate(spec)
        assert len(episode.frames) == world.frames
        for name, array in again.arrays().items():
            assert np.array_equal(array, episode.arrays()[name])
        fresh = world.make()  # any moment can be set again: nothing is kept outside the state
        for t in range(1, world.frames, 7):
            before = episode.states[t - 1].copy()
            state, reward, end = fresh.step(before, int(episode.actions[t]))
            assert np.array_equal(before, episode.states[t - 1]), "step changed its input"
            assert np.array_equal(state, episode.states[t]) and state.dtype == np.int32
            assert np.float32(reward) == episode.rewards[t] and end == episode.ends[t]
            assert np.array_equal(fresh.render(state), episode.frames[t])
    with pytest.raises(IndexError):
        simulator.step(simulator.reset(0), 4)


@pytest.mark.parametrize("world", [PlatformerConfig(), PlatformerConfig(tiles=6, speed=2)], ids=repr)
def test_platformer_shows_what_every_action_does_and_uses_them_all(world):
    simulator, different, pairs, actions, coins = world.make(), 0, 0, [], 0
    for episode in itertools.islice(world.episodes(), 30):
        actions.extend(episode.actions[1:])
        coins += episode.rewards.sum()
        for state in episode.states[:-1:4]:
            after = [simulator.render(simulator.step(state, action)[0]).tobytes() for action in range(4)]
            different += sum(a != b for a, b in itertools.combinations(after, 2))
            pairs += 6
    share = np.bincount(actions) / len(actions)
    assert different / pairs > 0.93
    assert -(share * np.log(share)).sum() > 0.98 * np.log(4)
    assert coins >= (15 if world.pace == world.tile else 5)


TASK = PlatformerConfig(tiles=6, count=40, frames=17, themes=2, play="mixed", goal="coins")


def test_the_best_play_takes_all_coins_and_mixed_play_is_of_every_quality():
    simulator, steps, kinds = TASK.make(), [], {}
    for level in range(20):
        state, count, end = simulator.reset(level), 0, False
        while not end:
            state, _, end = simulator.step(state, simulator.best(state))
            count += 1
        assert simulator.solved(state)
        steps.append(count)
    assert np.median(steps) <= 8 and max(steps) <= 16
    for episode in TASK.episodes():
        kinds.setdefault(episode.source.partition(", ")[2].partition(" 0.")[0], []).append(episode.rewards.sum())
        assert episode.states is not None
        over = episode.states[-1][COINS] == 0
        assert episode.ends[-1] == over and not episode.ends[:-1].any() and (over or len(episode.frames) == TASK.frames)
    assert set(kinds) == {"behaviour", "random"} and np.mean(kinds["random"]) > np.mean(kinds["behaviour"])
    forever = PlatformerConfig(tiles=6).make()
    assert not forever.step(np.where(np.arange(10) == COINS, 0, forever.reset(0)), 0)[2], "a game without a goal"


def test_the_platformer_on_arrays_is_the_simulator():
    """The world of the oracle arm: the same moments, whatever is done."""
    simulator, rng = exact_platformer.SeenConfig().make(), np.random.default_rng(0)
    step = jax.jit(jax.vmap(exact_platformer.step))
    states = [simulator.reset(level) for level in range(100)]
    for _ in range(16):
        actions = rng.integers(0, 4, len(states))
        found = step(np.stack([simulator.render(state)[:, 0, 0] for state in states]).astype(np.float32), actions)
        states = [simulator.step(state, int(a))[0] for state, a in zip(states, actions, strict=True)]
        assert np.array_equal(found, np.stack([simulator.render(state)[:, 0, 0] for state in states]))


def test_platformer_hides_nothing_that_decides_what_an_action_does():
    """Two moments of one level with the same picture have the same next pictures, whatever the action."""
    world = PlatformerConfig(tiles=6, count=20, frames=200)
    simulator = world.make()
    for episode in world.episodes():
        seen = {}
        for frame, state in zip(episode.frames, episode.arrays()["states"], strict=True):
            after = [simulator.render(simulator.step(state, action)[0]).tobytes() for action in range(4)]
            bird_over_player = state[platformer.BIRD_X] == state[X] and state[Y] == world.tile
            if not bird_over_player:  # the player flies in front of the bird: then the bird's way is hidden
                assert seen.setdefault(frame.tobytes(), after) == after


def test_platformer_pictures_are_made_of_few_tiles():
    world = PlatformerConfig(count=40, themes=1)
    tiles = Counter()
    for episode in world.episodes():
        for row, column in itertools.product(range(0, 64, 8), repeat=2):
            tiles.update(frame[row : row + 8, column : column + 8].tobytes() for frame in episode.frames)
    often = sum(count for _, count in tiles.most_common(22))  # scenery 9, coin, bird 2 x 2, player 4 x 2
    assert often > 0.999 * tiles.total()


@pytest.mark.parametrize("size", [6, 8, 10])
def test_platformer_levels_have_no_trap_and_every_coin_can_be_had(size):
    simulator = PlatformerConfig(tiles=size).make()

    def key(state):
        return tuple(state[[X, Y, POSE, FACING]])

    for level in range(100):
        first = simulator.reset(level)
        nexts, coins, queue, seen = {}, 0, deque([first]), {key(first)}
        while queue:
            state = queue.popleft()
            after = [simulator.step(state, action)[0] for action in range(4)]
            nexts[key(state)] = {key(s) for s in after}
            for new in after:
                coins |= int(first[COINS]) & ~int(new[COINS])
                new[COINS] = first[COINS]
                if key(new) not in seen:
                    seen.add(key(new))
                    queue.append(new)
        assert coins == first[COINS], f"a coin of level {level} is out of reach"
        back = {key(first)}  # from wherever one can get, one gets back to the start's place
        back |= {k for k in nexts if k[:2] == key(first)[:2]}
        while True:
            more = {k for k, after in nexts.items() if k not in back and after & back}
            if not more:
                break
            back |= more
        assert back == set(nexts), f"level {level} has a trap"


def test_square_has_its_published_constants():
    world = SquareConfig(count=512)
    simulator, rng = world.make(), np.random.default_rng(0)

    def mean_return(policy):
        returns = []
        for seed in range(512):
            state, total = simulator.reset(seed), 0.0
            for _ in range(32):
                state, reward, _ = simulator.step(state, policy(state))
                total += reward
            returns.append(total)
        return np.mean(returns)

    def greedy(state):
        return max(range(4), key=lambda action: simulator.step(state, action)[1])

    # published for 512 episodes, whose standard error is about 3 (greedy: 0.8)
    assert mean_return(lambda state: int(rng.integers(4))) == pytest.approx(-275.9, abs=10)
    assert mean_return(lambda state: 0) == pytest.approx(-358, abs=12)
    assert mean_return(greedy) == pytest.approx(-54.6, abs=3)

    episodes = list(world.episodes())
    assert np.mean([e.rewards.sum() for e in episodes]) == pytest.approx(-320.9, abs=10)
    actions = np.stack([e.actions[1:] for e in episodes])
    assert (actions[:, 1:] == actions[:, :-1]).mean() == pytest.approx(0.862, abs=0.01)
    holds = [n for row in actions for n in [len(list(run)) for _, run in itertools.groupby(row)][:-1]]
    assert set(holds) == set(range(HOLDS[0], HOLDS[1] + 1))
    # copying the last frame: 22.4 dB, copying the first over 32 frames: 16.2 dB
    frames = np.stack([e.frames for e in episodes]).astype(np.float32) / 255
    copy_last = ((frames[:, 1:] - frames[:, :-1]) ** 2).mean((2, 3, 4))
    copy_first = ((frames[:, 1:] - frames[:, :1]) ** 2).mean((2, 3, 4))
    assert -10 * np.log10(copy_last.mean()) == pytest.approx(22.4, abs=1)
    assert -10 * np.log10(copy_first.mean()) == pytest.approx(16.2, abs=1)


def test_square_is_mirrored_at_the_walls():
    simulator = Square()
    state = simulator.reset(0)
    state[:3] = 1, 21, 10  # x, y, side
    assert tuple(simulator.step(state, 2)[0][:2]) == (1, 21)
    assert tuple(simulator.step(state, 1)[0][:2]) == (1, 21)
    assert tuple(simulator.step(state, 3)[0][:2]) == (3, 21)


@pytest.mark.parametrize("wrong", [{"tile": 5}, {"tiles": 3}, {"speed": 3}, {"themes": 7}, {"frames": 1}, {"seed": -1}])
def test_a_world_that_cannot_be_is_refused(wrong):
    with pytest.raises(ReverieError):
        PlatformerConfig(**wrong)


def test_a_numpy_number_is_an_action_like_any_other():
    simulator = PlatformerConfig(tile=4, tiles=6).make()
    for action in range(4):
        state, reward, end = simulator.step(simulator.reset(3), action)
        kinds: list[Any] = [np.int32, np.int64, np.uint8, np.array]
        for kind in kinds:
            other, *rest = simulator.step(simulator.reset(3), kind(action))
            assert np.array_equal(state, other) and rest == [reward, end]
