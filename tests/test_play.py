"""The player's server, spoken to by a real websocket client."""

import contextlib
import io
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import playground
import pytest
from PIL import Image
from playground import CONTEXT, FPS, FRAME, STEER, Player, playing, slow, some_starts, tiny_world

from reverie.actions import ActionSpace
from reverie.data.sources.square import SPACES
from reverie.errors import ReverieError
from reverie.play import protocol
from reverie.play.connection import Limits
from reverie.play.server import prepare, serve
from reverie.world import Session

world, place, player = playground.world, playground.place, playground.player


def test_greets_with_what_the_world_is(player):
    hello = player.hello
    assert hello["type"] == "world" and hello["version"] == protocol.VERSION
    assert hello["frame"] == list(FRAME) and hello["fps"] == FPS and hello["starts"] == 3 and hello["idle"] == 0
    assert hello["actions"]["names"] == list(STEER.names) and hello["actions"]["keys"] == list(STEER.keys)


def test_seed_start_and_actions_determine_the_frames(world, player, place):
    actions = [0, 1, 2, 3, 3, 0, 1, 2]
    generated = player.rollout(actions, seed=5, start=1)
    session = Session(world, seed=5)
    local = [session.reset(*some_starts()[1]), *map(session.step, actions)]
    assert generated == [frame.tobytes() for frame in local]
    with Player(place[0]) as other:
        assert other.rollout(actions, seed=5, start=1) == generated, "a second player gets the same frames"
        assert other.rollout(actions, seed=6, start=1)[1:] != generated[1:], "another seed, other frames"
        assert other.rollout([3] * 8, seed=5, start=1)[1:] != generated[1:], "other actions, other frames"
    assert player.rollout(actions, seed=5, start=2)[0] != generated[0], "another start, another picture"
    assert session.compilations == 2, "all players share two compiled programs"


def test_a_generated_frame_comes_with_its_uncertainty(world, player):
    session = Session(world, seed=5)
    session.reset(*some_starts()[1])
    assert session.uncertainty is None and player.hello["uncertainty"] == world.uncertainty
    player.say("reset", seed=5, start=1)
    assert np.isnan(player.hear()[4])
    for action in (1, 2):
        player.say("step", action=action, temperature=100)
        session.step(action)
        assert player.hear()[4] == np.float32(session.uncertainty) > 0


def test_players_do_not_touch_each_other(player, place):
    alone = player.rollout([1, 2, 3, 0], seed=1)
    with Player(place[0]) as other:
        together = [player.reset(seed=1)]
        other.reset(seed=9, start=2)
        for action in (1, 2, 3, 0):
            other.step(3 - action, temperature=150)
            together.append(player.step(action))
    assert together == alone


def test_many_at_once_each_see_what_they_would_alone(world, place):
    def play(seed: int) -> list[bytes]:
        with Player(place[0]) as player:
            return player.rollout([(seed + step) % 4 for step in range(8)], seed=seed, start=seed % 3)

    with ThreadPoolExecutor(12) as threads:
        together = list(threads.map(play, range(12)))
    for seed, generated in enumerate(together):
        session = Session(world, seed=seed)
        local = [session.reset(*some_starts()[seed % 3]), *(session.step((seed + step) % 4) for step in range(8))]
        assert generated == [frame.tobytes() for frame in local]


def test_everyone_who_asks_gets_a_frame_before_anyone_gets_two(world, monkeypatch):
    step, order = Session.step, []
    monkeypatch.setattr(Session, "step", lambda self, action: order.append(id(self)) or step(self, action))
    with playing(world) as (address, seats), contextlib.ExitStack() as stack:
        players = [stack.enter_context(Player(address)) for _ in range(5)]
        for player in players:
            player.reset()
        order.clear()  # of steps that only compiled
        with slow(seats):
            for player in players:
                for _ in range(3):
                    player.say("step", action=1, temperature=100)
            deadline = time.monotonic() + 10
            while seats.thread._work_queue.qsize() < len(players) and time.monotonic() < deadline:
                time.sleep(0.01)
        for player in players:
            for _ in range(3):
                player.hear()
    assert len(order) == 15 and len(set(order[:5])) == 5


def test_a_session_is_lent_again_only_once_its_last_step_is_done(world, monkeypatch):
    wait, began, step = threading.Event(), threading.Event(), Session.step

    def stuck(self, action):
        began.set()
        assert wait.wait(20)
        return step(self, action)

    with playing(world) as (address, seats):
        with Player(address) as leaver:
            leaver.reset()
            monkeypatch.setattr(Session, "step", stuck)
            leaver.say("step", action=1, temperature=100)
            assert began.wait(10)
        deadline = time.monotonic() + 10
        while seats.taken and time.monotonic() < deadline:
            time.sleep(0.01)
        assert seats.taken == 0 and not seats.free, "its thread is still at work on it"
        wait.set()
        while not seats.free and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(seats.free) == 1


def test_temperature_changes_the_frames(player):
    def generated(heat):
        return [player.reset(), *(player.step(1, heat) for _ in range(4))]

    assert generated(0) == generated(0)
    assert generated(0) != generated(200)


def test_a_picture_is_a_start(world, player):
    picture = np.random.default_rng(3).integers(0, 256, FRAME, np.uint8)
    player.say("reset", seed=0, start=protocol.PICTURE)
    assert "Send a picture first" in player.hear()["text"]
    player.socket.send(picture.tobytes()[:-1])
    assert "16x16x3 bytes" in player.hear()["text"]
    player.socket.send(picture.tobytes())
    assert player.hear() == {"type": "picture"}
    assert player.reset(start=protocol.PICTURE) == Session(world).reset(picture[None]).tobytes()


