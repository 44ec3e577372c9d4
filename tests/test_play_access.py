"""The page by keyboard, by touch, by screen reader, after a reload, and through a proxy."""

import io
import re

import browsing
import numpy as np
import pytest
from browsing import at_step, picture, says
from PIL import Image
from playground import FRAME, playing, proxied, some_starts, tiny_world

from reverie.actions import ActionSpace

browser, open_page = browsing.browser, browsing.open_page
world, place, address = browsing.world, browsing.place, browsing.address
pytestmark = browsing.needed


def step_of(page) -> int:
    return int(page.inner_text("#step"))


def lit(page) -> str:
    return page.locator("#pad button.on").first.get_attribute("aria-label")


def plays_on(page, key: str = "ArrowRight", action: str = "right") -> None:
    """Wait until a key moves the world."""
    page.keyboard.down(key)
    at_step(page, step_of(page) + 3)
    page.wait_for_function(
        "name => document.querySelector('#pad button.on')?.ariaLabel === name", arg=action, timeout=10_000
    )
    page.keyboard.up(key)


def test_keys_play_on_after_everything_around_was_used(open_page, address):
    page = open_page(address)
    page.keyboard.press("ArrowLeft")
    at_step(page, 2)
    page.click("#share")
    page.wait_for_selector("#link", state="visible")
    plays_on(page)
    page.focus("#link")
    plays_on(page)
    for last in ("Enter", "ArrowRight", " "):  # taken as typed, with Enter or by playing on
        page.click("#seed")
        page.keyboard.press("Control+A")
        page.keyboard.type("12")
        page.keyboard.press(last)
        plays_on(page)
        assert page.input_value("#seed") == "12"
        assert page.evaluate("document.activeElement.id") != "seed", "the seed is taken, and no longer being typed"
    for name in ("#live", "#dice", "#reset", "#starts button"):
        page.locator(name).first.click(click_count=2 if name == "#live" else 1)  # step by step, and back
        plays_on(page, " ", "jump")
    page.locator("#temperature").click(position={"x": 5, "y": 5})
    warm = page.input_value("#temperature")
    plays_on(page)
    assert page.input_value("#temperature") == warm


def test_the_controls_answer_to_the_keyboard(open_page, address):
    page = open_page(address)
    page.keyboard.press("t")  # step by step: each press is one step
    steps = 0
    for press in ("Enter", " ", "click"):
        page.focus("#pad .ArrowRight")
        if press == "click":
            page.eval_on_selector("#pad .ArrowRight", "it => it.click()")  # as a screen reader does
        else:
            page.keyboard.press(press)
        steps += 1
        says(page, "step", str(steps))
        assert lit(page) == "right", press
    page.focus("#temperature")
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.input_value("#temperature") == "3" and page.inner_text("#temperature-shown") == "0.03"
    page.focus("#seed")
    page.keyboard.press("End")
    page.keyboard.type("7")
    assert page.input_value("#seed") == "07" and step_of(page) == steps, "digits are the seed's, arrows the slider's"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "dice"
    says(page, "step", "0")
    assert page.input_value("#seed") == "7"
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.getElementById('seed').value !== '7'")


def test_a_screen_reader_finds_names_and_hears_what_happens(open_page, address):
    page = open_page(address)
    nameless = page.eval_on_selector_all(
        "button, input:not([hidden]), canvas",
        "all => all.filter(it => it.checkVisibility() && !(it.ariaLabel || it.innerText?.trim() || it.labels?.length"
        " || it.querySelector('img[alt]'))).map(it => it.outerHTML)",
    )
    assert not nameless
    for name in ("right", "jump"):
        page.get_by_role("button", name=name, exact=True).wait_for()
    page.get_by_role("group", name="actions").wait_for()
    assert "Press a key" in page.locator("#status[role=status]").text_content()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => !document.getElementById('status').textContent")


def test_a_link_brings_its_temperature_along(open_page, address):
    page = open_page(address)
    page.keyboard.press("t")
    for step, warm in enumerate((30, 170), 1):
        page.evaluate("warm => { document.getElementById('temperature').value = warm }", warm)
        page.keyboard.press("ArrowRight")
        says(page, "step", str(step))
    for warm in (170, 55):  # of the last step, or moved since
        page.evaluate("warm => { document.getElementById('temperature').value = warm }", warm)
        page.click("#share")
        page.wait_for_selector("#link", state="visible")
        again = open_page(page.input_value("#link"))
        again.wait_for_selector("#badge.good")
        assert again.input_value("#temperature") == str(warm)
        assert again.inner_text("#temperature-shown") == f"{warm / 100:.2f}"
    page.keyboard.press("r")
    says(page, "badge", "")
    page.click("#share")
    fresh = open_page(page.input_value("#link"))
    assert fresh.input_value("#temperature") == "55", "also without a step"


