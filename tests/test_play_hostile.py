"""What a careless or hostile client may send, or not send, and that the others play on."""

import contextlib
import logging
import os
import socket
import struct
import time
from urllib.parse import urlsplit

import playground
import pytest
from playground import Player, ask, playing
from websockets.exceptions import ConnectionClosed

from reverie.play import protocol, transport
from reverie.play.connection import Limits

world, place, player = playground.world, playground.place, playground.player


@pytest.fixture(autouse=True)
def nothing_breaks(caplog):
    yield
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


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
    r'{"type": "\ud800"}',
    r'{"type": "\ud83d", "id": 1}',
    r'{"type": "record", "id": 1, "format": "\udfff"}',
    r'{"\ud800": 1, "type": "step"}',
    r'{"type": "a\nb\u2028c\u0000"}',
    '{"type": "' + "é" * 400 + '"}',
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
    assert answer["type"] == "error" and len(answer["text"].splitlines()) == 1 and answer["text"].isprintable()
    assert player.reset(seed=2) == before


@pytest.mark.parametrize("message", ["x" * 100_000, b"x" * 100_000])
def test_what_is_too_large_ends_the_connection_only(player, place, message):
    player.socket.send(message)
    assert player.closed() == 1009
    with Player(place[0]) as another:
        assert another.reset()


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


def dial(address: str, data: bytes = b"") -> socket.socket:
    link = socket.create_connection((urlsplit(address).hostname, urlsplit(address).port), timeout=10)
    link.sendall(data)
    return link


def ended(link: socket.socket) -> bool:
    """Whether the server closes a connection within ten seconds; what it says before does not matter."""
    with contextlib.suppress(ConnectionError):
        while link.recv(1 << 16):
            pass
    return True  # recv raises TimeoutError otherwise


def over(link: socket.socket) -> bool:
    """Whether the server has closed a connection, without waiting."""
    link.setblocking(False)
    try:
        return ended(link)
    except BlockingIOError:
        return False


UPGRADE = (
    b"GET /play HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def test_half_open_connections_keep_no_player_out(place, monkeypatch):
    """However many say nothing, or half a sentence, and for as long as they like."""
    monkeypatch.setattr(transport, "OPEN", 32)
    monkeypatch.setattr(transport, "PATIENCE", 1000)  # they are not gone because their time is up
    half = [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"GET / HTTP/1.1\r\nX: " + b"x" * 1000]
    with contextlib.ExitStack() as stack:
        links = [stack.enter_context(dial(place[0], half[index % len(half)])) for index in range(100)]
        assert ask(place[0])[0] == 200
        with Player(place[0]) as player:
            assert player.reset() and player.step(1)
        # Under load the kernel may hand connections over in another order than they were dialled, so: how many.
        until = time.monotonic() + 30
        while sum(map(over, links)) < 60:
            assert time.monotonic() < until, "the oldest make room"
            time.sleep(0.05)


@pytest.mark.parametrize(
    "half",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET /play.js HT",
        UPGRADE.replace(b"GET", b"POST"),
        UPGRADE.replace(b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Version: 1"),
    ],
)
def test_a_request_that_never_ends_is_ended(world, monkeypatch, half):
    monkeypatch.setattr(transport, "PATIENCE", 0.3)
    with playing(world) as (address, _), dial(address, half) as link:
        assert ended(link)
        with dial(address) as dribble:  # a letter at a time gains nothing
            with contextlib.suppress(OSError):
                for _ in range(100):
                    dribble.sendall(b"G")
                    time.sleep(0.05)
            with pytest.raises(OSError):
                dribble.sendall(b"G")
                dribble.sendall(b"G")


def test_a_player_who_never_begins_or_never_reads_gives_the_seat_back(world, monkeypatch):
    monkeypatch.setattr(transport, "PATIENCE", 0.3)
    with playing(world, limits=Limits(begin=0.3, idle=1, rate=10**6)) as (address, seats):
        with Player(address) as silent:
            assert silent.hear()["type"] == "bye" and silent.closed() == 1000
        with dial(address) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.sendall(UPGRADE)
            with contextlib.suppress(OSError):
                send = b'{"type": "reset", "id": 1, "seed": 0, "start": 0}'
                for _ in range(20_000):
                    deaf.sendall(frame(0x81, send))
            deadline = time.monotonic() + 20
            while seats.taken and time.monotonic() < deadline:
                time.sleep(0.05)
            assert seats.taken == 0
        assert ask(address)[0] == 200


def frame(head: int, data: bytes) -> bytes:
    """Return a websocket frame as a client sends it."""
    mask = os.urandom(4)
    length = struct.pack("!B", 0x80 | len(data)) if len(data) < 126 else struct.pack("!BH", 0x80 | 126, len(data))
    return bytes([head]) + length + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))


@pytest.mark.parametrize(
    "data",
    [
        frame(0x81, b"\xff\xfe"),  # text that is not UTF-8
        frame(0x81, b"\xed\xa0\x80"),  # a lone surrogate, as bytes
        frame(0x01, b'{"type": "\xed\xa0') + frame(0x80, b'\x80"}'),  # the same in two parts
        frame(0x80, b"goes on from nothing"),
        frame(0x83, b"an unknown opcode"),
        frame(0xF1, b"reserved bits"),
        frame(0x89, b"x" * 126),  # a ping too long
        b"\x81\x05hello",  # not masked
        frame(0x88, b"\x00"),  # half a close code
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=lambda data: data[:1].hex(),
)
def test_frames_that_are_none_end_the_connection_only(place, data):
    with Player(place[0]) as calm, dial(place[0], UPGRADE) as link:
        calm.reset()
        link.sendall(data)
        assert ended(link)
        assert calm.step(1)
