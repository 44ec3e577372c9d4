"""CarRacing as episodes: what keys do, that undrawn steps change nothing, and that the driver keeps to the road."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest

from reverie.data.sources.carracing import PEDALS, SPACE, STEER, VIEW, ZOOMING, CarRacingConfig
from reverie.data.takes import JUDGED
from reverie.errors import ReverieError

pytest.importorskip("Box2D", reason="needs the extra 'carracing'", exc_type=ImportError)
GREY = 40  # of 255: the road's colours differ by less from channel to channel, and the grass's by more
CAR = slice(68, 76), slice(37, 47)  # where the camera holds the car


def on_road(frame):
    """Return whether there is road on both sides of the car, of (84,84,3)."""
    rows = slice(CAR[0].start, CAR[0].stop)
    sides = np.concatenate([frame[rows, 34:37], frame[rows, 48:51]], 1).astype(int)
    return bool((np.ptp(sides, axis=-1) < GREY).mean() > 0.5)


def test_steps_that_are_not_drawn_change_nothing():
    source = CarRacingConfig(drive=True, count=1, frames=12, seed=3)
    (episode,) = source.episodes()
    episode.validate(source.spec())
    real = gymnasium.make("CarRacing-v3", continuous=True)
    real.reset(seed=3)
    for _ in range(ZOOMING):
        seen, *_ = real.step(np.zeros(3))
    assert (seen[VIEW] == episode.frames[0]).all()
    for frame, (wheel, pedal), reward in zip(episode.frames[1:], episode.actions[1:], episode.rewards[1:], strict=True):
        total = 0.0
        for _ in range(source.skip):
            seen, gained, *_ = real.step(np.array([STEER[wheel], *PEDALS[pedal]]))
            total += gained
        assert (seen[VIEW] == frame).all() and np.isclose(total, reward)
    real.close()


def test_wheel_and_pedals_do_what_they_are_called():
    turned, driven = {}, {}
    game = CarRacingConfig().as_game()
    car = game._env.unwrapped
    for number in range(SPACE.count):
        action = SPACE.nth(number)
        game.reset(5)
        for _ in range(15):
            game.step(SPACE.nth(1))  # straight on, with gas
        before = car.car.hull.angle
        for _ in range(15):
            game.step(action)
        turned[SPACE.name_of(action)] = car.car.hull.angle - before  # radians, to the left
        driven[SPACE.name_of(action)] = np.hypot(*car.car.hull.linearVelocity)
    game.close()
    for pedal in ("roll", "gas", "brake"):
        assert turned[f"left + {pedal}"] > 0.2 and turned[f"right + {pedal}"] < -0.2
        assert abs(turned[f"straight + {pedal}"]) < 0.1
    assert driven["straight + gas"] > driven["straight + roll"] + 5 > driven["straight + brake"] + 10
    assert driven["straight + brake"] > 1  # it never rests


def test_the_driver_keeps_to_the_road_and_random_keys_do_not():
    source = CarRacingConfig(count=4, frames=100, seed=20)
    shares = {
        drive: np.mean([on_road(frame) for episode in source.episodes() for frame in episode.frames[40:]])
        for drive, source in ((drive, replace(source, drive=drive)) for drive in (True, False))
    }
    assert shares[True] > 0.5 > 0.4 > shares[False], shares


def test_drivers_differ_and_an_episode_is_its_seed():
    source = CarRacingConfig(drive=True, count=2, frames=30, seed=8, size=(24, 24))
    first, second = source.episodes()
    (again,) = CarRacingConfig(drive=True, count=1, frames=30, seed=9, size=(24, 24)).episodes()
    assert (again.frames == second.frames).all() and (again.actions == second.actions).all()
    assert (first.frames[0] != second.frames[0]).any() and (first.actions != second.actions).any()
    assert first.source == "CarRacing-v3, seed 8" and first.frames.shape == (30, 24, 24, 3)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"path": "CartPole-v1"}, "'CartPole-v1' is no CarRacing; 'reverie data gymnasium'"),
        ({"skip": 0}, "skip of 1 to 50"),
        ({"path": "CarRacing-v99"}, "there is no environment 'CarRacing-v99'"),
        ({"seed": JUDGED}, "agents are judged"),
    ],
)
def test_refusals(fields, says):
    with pytest.raises(ReverieError, match=says):
        list(CarRacingConfig(count=1, frames=2, **fields).episodes())
