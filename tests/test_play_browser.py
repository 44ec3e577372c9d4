"""The page in a real browser: seen, pressed, touched, recorded, and replayed from a link."""

import io
import time
from dataclasses import replace

import browsing
import numpy as np
import pytest
from browsing import at_step, picture, says
from miniature import miniature
from PIL import Image
from playground import FPS, playing, recording, some_starts, tiny_world

from reverie.actions import ActionSpace
from reverie.data.sources.platformer import PlatformerConfig
from reverie.data.sources.square import SPACES
from reverie.data.store import open_dataset
from reverie.presets import preset
from reverie.training.checkpoint import steps
from reverie.training.engine import fit

browser, open_page = browsing.browser, browsing.open_page
world, place, address = browsing.world, browsing.place, browsing.address
pytestmark = browsing.needed


def test_keys_play_and_the_picture_changes(open_page, address, tmp_path):
    page = open_page(address)
    first = picture(page)
    assert page.inner_text("#step") == "0" and "Press a key" in page.inner_text("#badge")
    page.keyboard.down("ArrowRight")
    at_step(page, 8)
    assert page.locator("#pad button.on").get_attribute("aria-label") == "right"
    page.keyboard.up("ArrowRight")
    at_step(page, int(page.inner_text("#step")) + 3)
    assert page.locator("#pad button.on").get_attribute("aria-label") == "stay", "time goes on without a key"
    assert picture(page) != first
    page.wait_for_function("() => Number(document.getElementById('fps').textContent) > 0")
    assert 0 < float(page.inner_text("#p50")) < 1000
    assert page.screenshot(path=tmp_path / "play.png")
    page.keyboard.press("r")
    says(page, "badge", "Press a key")
    assert page.inner_text("#step") == "0"
    assert picture(page) == first


def test_no_key_sticks_and_one_that_is_still_down_acts_again(open_page, address):
    """Where a page does not hear that a key is let go: a menu, something dragged, Command on a Mac, another window."""
    page = open_page(address)

    def lit(name):
        at_step(page, int(page.inner_text("#step")) + 4)
        assert page.locator("#pad button.on").get_attribute("aria-label") == name

    for event in ("contextmenu", "dragstart", "keyup", "blur"):
        page.keyboard.down("ArrowRight")  # the second time as a keyboard repeats it: it has never been let go
        lit("right")
        page.evaluate("kind => dispatchEvent(Object.assign(new Event(kind), { key: 'Meta' }))", event)
        lit("stay")
    page.keyboard.up("ArrowRight")
    page.keyboard.down("ArrowRight")
    lit("right")
    page.keyboard.up("ArrowRight")
    lit("stay")


def test_step_by_step_waits_for_keys(open_page, address):
    page = open_page(address)
    page.keyboard.press("t")
    for step in (1, 2, 3):
        page.keyboard.press("ArrowLeft", delay=150)  # a finger rests on a key for some frames, and means one step
        says(page, "step", str(step))
    page.wait_for_timeout(250)
    assert page.inner_text("#step") == "3"
    page.keyboard.down("ArrowLeft")
    page.keyboard.down("ArrowLeft")  # what a keyboard sends for a key that stays down
    says(page, "step", "5")
    page.keyboard.up("ArrowLeft")


def test_a_link_replays_bit_for_bit(open_page, address):
    page = open_page(address)
    page.fill("#seed", "123")
    page.locator("#seed").blur()
    page.keyboard.press("t")
    page.locator("#starts button").nth(2).click()
    page.wait_for_selector("#veil", state="hidden")
    step = 0
    for key in ("ArrowRight", " ", " ", "ArrowLeft", "1", "1"):
        step += 1
        page.keyboard.press(key)
        at_step(page, step)
        page.evaluate("value => { document.getElementById('temperature').value = value }", 100 - step)
    page.click("#share")
    page.wait_for_selector("#link", state="visible")
    link = page.input_value("#link")
    assert "seed=123&start=2&play=" in link and len(link) < 150
    again = open_page(link)
    again.wait_for_selector("#badge.good")
    assert again.inner_text("#step") == str(step) and picture(again) == picture(page)
    digits = link[-8:]
    other = open_page(link.replace(digits, f"{int(digits, 16) ^ 1:08x}"))
    other.wait_for_selector("#badge.bad")


