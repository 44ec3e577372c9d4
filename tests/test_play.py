"""The player's server, spoken to by a real websocket client."""

import contextlib
import http.client
import io
import json
import os
import signal
import socket
import threading
import time
from urllib.parse import urlsplit

import av
import numpy as np
import pytest
from PIL import Image
from playground import CONTEXT, FPS, FRAME, STEER, playing, some_starts, tiny_world
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from reverie.actions import ActionSpace
from reverie.data.sources.square import SPACES
from reverie.errors import ReverieError
from reverie.play import protocol
from reverie.play.connection import Limits
from reverie.play.server import prepare, serve
from reverie.world import Session


class Player:
    """A client that speaks the protocol."""

    def __init__(self, address: str, **options):
        self.connection = connect(f"ws{address[4:]}play", **options)
        self.id = 0

    def __enter__(self):
        self.socket = self.connection.__enter__()
        self.hello = self.hear()
        return self

    def __exit__(self, *_):
        self.socket.close()

    def say(self, type: str, **fields) -> int:
        self.id += 1
        self.socket.send(json.dumps({"type": type, "id": self.id, **fields}))
        return self.id

    def hear(self):
        message = self.socket.recv(timeout=10)
        return json.loads(message) if isinstance(message, str) else protocol.unpack(message)

    def reset(self, seed=0, start=0) -> bytes:
        id = self.say("reset", seed=seed, start=start)
        kind, step, _, answered, frame = self.hear()
        assert (kind, step, answered) == (protocol.FRAME, 0, id)
        return frame

    def step(self, action, temperature=100) -> bytes:
        id = self.say("step", action=action, temperature=temperature)
        kind, _, played, answered, frame = self.hear()
        assert (kind, played, answered) == (protocol.FRAME, action, id)
        return frame

    def dream(self, actions, seed=0, start=0) -> list[bytes]:
        return [self.reset(seed, start), *map(self.step, actions)]

    def closed(self) -> int:
        """Hear all that is left and return the code the server closed with."""
        with pytest.raises(ConnectionClosed):
            while True:
                self.socket.recv(timeout=10)
        return self.socket.close_code


@pytest.fixture(scope="module")
def world():
    return tiny_world()


@pytest.fixture(scope="module")
def place(world):
    with playing(world, limits=Limits(strikes=10**6, rate=10**6)) as (address, seats):
        yield address, seats


@pytest.fixture
def player(place):
    with Player(place[0]) as player:
        yield player


def ask(address: str, path: str = "/", host: str | None = None, **headers: str):
    link = http.client.HTTPConnection(urlsplit(address).netloc, timeout=10)
    link.putrequest("GET", path, skip_host=host is not None)
    for name, value in (({"Host": host} if host is not None else {}) | headers).items():
        link.putheader(name, value)
    link.endheaders()
    with contextlib.closing(link):
        answer = link.getresponse()
        return answer.status, answer.headers, answer.read()


def test_greets_with_what_the_world_is(player):
    hello = player.hello
    assert hello["type"] == "world" and hello["version"] == protocol.VERSION
    assert hello["frame"] == list(FRAME) and hello["fps"] == FPS and hello["starts"] == 3 and hello["idle"] == 0
    assert hello["actions"]["names"] == list(STEER.names) and hello["actions"]["keys"] == list(STEER.keys)


def test_a_dream_is_its_seed_start_and_actions(world, player, place):
    actions = [0, 1, 2, 3, 3, 0, 1, 2]
    dream = player.dream(actions, seed=5, start=1)
    session = Session(world, seed=5)
    local = [session.reset(*some_starts()[1]), *map(session.step, actions)]
    assert dream == [frame.tobytes() for frame in local]
    with Player(place[0]) as other:
        assert other.dream(actions, seed=5, start=1) == dream, "a second player sees the same dream"
        assert other.dream(actions, seed=6, start=1)[1:] != dream[1:], "another seed, another dream"
        assert other.dream([3] * 8, seed=5, start=1)[1:] != dream[1:], "other actions, another dream"
    assert player.dream(actions, seed=5, start=2)[0] != dream[0], "another start, another picture"
    assert session.compilations == 2, "all players share two compiled programs"


