"""What the page adds to the keys: WASD, gamepads, slow motion, taking back, full screen."""

import time

import browsing
from browsing import at_step, picture, says
from playground import playing, tiny_world

from reverie.actions import ActionSpace

browser, open_page = browsing.browser, browsing.open_page
world, place, address = browsing.world, browsing.place, browsing.address
pytestmark = browsing.needed

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
    says(page, "step", "0")
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
    at_step(page, first + 6)
    taken = time.monotonic() - began
    assert taken > 5 / (browsing.playground.FPS / 4), f"6 frames in {taken:.2f} s"
    page.keyboard.press("m")
    says(page, "slow", "1×")


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
