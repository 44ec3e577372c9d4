"""The page in a real browser.

Needs Chromium (Debian: ``apt install chromium``; elsewhere set ``CHROMIUM`` to its path); without it tests are skipped.
"""

import hashlib
import os
import shutil

import playground
import pytest

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = [  # a test machine is often root in a container, and stays on itself
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
    "--host-resolver-rules=MAP *.example 127.0.0.1",
]

needed = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found: install it, or set CHROMIUM to its path")


world, place = playground.world, playground.place


@pytest.fixture(scope="module")
def address(place):
    return place[0]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Open the page in a window of its own; what it writes to the console fails the test.

    The addresses it requests are added to ``asked``.
    """
    windows, wrong = [], []

    def open_page(address, asked=None, **options):
        window = browser.new_context(viewport={"width": 1280, "height": 800}, **options)
        windows.append(window)
        page = window.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda message: wrong.append(message.text) if matters(message) else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        if asked is not None:
            page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.wait_for_selector("#veil", state="hidden")
        return page

    yield open_page
    for window in windows:
        window.close()
    assert not wrong, wrong


def matters(message) -> bool:
    # A browser has no use for that header where a name is reached without https, as by the tests' proxy, and says so.
    return message.type == "error" and "Cross-Origin-Opener-Policy" not in message.text


def picture(page) -> str:
    """Return a hash of the canvas's pixels."""
    script = "Array.from(view.getContext('2d').getImageData(0, 0, view.width, view.height).data)"
    return hashlib.sha256(bytes(page.evaluate(script))).hexdigest()


def at_step(page, step: int) -> None:
    page.wait_for_function("at => Number(document.getElementById('step').textContent) >= at", arg=step)


def says(page, name: str, text: str) -> None:
    """Wait until an element says something. (Functions only: the page's policy forbids evaluating strings.)"""
    page.wait_for_function("([it, text]) => document.getElementById(it).textContent.includes(text)", arg=[name, text])
