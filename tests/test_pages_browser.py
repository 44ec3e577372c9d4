"""The pages of ``reverie eval`` and ``reverie show`` in a real browser, opened from disk."""

from itertools import product

from browsing import browser, needed  # noqa: F401  (a fixture)
from test_pages import evaluated, read, world  # noqa: F401  (fixtures)

from reverie.show import show

pytestmark = needed


def test_pages_open_from_disk_and_fit(browser, evaluated, world):  # noqa: F811
    show(world)
    files = (evaluated / "eval" / "index.html", world / "report.html")
    wrong, asked = [], []
    for width, scheme, file in product((1280, 400), ("light", "dark"), files):
        window = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
        page = window.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        assert page.title() and page.locator("h1").inner_text() == page.title()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{file.name} scrolls sideways"
        broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth || !i.alt).length"
        assert page.evaluate("document.images.length") == read(file).tags.count("img") > 0
        assert page.evaluate(broken) == 0
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 17, 22)"
        assert dark == (scheme == "dark")
        window.close()
    assert wrong == []
    assert {url for url in asked if not url.startswith("data:")} == {file.as_uri() for file in files}