def test_players_do_not_touch_each_other(player, place):
    alone = player.dream([1, 2, 3, 0], seed=1)
    with Player(place[0]) as other:
        together = [player.reset(seed=1)]
        other.reset(seed=9, start=2)
        for action in (1, 2, 3, 0):
            other.step(3 - action, temperature=150)
            together.append(player.step(action))
    assert together == alone


def test_temperature_is_part_of_the_dream(player):
    def dream(heat):
        return [player.reset(), *(player.step(1, heat) for _ in range(4))]

    assert dream(0) == dream(0)
    assert dream(0) != dream(200)


def test_a_picture_is_a_start(world, player):
    picture = np.random.default_rng(3).integers(0, 256, FRAME, np.uint8)
    player.say("reset", seed=0, start=protocol.PICTURE)
    assert "Send a picture first" in player.hear()["text"]
    player.socket.send(picture.tobytes()[:-1])
    assert "16x16x3 bytes" in player.hear()["text"]
    player.socket.send(picture.tobytes())
    assert player.hear() == {"type": "picture"}
    assert player.reset(start=protocol.PICTURE) == Session(world).reset(picture[None]).tobytes()


BAD = [
    "",
    "{",
    "[]",
    "null",
    "[" * 500,
    '"reset"',
    "{}",
    '{"type": 1}',
    '{"type": "quit"}',
    '{"type": "step"}',
    '{"type": "step", "id": 1, "action": 4, "temperature": 100}',
    '{"type": "step", "id": 1, "action": -1, "temperature": 100}',
    '{"type": "step", "id": 1, "action": true, "temperature": 100}',
    '{"type": "step", "id": 1, "action": "1", "temperature": 100}',
    '{"type": "step", "id": 1, "action": 1.0, "temperature": 100}',
    '{"type": "step", "id": 1, "action": 1, "temperature": NaN}',
    '{"type": "step", "id": 1, "action": 1, "temperature": 201}',
    '{"type": "step", "id": 1, "action": 1, "temperature": 100, "more": 1}',
    '{"type": "reset", "id": 1, "seed": 1e99, "start": 0}',
    '{"type": "reset", "id": 1, "seed": ' + "9" * 400 + ', "start": 0}',
    '{"type": "reset", "id": 1, "seed": 0, "start": 3}',
    '{"type": "reset", "id": 1, "seed": {}, "start": []}',
    '{"type": "record", "id": 1, "format": "exe"}',
    '{"type": "record", "id": 1, "format": 0}',
    "x" * (protocol.LONGEST + 1),
    b"",
    b"\x00" * 17,
]


@pytest.mark.parametrize("message", BAD, ids=lambda message: repr(message[:40]))
def test_what_is_wrong_is_refused_and_does_no_harm(player, message):
    before = player.reset(seed=2)
    player.socket.send(message)
    answer = player.hear()
    assert answer["type"] == "error" and answer["text"].count("\n") == 0
    assert player.reset(seed=2) == before


def test_nothing_but_a_reset_begins(player):
    for command in ({"type": "step", "action": 0, "temperature": 100}, {"type": "record", "format": "gif"}):
        player.say(**command)
        assert "Reset first" in player.hear()["text"]


@pytest.mark.parametrize("message", ["x" * 100_000, b"x" * 100_000])
def test_what_is_too_large_ends_the_connection_only(player, place, message):
    player.socket.send(message)
    assert player.closed() == 1009
    with Player(place[0]) as another:
        assert another.reset()


def test_steps_that_come_too_fast_are_merged(player, place):
    player.reset()
    wait = threading.Event()
    place[1].thread.submit(wait.wait, 10)  # the world is slow for once
    for action in range(4):
        for _ in range(50):
            last = player.say("step", action=action, temperature=100)
    time.sleep(0.3)
    wait.set()
    answers = [player.hear()]
    while answers[-1][3] < last:
        answers.append(player.hear())
    assert len(answers) <= 1 + Limits().queue, "one was being played, the others waited or were merged"
    assert answers[-1][2] == 3, "the newest is kept"
    assert [answer[1] for answer in answers] == list(range(1, len(answers) + 1))


