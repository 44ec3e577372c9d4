"""Who may reach the page: this machine, names that were allowed, and what lies behind a proxy; no other site's page."""

import io
import socket

import numpy as np
import playground
import pytest
from PIL import Image
from playground import Player, ask, playing, proxied, some_starts
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from reverie.errors import ReverieError
from reverie.play.server import prepare

world, place = playground.world, playground.place


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


def test_a_refusal_names_the_flag(place, capfd):
    status, _, text = ask(place[0], host="play.example:8443")
    assert status == 403 and b"--allow-host play.example." in text
    assert b"--allow-host NAME" in ask(place[0], host="localhost:80@evil")[2]
    with pytest.raises(InvalidStatus):
        connect(f"ws{place[0][4:]}play", origin="https://tunnel.example").__enter__()
    for index in range(40):
        ask(place[0], host=f"spam{index}.example")
    printed = capfd.readouterr().err
    assert "--allow-host tunnel.example" in printed and printed.count("\n") <= 8


@pytest.mark.parametrize(("prefix", "host"), [("/", None), ("/worlds/noise/", None), ("/a/", "127.0.0.1:8000")])
def test_an_allowed_name_plays_through_a_proxy(world, prefix, host):
    """Also under a path of its own, and where the proxy writes a Host of its own."""
    with (
        playing(world, allow_hosts=["Play.Example", "other.example"]) as (address, _),
        proxied(address, prefix, host) as port,
    ):

        def knock(origin):
            sock = socket.create_connection(("127.0.0.1", port))
            return Player(f"http://play.example{prefix}", origin=origin, sock=sock)

        for path in ("", "play.js", "start-0.png"):
            status, headers, _ = ask(f"http://127.0.0.1:{port}", f"{prefix}{path}", host="play.example")
            assert status == 200 and "wss://play.example" in headers["content-security-policy"]
        with knock("https://play.example") as player:
            assert player.reset() and player.step(1)
        for origin in ("https://evil.example", "https://play.example.evil", "https://evil/play.example", "null"):
            with pytest.raises(InvalidStatus):
                knock(origin).__enter__()
        if host is None:
            assert ask(f"http://127.0.0.1:{port}", prefix, host="play.example.evil")[0] == 403


@pytest.mark.parametrize("name", ["https://play.example", "play.example:80", "", "*", "a b", "evil\nexample", "a..b"])
def test_what_is_no_name_is_not_allowed(world, name):
    with pytest.raises(ReverieError, match="--allow-host takes") as error:
        prepare(world, name="noise", port=0, host="127.0.0.1", allow_hosts=[name])
    assert "\n" not in str(error.value).replace(name, "")
