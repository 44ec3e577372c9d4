"""A world and a session in it: one rollout, bit for bit, and one clear line for every mistake."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.tiny import ACTIONS, FRAME, T, clip, frames, watch
from contracts.tiny import world as tiny_world

from reverie.actions import START, UNLABELLED
from reverie.errors import ReverieError
from reverie.models.dynamics.causal import CausalConfig
from reverie.models.dynamics.shortcut import ShortcutConfig
from reverie.world import Session, passes_of, rollout, with_passes

MOVES = np.array([START, 0, 1, 2, 0, 1, 2, 0], np.int32)


@pytest.fixture(scope="module", params=["recorded", "latent"])
def world(request):
    return tiny_world(latent=request.param == "latent")


@pytest.fixture(scope="module")
def recorded():
    return tiny_world()


def play(session, moves=(0, 1, 2, 2, 1, 0, 0, 1)):
    return np.stack([session.reset(frames(1)[0, :3], MOVES[:3]), *(session.step(move) for move in moves)])


def test_the_same_play_is_the_same_picture_bit_for_bit(world):
    session = Session(world, seed=5)
    first = play(session)
    assert first.shape == (9, *FRAME) and first.dtype == np.uint8
    np.testing.assert_array_equal(play(session), first)
    np.testing.assert_array_equal(play(Session(world, seed=5)), first)
    assert not np.array_equal(play(Session(world, seed=6)), first)
    session.seed = 2**32 + 5
    np.testing.assert_array_equal(play(session), first)


def test_two_players_of_a_world_do_not_disturb_each_other(recorded):
    alone = play(Session(recorded, seed=1))
    one, two = Session(recorded, seed=1), Session(recorded, seed=2)
    seen = [one.reset(frames(1)[0, :3], MOVES[:3])]
    two.reset(frames(1, seed=3)[0, :4])
    for move in (0, 1, 2, 2, 1, 0, 0, 1):
        seen.append(one.step(move))
        two.step(2)
    np.testing.assert_array_equal(np.stack(seen), alone)


def test_nothing_is_compiled_while_someone_plays(world):
    session = Session(world)
    built = session.compilations
    assert built == 2
    for i in range(50):
        if i % 10 == 0:
            length = i // 10 + 1  # also longer than the context
            session.reset(frames(1)[0, :length], MOVES[:length] if i % 20 else None)
        session.seed, session.temperature = i, i / 25
        session.step(i % world.config.actions.size)
    assert session.compilations == built


def test_a_world_samples_in_as_many_passes_as_it_is_asked_to(recorded):
    own = passes_of(recorded)
    assert with_passes(recorded, 0) is recorded and passes_of(with_passes(recorded, 1)) == 1 != own
    assert passes_of(recorded) == own, "the world itself is as it was"
    causal, shortcut = (tiny_world(config) for config in (CausalConfig, ShortcutConfig))
    for world, passes, says in (
        (recorded, -1, "cannot"),
        (causal, 2, "Causal .* cannot"),
        (shortcut, 3, "powers of two"),
    ):
        with pytest.raises(ReverieError, match=says):
            with_passes(world, passes)


def test_only_the_last_frames_of_a_long_start_count(recorded):
    session, x = Session(recorded, temperature=0.0), frames(1)[0]
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ReverieError, match="a sampling temperature is a number from 0 on"):
            Session(recorded, temperature=wrong)
    long = [session.reset(x, MOVES), session.step(1)]
    np.testing.assert_array_equal(long, [session.reset(x[-4:], MOVES[-4:]), session.step(1)])


def test_a_start_shorter_than_the_context_is_not_padded_into_the_memory(world):
    x, length = jnp.asarray(frames(1)), 3
    actions = jnp.asarray(MOVES[None])

    @jax.jit
    def prefill(x, actions, length=None):
        return world.prefill(x, world.actions_of(x, actions), length)

    padded, exact = prefill(x, actions, np.int32(length)), prefill(x[:, :length], actions[:, :length])
    for a, b in zip(jax.tree.leaves(padded), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_recorded_actions_are_obeyed_and_latent_ones_are_read_off(world):
    x, actions = frames(), np.stack([MOVES, MOVES])
    obeyed = jax.jit(world.actions_of)(x, actions)
    assert obeyed.shape == (2, T) and obeyed.dtype == jnp.int32
    if world.lam is None:
        np.testing.assert_array_equal(obeyed, actions)
    else:
        assert (obeyed[:, 0] == START).all() and (obeyed[:, 1:] >= 0).all() and (obeyed < world.lam.codes).all()


@pytest.mark.parametrize(
    ("start", "actions", "says"),
    [
        (frames(1)[0, :3, :4], None, "uint8 frames"),
        (frames(1)[0, 0], None, "uint8 frames"),
        (frames(1)[0, :0], None, "uint8 frames"),
        (frames(1)[0].astype(np.float32), None, "float32"),
        (frames(1)[0, :3], MOVES[:2], "3 frames need as many actions"),
        (frames(1)[0, :3], np.array([START, 0, 3]), "has action 3"),
        (frames(1)[0, :3], np.array([START, 0, -3]), "has action -3"),
        (frames(1)[0, :3], np.array([START, 0, 0.5]), "whole numbers"),
    ],
)
def test_a_start_that_cannot_be_is_one_line_and_changes_nothing(recorded, start, actions, says):
    session = Session(recorded)
    expected = play(session, (0, 1))
    play(session, (0,))
    with pytest.raises(ReverieError, match=says) as error:
        session.reset(start, actions)
    assert "\n" not in str(error.value)
    np.testing.assert_array_equal(session.step(1), expected[-1])


def test_steps_that_cannot_be_are_one_line(recorded):
    session = Session(recorded)
    with pytest.raises(ReverieError, match="call reset"):
        session.step(0)
    session.reset(frames(1)[0, :1], np.array([UNLABELLED]))
    for action in (3, -1, START, UNLABELLED):
        with pytest.raises(ReverieError, match=f"no action {action}: this world has 3"):
            session.step(action)
    with pytest.raises(ReverieError, match="only a world can be played"):
        Session(recorded.tokenizer)


def test_a_rollout_is_frame_after_frame(recorded):
    model, key = recorded.dynamics, jax.random.key(0)
    latents, actions = clip(length=4)
    given = jnp.asarray(np.random.default_rng(0).integers(0, ACTIONS.size, (2, 5)), jnp.int32)

    @jax.jit
    def both(latents, actions):
        memory, h = watch(model, latents, actions)
        _, fixed = rollout(model, memory, None, given, key, 5)
        policy = lambda h, key: jnp.argmax(h.mean(axis=1), axis=-1).astype(jnp.int32) % ACTIONS.size  # noqa: E731
        _, chosen = rollout(model, memory, h[-1], policy, key, 5)
        _, again = rollout(model, memory, None, chosen.actions.T, key, 5)
        return memory, fixed, chosen, again, policy(h[-1], key)

    memory, fixed, chosen, again, first = both(latents, actions)
    assert fixed.latents.shape == (5, 2, 4)
    np.testing.assert_array_equal(fixed.actions, given.T)
    np.testing.assert_array_equal(chosen.actions[0], first)
    np.testing.assert_array_equal(chosen.latents, again.latents)
    key_frame = jax.random.split(jax.random.fold_in(key, 0))[1]
    np.testing.assert_array_equal(fixed.latents[0], jax.jit(model.imagine)(memory, given[:, 0], key_frame)[1])