def test_nothing_but_a_reset_begins(player):
    for command in ({"type": "step", "action": 0, "temperature": 100}, {"type": "record", "format": "gif"}):
        player.say(**command)
        assert "Reset first" in player.hear()["text"]


def test_steps_that_come_too_fast_are_merged(player, place):
    player.reset()
    with slow(place[1]):
        for action in range(4):
            for _ in range(50):
                last = player.say("step", action=action, temperature=100)
        time.sleep(0.3)
    answers = [player.hear()]
    while answers[-1][3] < last:
        answers.append(player.hear())
    assert len(answers) <= 1 + Limits().queue, "one was being played, the others waited or were merged"
    assert answers[-1][2] == 3, "the newest is kept"
    assert [answer[1] for answer in answers] == list(range(1, len(answers) + 1))


def test_a_recording_holds_the_last_frames(world):
    with playing(world, limits=Limits(recorded=6)) as (address, _), Player(address) as player:
        frames = player.rollout([0, 1, 2, 3] * 2)[-6:]
        player.say("record", format="gif")
        kind, *_, data = player.hear()
        assert kind == protocol.GIF
        gif = Image.open(io.BytesIO(data))
        assert gif.n_frames == 6 and gif.size == (256, 256)
        times = 0
        for index, frame in enumerate(frames):
            gif.seek(index)
            times += gif.info["duration"]
            shown = np.asarray(gif.convert("RGB"))[::16, ::16].astype(int)
            assert np.abs(shown - np.frombuffer(frame, np.uint8).reshape(FRAME)).max() <= 8  # 256 colours a frame
        assert abs(times - 6 * 1000 / FPS) <= 10
        player.say("record", format="mp4")
        kind, *_, data = player.hear()
        assert kind == protocol.MP4
        with av.open(io.BytesIO(data)) as film:
            decoded = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
            assert film.streams.video[0].average_rate == FPS
        assert len(decoded) == 6 and decoded[0].shape == (512, 512, 3)


def test_a_world_without_actions_continues_by_itself():
    with playing(tiny_world(ActionSpace()), starts=()) as (address, _), Player(address) as player:
        assert "continues by itself" in player.hello["notes"][0] and player.hello["starts"] == 0
        player.socket.send(bytes(np.prod(FRAME)))
        player.hear()
        frames = {player.reset(start=protocol.PICTURE), player.step(0), player.step(0)}
        assert len(frames) == 3


def test_a_door_that_cannot_open_says_what_to_do(world):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ReverieError, match=f"Port {port} is in use: try --port {port + 1}"):
            serve(world, port=port)
    for wrong, says in (
        ({"host": "0.0.0.0"}, "--expose"),
        ({"host": "no.such.host.invalid", "expose": True}, "Cannot listen"),
        ({"port": 70000}, "no port 70000"),
        ({"seed": -1}, "a seed is"),
        ({"starts": [(np.zeros((1, 8, 8, 3), np.uint8), None)]}, "a start is uint8"),
        ({"starts": [(np.zeros((2, *FRAME), np.uint8), np.zeros(3))]}, "2 actions"),
    ):
        with pytest.raises(ReverieError, match=says):
            prepare(world, **{"name": "noise", "port": 0, "host": "127.0.0.1", **wrong})


def test_says_where_it_is_and_leaves_on_ctrl_c(world, capfd):
    lines = []

    def interrupt():
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not lines:
            lines.extend(capfd.readouterr().out.splitlines())
            time.sleep(0.05)
        with Player(lines[0].rpartition(" ")[2]) as player:  # while a player is connected
            player.reset()
            player.say("step", action=1, temperature=100)
            lines.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)
            player.closed()

    thread = threading.Thread(target=interrupt)
    thread.start()
    serve(world, name="noise", port=0, starts=some_starts())
    thread.join()
    assert lines[0].startswith("Playing noise at http://127.0.0.1:") and lines[0].endswith("/")
    assert time.monotonic() - lines[1] < 2


def test_starts_longer_than_the_context_are_fine(world):
    long = np.random.default_rng(0).integers(0, 256, (CONTEXT + 5, *FRAME), np.uint8)
    with playing(world, starts=[(long, None)]) as (address, _), Player(address) as player:
        assert player.reset() == Session(world).reset(long).tobytes()


@pytest.mark.parametrize("kind", ["multi", "continuous"])
def test_vectors_go_by_their_number(kind):
    """The page can compute the number of every action that buttons make."""
    space = SPACES[kind]
    world = tiny_world(space)
    frames = some_starts(1)[0][0]
    with playing(world, starts=[(frames, space.start((1,)))]) as (address, _), Player(address) as player:
        card = player.hello["actions"]
        assert card["count"] == 9 and card["size"] == len(card["buttons"]) == len(card["names"]) == len(space.names)
        assert card["levels"] == [3, 3] and card["rest"] == [1, 1] and player.hello["idle"] == 4
        session = Session(world, seed=5)
        local = [session.reset(frames, space.start((1,))), *(session.step(space.nth(i)) for i in range(9))]
        assert player.rollout(range(9), seed=5) == [frame.tobytes() for frame in local]
        player.say("step", action=9, temperature=100)
        assert "action of a step is 0 to 8" in player.hear()["text"]


def test_more_actions_than_a_message_can_tell_apart_are_refused():
    with pytest.raises(ReverieError, match="use Session"):
        prepare(tiny_world(ActionSpace("binary", 32)), name="noise", port=0, host="127.0.0.1")