def test_a_flood_is_cut_off_and_the_others_play_on(world):
    with playing(world, limits=Limits(rate=50, strikes=5)) as (address, _), Player(address) as calm:
        calm.reset()
        with Player(address) as flood:
            flood.reset()
            with contextlib.suppress(ConnectionClosed):
                for _ in range(3000):
                    flood.say("step", action=0, temperature=100)
            assert flood.closed() == 1008
        assert calm.step(1)
        for _ in range(5):
            calm.socket.send("nonsense")
        assert calm.closed() == 1008, "one mistake is forgiven, repeating it is not"
        with Player(address) as again:
            assert again.reset()


def test_seats_are_counted_and_given_back(world):
    with playing(world, limits=Limits(players=2)) as (address, seats), Player(address):
        with Player(address), Player(address) as third:
            assert third.hello["type"] == "busy" and "2 seats" in third.hello["text"]
            assert third.closed() == 1013
        deadline = time.monotonic() + 5
        while seats.taken == 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        with Player(address) as fourth:
            assert fourth.hello["type"] == "world"
            assert len(seats.free) == 0, "sessions are used again, not made anew"


def test_who_is_away_for_long_gives_the_seat_back(world):
    with playing(world, limits=Limits(idle=0.2)) as (address, _), Player(address) as player:
        assert player.hear()["type"] == "bye"
        assert player.closed() == 1000


def test_a_recording_holds_the_last_frames(world):
    with playing(world, limits=Limits(recorded=6)) as (address, _), Player(address) as player:
        frames = player.dream([0, 1, 2, 3] * 2)[-6:]
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


def test_the_page_comes_with_headers_that_keep_it_to_itself(place):
    address, _ = place
    for path, kind in (("/", "text/html"), ("/play.js", "text/javascript"), ("/style.css", "text/css")):
        status, headers, _ = ask(address, path)
        assert status == 200 and headers["content-type"].startswith(kind)
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    status, _, picture = ask(address, "/start-1.png")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture))), some_starts()[1][0][-1])
    for path in ("/nothing", "/../server.py", "/..%2fserver.py", "/%2e%2e/server.py", "/start-9.png", "/page/play.js"):
        assert ask(address, path)[0] == 404


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost:80@evil", "[::1", "", "10.0.0.7", "a b"]
)
def test_another_host_is_refused(place, host):
    assert ask(place[0], host=host)[0] in (400, 403)
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    assert ask(place[0], "/play", host=host, **upgrade, **key)[0] in (400, 403)


@pytest.mark.parametrize("host", ["localhost", "localhost:9999", "127.0.0.1:1", "[::1]:8000"])
def test_a_forwarded_port_is_still_this_machine(place, host):
    assert ask(place[0], host=host)[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://localhost"])
def test_a_page_of_another_site_may_not_play(place, origin):
    with pytest.raises(InvalidStatus) as refusal:
        Player(place[0], origin=origin).__enter__()
    assert refusal.value.response.status_code == 403
    with Player(place[0], origin=place[0].rstrip("/")) as player:
        assert player.reset()


def test_a_world_without_actions_dreams_on_by_itself():
    with playing(tiny_world(ActionSpace()), starts=()) as (address, _), Player(address) as player:
        assert "dreams on by itself" in player.hello["notes"][0] and player.hello["starts"] == 0
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
        with Player(lines[0].rpartition(" ")[2]) as player:  # someone is in the middle of a dream
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
    """What the page is told about buttons is enough to say every action that buttons make."""
    space = SPACES[kind]
    world = tiny_world(space)
    frames = some_starts(1)[0][0]
    with playing(world, starts=[(frames, space.start((1,)))]) as (address, _), Player(address) as player:
        told = player.hello["actions"]
        assert told["count"] == 9 and told["size"] == len(told["buttons"]) == len(told["names"]) == len(space.names)
        assert told["levels"] == [3, 3] and told["rest"] == [1, 1] and player.hello["idle"] == 4
        session = Session(world, seed=5)
        local = [session.reset(frames, space.start((1,))), *(session.step(space.nth(i)) for i in range(9))]
        assert player.dream(range(9), seed=5) == [frame.tobytes() for frame in local]
        player.say("step", action=9, temperature=100)
        assert "action of a step is 0 to 8" in player.hear()["text"]


def test_more_actions_than_a_message_can_tell_apart_are_refused():
    with pytest.raises(ReverieError, match="use Session"):
        prepare(tiny_world(ActionSpace("binary", 32)), name="noise", port=0, host="127.0.0.1")