def test_a_reload_keeps_the_session(open_page, address):
    page = open_page(address)
    page.keyboard.press("t")
    drawing = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)).save(drawing, "PNG")
    page.set_input_files("#file", {"name": "own.png", "mimeType": "image/png", "buffer": drawing.getvalue()})
    page.wait_for_selector("#starts button[aria-pressed=true][data-start='-1']")
    page.fill("#seed", "99")
    page.locator("#seed").blur()
    for step, key in enumerate(("ArrowRight", " ", "ArrowLeft"), 1):
        page.wait_for_selector("#veil", state="hidden")
        page.keyboard.press(key)
        says(page, "step", str(step))
    page.evaluate("() => { document.getElementById('temperature').value = 42 }")
    seen = picture(page)
    for _ in range(2):  # and once more
        page.reload()
        says(page, "badge", "Your session is back")
        assert page.inner_text("#step") == "3" and picture(page) == seen
        assert page.input_value("#seed") == "99" and page.input_value("#temperature") == "42"
        assert "step by step" in page.inner_text("#live")
    page.keyboard.press("ArrowRight")
    says(page, "step", "4")
    page.keyboard.press("r")
    says(page, "step", "0")
    page.reload()
    page.wait_for_selector("#veil", state="hidden")
    assert page.inner_text("#step") == "0" and page.input_value("#seed") == "99"


def test_a_lost_connection_brings_the_session_back(open_page, world):
    with playing(world) as (address, _):
        page = open_page(address)
        page.keyboard.press("t")
        page.keyboard.press("ArrowRight")
        says(page, "step", "1")
        seen, port = picture(page), int(re.search(r":(\d+)", address).group(1))
    page.wait_for_selector("#veil", state="visible")
    with playing(world, port=port):
        says(page, "badge", "Your session is back")
        assert picture(page) == seen
        page.goto("about:blank")


@pytest.fixture(scope="module")
def arrows():
    """A world whose pad is as high as pads are."""
    keys = ("ArrowDown", "ArrowLeft", "ArrowRight", "ArrowUp")
    with playing(tiny_world(ActionSpace("discrete", 4, ("stay", "left", "right", "jump"), keys))) as (address, _):
        yield address


@pytest.mark.parametrize(("width", "height"), [(844, 390), (667, 375), (568, 320)])
def test_a_phone_on_its_side_sees_the_picture_and_the_pad(open_page, arrows, tmp_path, width, height):
    page = open_page(arrows, has_touch=True, is_mobile=True, device_scale_factor=2)
    page.set_viewport_size({"width": width, "height": height})
    page.wait_for_timeout(200)
    assert page.screenshot(path=tmp_path / "landscape.png")
    for name in ("#view", *(f"#pad button[data-action='{action}']" for action in range(4))):
        box = page.locator(name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width, (name, box)
        assert box["y"] >= 0 and box["y"] + box["height"] <= height, (name, box)
        assert name == "#view" or box["height"] >= 44
    assert page.locator("#view").bounding_box()["height"] > height / 2
    page.locator("#pad .ArrowRight").tap()
    at_step(page, 2)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_line_says_when_nothing_moves_any_more(open_page, world):
    with playing(world) as (address, _):
        page = open_page(address)
        for key in ("ArrowLeft", "ArrowRight") * 10:
            page.keyboard.press(key, delay=100)
        assert "Nothing" not in page.inner_text("#badge")
        page.goto("about:blank")
    world = tiny_world()
    pixels = world.tokenizer.pixels
    pixels.kernel[...] = pixels.kernel[...] * 0  # paints the same picture whatever was generated
    with playing(world) as (address, _):
        page = open_page(address)
        page.keyboard.press("ArrowLeft")
        page.wait_for_timeout(1000)
        page.keyboard.press("ArrowRight")
        says(page, "badge", "Nothing has moved for")
        assert "Nothing has moved" in page.locator("#status[role=status]").text_content()
        page.keyboard.press("r")
        says(page, "badge", "Press a key")
        page.goto("about:blank")


@pytest.mark.parametrize(("prefix", "host"), [("/worlds/noise/", None), ("/a/", "127.0.0.1:8000")])
def test_the_page_plays_through_a_proxy_under_a_path(open_page, world, prefix, host):
    with (
        playing(world, starts=[some_starts(1)[0]], allow_hosts=["play.example"]) as (address, _),
        proxied(address, prefix, host) as port,
    ):
        page = open_page(f"http://play.example:{port}{prefix}")
        page.keyboard.press("ArrowRight")
        at_step(page, 2)
        tile = page.locator("#starts img").first
        assert tile.evaluate("it => it.decode().then(() => it.naturalWidth)") == FRAME[1]
        page.goto("about:blank")


def test_a_page_that_is_refused_says_what_to_do(browser, world):
    """The page comes, since the proxy writes its own Host; the websocket does not."""
    with playing(world) as (address, _), proxied(address, "/a/", "127.0.0.1:8000") as port:
        page = browser.new_page()
        page.goto(f"http://play.example:{port}/a/")
        says(page, "veil-text", "--allow-host play.example")
        page.close()
