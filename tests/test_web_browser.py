"""A page without a server in a real browser, opened from disk: the same frames as ``Session``, and no request."""

import base64
import io

import browsing
import numpy as np
import pytest
from browsing import at_step, says
from PIL import Image

from reverie.cli import main
from reverie.errors import ReverieError
from reverie.library import shipped
from reverie.training.checkpoint import load
from reverie.web.runtime import runtime
from reverie.world import Session
from reverie.world_folder import initial_frames

browser, open_page = browsing.browser, browsing.open_page
pytestmark = browsing.needed
RUN = shipped()["platformer"]
SEED = 2**31 - 1

# Play as the page does, without its clock: returns each frame's bytes, and how unsure the world was of it.
PLAY = """async ([start, seed, temperature, actions]) => {
    const { Wire } = await import("wire.js");
    const frames = [];
    let done, wire;
    const all = new Promise((resolve, reject) => (done = [resolve, reject]));
    const on = {
        world() { wire.checked = true; wire.send({ type: "reset", seed, start }); },
        frame({ bytes, step, unsure }) {
            frames.push([bytes, unsure ?? NaN]);
            if (step === actions.length) done[0]();
            else wire.send({ type: "step", action: actions[step], temperature });
        },
        bye({ text }) { done[1](new Error(text)); },
        closed() {},
    };
    wire = new Wire(on);
    await all;
    wire.model.close();
    return frames.map(([bytes, unsure]) => [btoa(String.fromCharCode(...bytes)), unsure]);
}"""


def frames_in_page(page, shape, *how):
    found = page.evaluate(PLAY, list(how))
    return [(np.frombuffer(base64.b64decode(text), np.uint8).reshape(shape), unsure) for text, unsure in found]


def frames_of_session(world, start, seed, temperature, actions):
    session = Session(world, seed, temperature / 100)
    first = session.reset(*start), np.nan
    steps = (session.step(session.actions.nth(a) if session.actions.size else 0) for a in actions)
    return [first, *((frame, session.uncertainty) for frame in steps)]


@pytest.fixture(scope="module")
def needs_runtime():
    try:
        runtime()
    except ReverieError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def exported(needs_runtime, tmp_path_factory):
    """The world that ships, as a page in one file."""
    out = tmp_path_factory.mktemp("web") / "x.html"
    assert main(["export", "platformer", "--web", str(out), "--licence", "CC0"]) == 0
    return out


def test_from_disk_the_frames_are_those_of_a_session_and_nothing_is_asked_for(open_page, exported):
    assert exported.stat().st_size <= 8e6
    asked = []
    page = open_page(exported.as_uri(), asked, offline=True)
    says(page, "note", "Checked: 18 of 18 frames are those recorded at export, bit for bit.")
    assert "Licence: CC0." in page.inner_text("#note")
    world, starts = load(RUN), initial_frames(RUN)
    actions = np.random.default_rng(1).integers(0, 4, 16).tolist()
    for temperature in (0, 100):
        how = (SEED, temperature, actions)
        expected = frames_of_session(world, starts[3], *how)
        for at, (got, want) in enumerate(zip(frames_in_page(page, world.config.frame, 3, *how), expected, strict=True)):
            np.testing.assert_array_equal(got[0], want[0], err_msg=f"frame {at} at temperature {temperature}")
            assert got[1] == pytest.approx(want[1], rel=1e-3, nan_ok=True)
    assert {address for address in asked if not address.startswith(("data:", "blob:"))} == {exported.as_uri()}


def test_it_plays_on_a_phone_saves_a_gif_and_replays_a_link(open_page, exported, tmp_path):
    page = open_page(exported.as_uri(), offline=True, has_touch=True, is_mobile=True, device_scale_factor=2)
    page.set_viewport_size({"width": 390, "height": 844})
    page.locator("#pad .ArrowRight").tap()
    at_step(page, 4)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#starts img").count() == 8 and page.locator("#mp4").is_hidden()
    page.screenshot(path=tmp_path / "phone.png")
    with page.expect_download() as download:
        page.click("#gif")
    saved = download.value.path().read_bytes()
    check_gif(saved)
    page.click("#share")
    page.wait_for_selector("#link", state="visible")
    again = open_page(page.input_value("#link"), offline=True)
    again.wait_for_selector("#badge.good")


def check_gif(data):
    with Image.open(io.BytesIO(data)) as image:
        count = getattr(image, "n_frames", 1)
        assert count >= 5 and image.size == (256, 256)
        pictures = []
        for at in range(count):
            image.seek(at)
            pictures.append(np.asarray(image.convert("RGB")))
    first = Session(load(RUN)).reset(*initial_frames(RUN)[0]).repeat(4, axis=0).repeat(4, axis=1)
    assert np.abs(pictures[0].astype(int) - first).mean() < 4, "256 colours for a picture of few"
    assert any((picture != pictures[0]).any() for picture in pictures[1:])