@pytest.mark.parametrize(
    "link", ["seed=x", "seed=1&start=0&play=!&end=00000000", "seed=1&start=-1&picture=AAAA&end=00000000"]
)
def test_a_broken_link_is_said_and_the_world_is_playable(open_page, address, link):
    page = open_page(f"{address}#{link}")
    assert "link" in page.inner_text("#message")
    page.keyboard.press("ArrowRight")
    at_step(page, 1)


def test_a_picture_of_ones_own_is_a_start_and_travels_in_the_link(open_page, address):
    page = open_page(address)
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(file, "PNG")
    before = picture(page)
    page.set_input_files("#file", {"name": "own.png", "mimeType": "image/png", "buffer": file.getvalue()})
    page.wait_for_selector("#starts button[aria-pressed=true][data-start='-1']")
    page.keyboard.press("2")
    at_step(page, 2)
    page.keyboard.press("t")
    page.wait_for_timeout(200)
    assert picture(page) != before
    page.click("#share")
    page.wait_for_selector("#link", state="visible")
    again = open_page(page.input_value("#link"))
    again.wait_for_selector("#badge.good")
    page.set_input_files("#file", {"name": "text.png", "mimeType": "image/png", "buffer": b"no picture"})
    says(page, "message", "not a picture")


@pytest.mark.parametrize(("format", "magic"), [("gif", b"GIF89a"), ("mp4", b"ftyp")])
def test_recordings_are_downloaded(open_page, address, format, magic):
    page = open_page(address)
    page.keyboard.press("ArrowRight")
    at_step(page, 4)
    with page.expect_download() as download:
        page.click(f"#{format}")
    assert download.value.suggested_filename == f"noise-0.{format}"
    assert magic in download.value.path().read_bytes()[:12]


