"""Pages without a server: every family, every kind of latents and actions, and 256 frames of the world that ships."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import browsing
import numpy as np
import pytest
from browsing import says
from contracts import tiny
from flax import nnx
from playground import tiny_world
from test_web_browser import (  # noqa: F401  (fixtures)
    RUN,
    browser,
    exported,
    frames_in_page,
    frames_of_session,
    needs_runtime,
    open_page,
)

from reverie.actions import ActionSpace
from reverie.data.sources.square import SPACES
from reverie.models.dynamics import families
from reverie.models.tokenizers.dreamer4 import Dreamer4Config
from reverie.narrow_weights import rounded
from reverie.training.checkpoint import load
from reverie.web.export import export_world
from reverie.world import WorldConfig, WorldModel
from reverie.world_folder import initial_frames

pytestmark = [browsing.needed, pytest.mark.soak]
SEED = 5


def worlds() -> dict[str, Callable[[], WorldModel]]:
    found: dict[str, Callable] = {name: partial(tiny.world, config) for name, config in families().items()}
    found |= {f"{kind} actions": partial(tiny_world, SPACES[kind]) for kind in ("binary", "continuous")}
    found["no actions"] = partial(tiny_world, ActionSpace())
    found["latent actions"] = partial(tiny.world, latent=True)
    found["Dreamer 4's tokenizer"] = dreamer4
    return found


def dreamer4():
    tokenizer = tiny.tokenizer(Dreamer4Config)
    dynamics = tiny.tiny(families()["shortcut"]()).fitted(tokenizer, tiny.ACTIONS).make(nnx.Rngs(1))
    config = WorldConfig(frame=tiny.FRAME, actions=tiny.ACTIONS, context=4)
    return WorldModel(config, tokenizer, None, tiny.awake(dynamics))


@pytest.mark.parametrize("name", worlds())
def test_every_world_plays_in_a_page_as_in_a_session(open_page, needs_runtime, tmp_path, name):  # noqa: F811
    plays(open_page, tmp_path / "x.html", worlds()[name]())


@pytest.mark.parametrize("bits", [16, 8])
def test_a_rounded_world_is_smaller_and_plays_as_in_a_session(
    open_page,  # noqa: F811
    needs_runtime,  # noqa: F811
    tmp_path,
    capsys,
    bits,
):
    world = tiny.world()
    world.dynamics = tiny.dynamics(transformer=replace(tiny.SMALL, width=128, hidden=256))
    whole, few = tmp_path / "whole.html", tmp_path / "few.html"
    plays(open_page, whole, world)
    plays(open_page, few, world, bits)
    assert "dB rounded" in capsys.readouterr().out
    assert few.stat().st_size < whole.stat().st_size - 10_000


def plays(open_page, out, world, bits=32):  # noqa: F811
    """Export a world, and compare its frames in the page; a pixel that lies between two may round the other way."""
    space = world.config.actions
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, *world.config.frame), np.uint8)
    starts = [(frames[:2], None), (frames, None if world.lam or not space.size else space.nth([0, 1, 0]))]
    export_world(world, out, starts=starts, bits=bits)
    page = open_page(out.as_uri(), offline=True)
    page.wait_for_function("() => /Checked|differ/.test(document.getElementById('note').textContent)")
    actions = rng.integers(0, space.count, 16).tolist()
    played = world if bits == 32 else rounded(world, bits)
    for temperature in (0, 100):
        how = (SEED, temperature, actions)
        pairs = zip(
            frames_in_page(page, world.config.frame, 1, *how),
            frames_of_session(played, starts[1], *how),
            strict=True,
        )
        for at, (got, want) in enumerate(pairs):
            most = np.abs(got[0].astype(int) - want[0]).max()
            assert most <= 1, f"frame {at} at temperature {temperature} differs by {most}"
            assert got[1] == pytest.approx(want[1], rel=1e-2, nan_ok=True)


def test_a_folder_plays_from_a_server_and_says_so_on_disk(open_page, browser, needs_runtime, tmp_path):  # noqa: F811
    out = export_world(tiny.world(), tmp_path / "site")
    serve = partial(SimpleHTTPRequestHandler, directory=str(out))
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        page = open_page(f"http://127.0.0.1:{server.server_port}/")
        says(page, "note", "Checked: 18 of 18 frames")
        server.shutdown()
    page = browser.new_page()
    page.goto((out / "index.html").as_uri())
    page.get_by_text("serve this folder").first.wait_for()


def test_256_frames_of_the_world_that_ships_are_the_same_bits(open_page, exported):  # noqa: F811
    page = open_page(exported.as_uri(), offline=True)
    world, starts = load(RUN), initial_frames(RUN)
    actions = np.random.default_rng(2).integers(0, 4, 256).tolist()
    for temperature in (0, 100):
        how = (SEED, temperature, actions)
        both = frames_in_page(page, world.config.frame, 1, *how), frames_of_session(world, starts[1], *how)
        np.testing.assert_array_equal(*([frame for frame, _ in frames] for frames in both))
