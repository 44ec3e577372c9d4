"""Record docs/playing.gif: the included world on its page, played by keys in Chromium, in real time.

``python tests/playing_gif.py docs/playing.gif``. Needs Chromium (see ``browsing``) and a machine that is not busy.
"""

import base64
import io
import sys
from pathlib import Path

from browsing import CHROMIUM, FLAGS, at_step, says
from PIL import Image
from playground import playing
from playwright.sync_api import ViewportSize, sync_playwright

import reverie
from reverie.catalogue import shipped
from reverie.world_folder import initial_frames

VIEW: ViewportSize = {"width": 920, "height": 720}
KEYS = {"R": "ArrowRight", "L": "ArrowLeft", "J": "ArrowUp"}
PLAY = {4: "RJRRRRLLJLRRJRRR", 3: "JRJRRRLJLLLLJLJ", 1: "RRRLLLRJRRRRRR"}  # start -> a key per frame; all coins
REST = 400  # milliseconds before the first key, and after the last
RATE = 12.5  # frames a second of the GIF, whose clock counts hundredths

# Hold the key of each step while the page waits for it. From outside, a key comes a step late on a busy machine.
HANDS = """(keys) => {
    const step = document.getElementById("step");
    const press = (type, code) => code && dispatchEvent(new KeyboardEvent(type, { key: code, code }));
    let held;
    const play = () => {
        const next = keys[Number(step.textContent)];
        if (next !== held) [press("keyup", held), press("keydown", next)];
        held = next;
        if (!next) watch.disconnect();
    };
    const watch = new MutationObserver(play);
    watch.observe(step, { childList: true });
    play();
}"""


def record(page) -> list[tuple[float, Image.Image]]:
    """Play each start; return (seconds, picture) of every change of the page."""
    seen: list[tuple[float, Image.Image]] = []
    chrome = page.context.new_cdp_session(page)

    def take(frame) -> None:
        seen.append((frame["metadata"]["timestamp"], Image.open(io.BytesIO(base64.b64decode(frame["data"])))))
        chrome.send("Page.screencastFrameAck", {"sessionId": frame["sessionId"]})

    chrome.on("Page.screencastFrame", take)
    for start, keys in PLAY.items():
        page.locator("#starts button").nth(start).click()
        says(page, "badge", "Press a key")
        if not seen:
            chrome.send("Page.startScreencast", {"format": "png"})
        page.wait_for_timeout(REST)
        page.evaluate(HANDS, [KEYS[key] for key in keys])
        at_step(page, len(keys))
        page.wait_for_timeout(REST)
    chrome.remove_listener("Page.screencastFrame", take)
    chrome.send("Page.stopScreencast")
    return seen


def write_gif(path: Path, seen: list[tuple[float, Image.Image]]) -> None:
    """Write what the page showed every ``1 / RATE`` seconds, with one palette for all frames."""
    first, last = seen[0][0], seen[-1][0]
    moments = [first + index / RATE for index in range(int((last - first) * RATE) + 1)]
    frames = [[picture for at, picture in seen if at <= moment][-1].convert("RGB") for moment in moments]
    sheet = Image.new("RGB", (frames[0].width, frames[0].height * 4))
    for index in range(4):
        sheet.paste(frames[index * (len(frames) - 1) // 3], (0, index * frames[0].height))
    palette = sheet.quantize(256)
    head, *rest = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    head.save(path, save_all=True, append_images=rest, duration=round(1000 / RATE), loop=0, optimize=True)


def main(path: Path) -> None:
    world = reverie.load("platformer")
    with (
        playing(world, name="platformer", starts=initial_frames(shipped()["platformer"])) as (address, _),
        sync_playwright() as play,
    ):
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport=VIEW)
        page.goto(address)
        page.wait_for_selector("#veil", state="hidden")
        seen = record(page)
        browser.close()
    write_gif(path, seen)
    print(f"{path}: {len(seen)} pictures in {seen[-1][0] - seen[0][0]:.1f} s, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