def test_fits_a_phone_and_plays_by_touch(open_page, address, tmp_path):
    page = open_page(address, has_touch=True, is_mobile=True, device_scale_factor=2)
    page.set_viewport_size({"width": 390, "height": 844})
    page.locator("#pad .ArrowRight").tap()
    at_step(page, 2)
    box = page.locator("#pad .ArrowRight").bounding_box()
    assert box["height"] >= 44 and box["y"] + box["height"] < 844, "large enough for a thumb, and in sight"
    page.evaluate(
        "for (const [id, text] of [['p50', '1655'], ['p95', '11066']]) document.getElementById(id).textContent = text"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing sticks out, on a slow machine either"
    assert page.screenshot(path=tmp_path / "phone.png")


@pytest.mark.parametrize("kind", ["latent", "none"])
def test_worlds_without_names_can_be_played(open_page, kind):
    world = tiny_world(ActionSpace("latent", 4) if kind == "latent" else ActionSpace())
    with playing(world, starts=some_starts(0 if kind == "none" else 1)) as (address, _):
        page = open_page(address)
        assert page.inner_text("#note")
        page.keyboard.press("2" if kind == "latent" else " ")
        at_step(page, 3)
        page.goto("about:blank")


@pytest.mark.parametrize("kind", ["binary", "multi", "continuous"])
def test_keys_held_together_each_set_their_component(open_page, kind):
    def lit(page):
        return set(page.eval_on_selector_all("#pad button.on", "all => all.map(it => it.ariaLabel)")) - {"stay"}

    with playing(tiny_world(SPACES[kind]), starts=[(some_starts(1)[0][0], None)]) as (address, _):
        page = open_page(address)
        for key in ("ArrowUp", "ArrowLeft"):
            page.keyboard.down(key)
        at_step(page, 4)
        assert lit(page) == {"up", "left"}
        page.keyboard.up("ArrowUp")
        at_step(page, int(page.inner_text("#step")) + 4)
        assert lit(page) == {"left"}
        page.keyboard.up("ArrowLeft")
        at_step(page, int(page.inner_text("#step")) + 4)
        assert lit(page) == set(), "at rest"
        page.goto("about:blank")


def test_without_a_server_the_page_says_so_and_comes_back(open_page, world):
    with playing(world) as (address, _):
        page = open_page(address)
        port = int(address.rstrip("/").rpartition(":")[2])
    page.wait_for_selector("#veil", state="visible")
    assert "out of reach" in page.inner_text("#veil-text")
    with playing(world, port=port):
        page.wait_for_selector("#veil", state="hidden")
        page.goto("about:blank")


# ---- controls besides the keys --------------------------------------------------------------------------------------

PAD = """
() => {
  const buttons = Array.from({ length: 17 }, () => ({ pressed: false }));
  window.pad = { index: 0, connected: true, axes: [0, 0, 0, 0], buttons };
  navigator.getGamepads = () => [null, window.pad];
}
"""


def lit(page) -> str:
    at_step(page, int(page.inner_text("#step")) + 4)
    return page.locator("#pad button.on").get_attribute("aria-label")


def test_wasd_are_arrows_where_the_world_has_no_other_use_for_them(open_page, address):
    page = open_page(address)
    for key, name in (("d", "right"), ("a", "left"), ("ArrowRight", "right")):
        page.keyboard.down(key)
        assert lit(page) == name
        page.keyboard.up(key)
    assert "D" in page.inner_text("#keys")
    keys = ("", "ArrowLeft", "ArrowRight", "d")
    own = tiny_world(ActionSpace("discrete", 4, ("stay", "left", "right", "dig"), keys))
    with playing(own) as (there, _):
        page = open_page(there)
        page.keyboard.down("d")
        assert lit(page) == "dig"
        page.goto("about:blank")


def test_a_gamepad_plays(open_page, address):
    page = open_page(address)
    page.evaluate(PAD)
    for press, name, release in [
        ("pad.axes[0] = 1", "right", "pad.axes[0] = 0.2"),
        ("pad.buttons[14].pressed = true", "left", "pad.buttons[14].pressed = false"),
        ("pad.buttons[0].pressed = true", "stay", "pad.buttons[0].pressed = false"),
        ("pad.buttons[1].pressed = true", "jump", "pad.buttons[1].pressed = false"),
    ]:
        page.evaluate(f"() => {{ {press} }}")
        assert lit(page) == name
        page.evaluate(f"() => {{ {release} }}")
        assert lit(page) == "stay"


def test_what_is_taken_back_never_was(open_page, address):
    page = open_page(address)
    page.keyboard.press("t")
    seen = [picture(page)]
    for step, key in enumerate(("ArrowRight", "ArrowLeft", " ", "ArrowRight"), 1):
        page.keyboard.press(key)
        at_step(page, step)
        page.wait_for_timeout(50)
        seen.append(picture(page))
    assert len(set(seen)) == 5
    page.keyboard.press("u")
    says(page, "badge", "Taken back")
    assert page.inner_text("#step") == "3" and picture(page) == seen[3]
    page.keyboard.press("ArrowRight")
    says(page, "step", "4")
    page.wait_for_timeout(50)
    assert picture(page) == seen[4], "the same key leads to the same frame"
    page.click("#undo")
    says(page, "step", "3")
    page.click("#share")
    page.wait_for_selector("#link", state="visible")
    again = open_page(page.input_value("#link"))
    again.wait_for_selector("#badge.good")
    assert again.inner_text("#step") == "3" and picture(again) == seen[3]
    page.keyboard.press("t")  # in real time, a second at once
    page.keyboard.down("ArrowRight")
    at_step(page, 40)
    page.keyboard.up("ArrowRight")
    page.keyboard.press("u")
    says(page, "badge", "Taken back")
    assert 5 <= int(page.inner_text("#step")) < 40
    page.keyboard.press("r")
    page.wait_for_function("() => document.getElementById('step').textContent === '0'")  # 30 would also say "0"
    page.keyboard.press("u")
    assert picture(page) == seen[0]


def test_slow_motion_is_slow(open_page, address):
    page = open_page(address)
    page.click("#slow")
    page.keyboard.press("m")
    says(page, "slow", "0.25")
    page.keyboard.press("ArrowRight")
    at_step(page, 1)
    first, began = int(page.inner_text("#step")), time.monotonic()
    at_step(page, first + 16)
    taken = time.monotonic() - began
    # Of 16 frames some may come at once, if the page or the server was held up: two are made up for, others were asked
    # for before. At full speed all take half a second.
    assert taken > 10 / (FPS / 4), f"16 frames in {taken:.2f} s"
    page.keyboard.press("m")
    says(page, "slow", "1×")


def test_how_unsure_the_model_was_is_drawn_and_can_be_hidden(open_page, address):
    page = open_page(address)
    read = "uncertainty.getContext('2d').getImageData(0, 0, uncertainty.width, uncertainty.height)"
    drawn = f"() => {read}.data.some(Boolean)"
    assert not page.evaluate(drawn) and page.inner_text("#now") == "–"
    page.keyboard.press("ArrowRight")
    at_step(page, 4)
    assert page.evaluate(drawn) and page.inner_text("#now").endswith("bits per token")
    assert float(page.inner_text("#total")) > float(page.inner_text("#now").split()[0]) > 0
    page.keyboard.press("h")
    page.wait_for_selector("#unsure", state="hidden")
    assert page.get_attribute("#watch", "aria-pressed") == "false"
    page.click("#watch")
    page.wait_for_selector("#unsure", state="visible")
    page.keyboard.press("r")
    says(page, "badge", "Press a key")
    assert page.inner_text("#now") == "–" and not page.evaluate(drawn)


def test_full_screen_and_back(open_page, address, tmp_path):
    page = open_page(address)
    page.keyboard.press("f")
    page.wait_for_function("() => document.fullscreenElement?.id === 'stage'")
    page.keyboard.press("ArrowRight")
    at_step(page, 2)
    assert page.locator("#pad .ArrowRight").is_visible() and page.screenshot(path=tmp_path / "full.png")
    page.keyboard.press("f")
    page.wait_for_function("() => !document.fullscreenElement")
    assert page.screenshot(path=tmp_path / "page.png")


# ---- a real game ----------------------------------------------------------------------------------------------------


def begun(page):
    """Wait for the first frame of a take: until it comes, the page shows the step of the last one."""
    page.wait_for_function("() => document.getElementById('step').textContent === '0'")


def test_a_played_session_ends_in_a_store_that_trains(open_page, tmp_path):
    game = PlatformerConfig(tiles=6, tile=8)
    real, server = recording(game, tmp_path / "out")
    with server as (address, _):
        page = open_page(address)
        assert page.is_visible("#take") and not page.is_visible("#share") and not page.is_visible("#beginning")
        assert not page.is_visible("#unsure") and not page.is_visible("#watch"), "a real game is not generated"
        says(page, "badge", "the game begins")
        assert page.is_disabled("#keep")
        seeds = set()
        for take in (1, 2, 3):
            before = picture(page)
            page.keyboard.down("ArrowRight")
            at_step(page, 6)
            page.keyboard.up("ArrowRight")
            assert picture(page) != before
            says(page, "taken", f"{take - 1} take")
            seeds.add(page.input_value("#seed"))
            if take == 2:
                page.click("#discard")
                begun(page)
                page.keyboard.down("ArrowLeft")
                at_step(page, 6)
                page.keyboard.up("ArrowLeft")
            page.keyboard.press("k")
            says(page, "taken", f"{take} take")
            begun(page)
        assert len(seeds) == 3
        assert page.screenshot(path=tmp_path / "recording.png")
        page.goto("about:blank")
    store = real.takes.write()
    train = open_dataset(store, "train")
    assert train.spec.simulator == game and len(real.takes.files()) == 3
    recorded = np.concatenate([train.read(i, 0, int(n))["actions"] for i, n in enumerate(train.lengths)])
    assert {2} <= set(recorded.tolist()) and len(recorded) >= 2 * (1 + 6), "two takes train, one is held out"
    run = replace(miniature(preset("toy-maskgit"), train.spec.frame)["tokenizer"], steps=1, length=2)
    fit(run, tmp_path / "run", dataset=train, progress=False)
    assert steps(tmp_path / "run") == [1]
