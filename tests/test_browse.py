"""``reverie data browse``: what the page is sent, who gets it, and what a person sees in a real browser."""

import json
import shutil

import browsing
import numpy as np
import pytest
from playground import ask, running
from test_combining import files

from reverie.data.copying import opened
from reverie.data.sources.square import SquareConfig
from reverie.data.store import write_store
from reverie.errors import ReverieError
from reverie.play import browsing as pages

browser, open_page = browsing.browser, browsing.open_page
EVIL = "<img src=x onerror=alert(1)>"
LENGTH, COUNT = 20, 23


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    source = SquareConfig(count=COUNT + 2, frames=LENGTH)
    episodes = list(source.episodes())
    for number, episode in enumerate(episodes):
        episode.rewards[:] = 0
        episode.rewards[5], episode.source, episode.task = number / 2, f"level {number}", EVIL if number == 1 else ""
    episodes[0].ends[-1] = True
    path = tmp_path_factory.mktemp("browse") / "store"
    about = {"notes": [EVIL], "codec": "png"}
    return write_store(path, source.spec(), {"train": episodes[:COUNT], "val": episodes[COUNT:]}, **about)


@pytest.fixture(scope="module")
def address(store):
    with running(*pages.prepare(store, 0)) as (address, _):
        yield address


def asked(address, path):
    status, headers, body = ask(address, path)
    assert status == 200 and headers["content-type"].startswith("application/json")
    return json.loads(body)


def test_the_page_is_sent_what_the_store_holds(address, store):
    before, whole = files(store), opened(store)
    about = asked(address, "/about")
    assert about["splits"]["train"] == {"episodes": COUNT, "frames": COUNT * LENGTH} and len(about["splits"]) == 2
    assert about["packing"].startswith("codec: png") and about["notes"] == [EVIL]
    rows = asked(address, "/rows?split=train&first=20")
    assert [row["number"] for row in rows] == [20, 21, 22] and rows[0]["source"] == "level 20"
    assert len(asked(address, "/rows?split=train&first=0")) == pages.ROWS == about["rows"]
    train = whole.splits["train"]
    for number in (0, 7):
        episode, read = asked(address, f"/episode?split=train&number={number}"), train.read(number, 0, LENGTH)
        space = train.spec.actions
        assert [episode["names"][at] for at in episode["actions"]] == [space.name_of(one) for one in read["actions"]]
        assert np.allclose(episode["rewards"], read["rewards"]) and episode["return"] == number / 2
        assert episode["ends"] == ([LENGTH - 1] if number == 0 else []) and episode["whole"]
        status, _, body = ask(address, f"/frames?split=train&number={number}&start=3")
        assert status == 200 and body == read["frames"][3:].tobytes()
    assert files(store) == before


def test_long_episodes_and_large_frames_come_in_parts(store, monkeypatch):
    monkeypatch.setattr(pages, "LONGEST", 9)
    monkeypatch.setattr(pages, "SENT", 2 * 32 * 32 * 3 + 5)
    browsed = pages.Browsed(opened(store))
    assert len(browsed.episode("val", 1)["actions"]) == 9 and not browsed.episode("val", 1)["whole"]
    assert len(browsed.frames("val", 1, 4)) == 2 * 32 * 32 * 3 and len(browsed.frames("val", 1, 19)) == 32 * 32 * 3
    monkeypatch.setattr(pages, "SENT", 1)
    assert len(browsed.frames("val", 1, 4)) == 32 * 32 * 3


def test_what_is_not_there_is_refused(address):
    for path in (
        *("/rows?split=test&first=0", "/rows?split=train&first=23", "/rows?split=train&first=-1", "/rows?split=train"),
        *("/episode?split=train&number=x", f"/episode?split=train&number={'9' * 5000}", "/episode?split=val&number=2"),
        *("/frames?split=val&number=0&start=20", "/nothing", "/../server.py", "/%2e%2e/host.py", "/manifest.json"),
    ):
        assert ask(address, path)[0] == 404, path
    assert ask(address, "/about", host="evil.example")[0] == 403
    status, headers, _ = ask(address, "/")
    assert status == 200 and headers["content-security-policy"].startswith("default-src 'self'")
    with pytest.raises(ReverieError, match="is in use"):
        pages.prepare.__globals__["listen"]("127.0.0.1", int(address.rstrip("/").rpartition(":")[2]), False)


def shows(page, frame, expected):
    """Wait until the page shows a frame (H, W, 3) under its number."""
    script = "() => Array.from(view.getContext('2d').getImageData(0, 0, view.width, view.height).data)"
    for _ in range(300):
        if page.inner_text("#frame") == f"{frame} of {LENGTH - 1}":
            pixels = np.array(page.evaluate(script), np.uint8)
            if pixels.size == 32 * 32 * 4 and np.array_equal(pixels.reshape(32, 32, 4)[..., :3], expected):
                return
        page.wait_for_timeout(100)
    raise AssertionError(f"frame {frame} is not shown")


@browsing.needed
@pytest.mark.parametrize("width", [1280, 400])
def test_an_episode_is_seen_and_played_with_keys(open_page, address, store, width):
    page, train = open_page(address), opened(store).splits["train"]
    page.set_viewport_size({"width": width, "height": 800})

    def is_frame(episode, frame):
        shows(page, frame, train.read(episode, frame, 1)["frames"][0])

    is_frame(0, 0)
    page.keyboard.press("ArrowDown")
    page.wait_for_function("() => location.hash === '#train/1'")
    is_frame(1, 0)
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    is_frame(1, 5)
    assert page.inner_text("#action").endswith("reward 0.5") and EVIL in page.inner_text("#about")
    assert page.inner_text("#notes") == EVIL and page.locator("aside img").count() == 0
    page.keyboard.press("ArrowLeft")
    is_frame(1, 4)
    page.keyboard.press("s")
    page.keyboard.press(" ")
    assert page.inner_text("#speed") == "2×"
    is_frame(1, LENGTH - 1)  # it plays to the end, and stops there
    page.wait_for_selector("#play[aria-pressed=false]")
    page.keyboard.press("PageDown")
    page.wait_for_function("() => document.getElementById('page').textContent === '21–23 of 23'")
    page.wait_for_function("() => document.getElementById('episode-22')?.textContent.includes('return 11')")
    page.click("#splits button[value=val]")
    page.wait_for_function("() => location.hash === '#val/0'")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing hangs over the edge"
    assert page.evaluate("[...document.querySelectorAll('#screen')].every(it => view.clientHeight <= it.clientHeight)")


@browsing.needed
def test_a_damaged_episode_costs_a_line(browser, store, tmp_path):
    copy = shutil.copytree(store, tmp_path / "copy")
    with running(*pages.prepare(copy, 0)) as (address, _):
        file = copy / "train-00000.array_record"
        data = bytearray(file.read_bytes())
        middle = len(bytes(data).rstrip(b"\0")) // 4
        data[middle : middle + 64] = bytes(byte ^ 255 for byte in data[middle : middle + 64])
        file.write_bytes(data)
        page = browser.new_page()
        page.goto(f"{address}#train/0")
        shows(page, 0, opened(store).splits["train"].read(0, 0, 1)["frames"][0])
        page.wait_for_function("() => document.getElementById('episodes').textContent.includes('cannot be read')")
        assert "return 0" in page.inner_text("#episode-0")
        page.close()
