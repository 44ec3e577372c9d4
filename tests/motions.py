"""Fast motion without a cut, and cuts between scenes alike and unlike: what the cut detector is measured on.

Every motion is a function of seconds, so that one motion exists at every rate. All pictures are uint8 (64,64,3).
"""

import numpy as np
from PIL import Image

SIDE = 64


def textured(rng, height, width, grain=8, smooth=False):
    """A picture of random colours, in blocks or flowing."""
    small = rng.integers(0, 256, (max(2, height // grain), max(2, width // grain), 3)).astype(np.uint8)
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(small).resize((width, height), how))


def room(rng, width=640, palette=None):
    """A panorama of walls, windows and doors between a floor and a ceiling, in few colours."""
    palette = rng.integers(20, 230, (8, 3)) if palette is None else palette
    view = np.zeros((SIDE, width, 3), np.uint8)
    view[:20], view[44:] = palette[0], palette[1]
    at = 0
    while at < width:
        wide = int(rng.integers(10, 60))
        view[12:50, at : at + wide] = palette[rng.integers(2, 8)]
        top, left = int(rng.integers(14, 30)), at + int(rng.integers(0, wide))
        view[top : top + int(rng.integers(6, 20)), left : left + int(rng.integers(4, 16))] = palette[rng.integers(2, 8)]
        at += wide
    return np.clip(view + rng.integers(-12, 13, view.shape), 0, 255).astype(np.uint8)


def seen(panorama, left, top=0.0):
    """What a window at (top, left) shows; the panorama goes round."""
    rows = (round(top) + np.arange(SIDE)) % panorama.shape[0]
    columns = (round(left) + np.arange(SIDE)) % panorama.shape[1]
    return panorama[rows[:, None], columns]


def transformed(picture, turn=0.0, zoom=1.0):
    """The middle of a larger picture, turned (radians) and enlarged."""
    c, s = np.cos(turn) / zoom, np.sin(turn) / zoom
    y, x = picture.shape[0] / 2, picture.shape[1] / 2
    h = SIDE / 2
    image = Image.fromarray(picture)
    moved = image.transform(
        (SIDE, SIDE),
        Image.Transform.AFFINE,
        (c, -s, x - c * h + s * h, s, c, y - s * h - c * h),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(moved)


def _times(rate, seconds=4.0):
    return np.arange(int(rate * seconds)) / rate


def spin(rng, rate, speed, make=room):
    """The camera turns for ever; speed: pixels a second, of views 64 wide."""
    world = make(rng)
    return [seen(world, speed * t) for t in _times(rate)]


def flick(rng, rate, make=room, hold=0.4, turning=0.15, reach=(60, 250)):
    """The camera rests, turns quickly, rests again."""
    world, frames, at, to, since = make(rng), [], 0.0, 0.0, -hold
    for t in _times(rate):
        while t >= since + hold + turning:
            since, at = since + hold + turning, to
            to = at + rng.choice((-1, 1)) * rng.uniform(*reach)
        part = np.clip((t - since - hold) / turning, 0, 1)
        frames.append(seen(world, at + (to - at) * (3 * part**2 - 2 * part**3)))
    return frames


def roll(rng, rate, speed):
    """The picture turns about its middle; speed: radians a second."""
    world = textured(rng, 128, 128, 16)
    return [transformed(world, speed * t) for t in _times(rate)]


def flight(rng, rate, speed):
    """Into a picture that holds itself without end; speed: octaves a second."""
    world = [textured(rng, 128, 128, 4 * 2**k, smooth=True).astype(np.float32) for k in range(5)]
    frames = []
    for t in _times(rate):
        octave = speed * t
        parts, weights = [], []
        for k, picture in enumerate(world):
            at = (octave + k) % len(world)  # each layer grows from nothing, fades in and out
            parts.append(np.asarray(transformed(picture.astype(np.uint8), zoom=2 ** (at - 2)), np.float32))
            weights.append(np.sin(np.pi * at / len(world)) ** 2)
        mean = sum(w * p for w, p in zip(weights, parts, strict=True)) / sum(weights)
        frames.append(np.clip((mean - 127) * 1.8 + 127, 0, 255).astype(np.uint8))
    return frames


def stars(rng, rate, speed):
    """Through a field of bright balls; speed: depths a second."""
    places = rng.uniform(-1, 1, (60, 2))
    depths, colours = rng.uniform(0, 1, 60), rng.integers(80, 256, (60, 3))
    yy, xx = np.mgrid[:SIDE, :SIDE]
    frames = []
    for t in _times(rate):
        frame = np.zeros((SIDE, SIDE, 3), np.uint8)
        depth = 0.08 + (depths - speed * t) % 1
        for i in np.argsort(-depth):
            x, y = 32 + 24 * places[i] / depth[i]
            frame[(xx - x) ** 2 + (yy - y) ** 2 < (2.0 / depth[i]) ** 2] = colours[i]
        frames.append(frame)
    return frames


def noise(rng, rate, grain):
    """Nothing stays from frame to frame."""
    return [textured(rng, SIDE, SIDE, grain) for _ in _times(rate)]


def bursts(rng, rate, make=room):
    """Stills between which all is noise for a while."""
    view, frames = seen(make(rng), 0), []
    for t in _times(rate):
        frames.append(textured(rng, SIDE, SIDE, 8) if t % 1.0 > 0.6 else view)
    return frames


def scroll(rng, rate, speed, grain=8):
    """A texture runs past, across and down."""
    world = textured(rng, 256, 256, grain)
    return [seen(world, speed * t, 0.7 * speed * t) for t in _times(rate)]


def shake(rng, rate, reach, make=room):
    """The camera trembles."""
    world, top = make(rng), 0
    return [seen(world, 200 + rng.uniform(-reach, reach), top + rng.uniform(-reach, reach) / 4) for _ in _times(rate)]


def flashes(rng, rate, lasting, every=0.5):
    """White for a moment, again and again, over a slow pan."""
    world, white = room(rng), np.full((SIDE, SIDE, 3), 255, np.uint8)
    return [white if t % every < lasting else seen(world, 20 * t) for t in _times(rate)]


def lights(rng, rate, every=0.4):
    """The light goes off and on."""
    world = room(rng)
    return [(seen(world, 10 * t) * (0.25 if t % (2 * every) >= every else 1.0)).astype(np.uint8) for t in _times(rate)]


def disco(rng, rate, every=0.3):
    """Coloured light that changes."""
    world, tints = room(rng), rng.uniform(0.2, 1.0, (99, 3))
    return [(seen(world, 10 * t) * tints[int(t / every)]).astype(np.uint8) for t in _times(rate)]


def crowd(rng, rate, speed, size=24):
    """Large things fly about before a still ground."""
    ground, sprites = textured(rng, SIDE, SIDE, 16), [textured(rng, size, size, 8) for _ in range(4)]
    way, start = rng.uniform(-1, 1, (4, 2)) * speed, rng.uniform(0, SIDE, (4, 2))
    frames = []
    for t in _times(rate):
        frame = ground.copy()
        for sprite, v, s in zip(sprites, way, start, strict=True):
            y, x = np.abs((s + v * t) % (2 * (SIDE - size)) - (SIDE - size)).astype(int)
            frame[y : y + size, x : x + size] = sprite
        frames.append(frame)
    return frames


def passing(rng, rate, speed):
    """Something as large as the picture passes before a still scene, every second."""
    ground, bus = seen(room(rng), 0), textured(rng, SIDE, 96, 16)
    frames = []
    for t in _times(rate):
        left = int(SIDE - speed * (t % 1.0))
        frame = ground.copy()
        if -96 < left < SIDE:
            a, b = max(0, left), min(SIDE, left + 96)
            frame[:, a:b] = bus[:, a - left : b - left]
        frames.append(frame)
    return frames


def tunnel(rng, rate, speed, turn):
    """Along a tube with a pattern on its wall; speed: rings a second."""
    wall = textured(rng, 64, 64, 8)
    yy, xx = np.mgrid[:SIDE, :SIDE] - 31.5
    radius, angle = np.hypot(yy, xx) + 1, np.arctan2(yy, xx)
    return [
        wall[((300 / radius + 8 * speed * t) % 64).astype(int), ((angle / np.pi + 1 + turn * t) * 32 % 64).astype(int)]
        for t in _times(rate)
    ]


def dark(rng):
    """A room of which no pixel is lighter than 30 of 255."""
    return (room(rng) * 0.12).astype(np.uint8)


def level(rng):
    """A level of a game: sky above ground that rises and falls by whole blocks, with ledges in between."""
    world, ground = np.full((SIDE, 960, 3), (92, 148, 252), np.uint8), 44
    for at in range(0, world.shape[1], 16):
        ground = int(np.clip(ground + 8 * rng.integers(-1, 2), 30, 56)) if rng.random() < 0.3 else ground
        world[ground:, at : at + 16] = 160, 82, 30
        if rng.random() < 0.3:
            top = int(rng.integers(8, 28))
            world[top : top + 8, at : at + 16] = 230, 150, 40
    return world


def blocky(rng):
    return textured(rng, SIDE, 640)


def flowing(rng):
    return textured(rng, SIDE, 640, 16, smooth=True)


MOTIONS = {
    "spin, 5 views a second": lambda r, f: spin(r, f, 320),
    "spin, 15 views a second": lambda r, f: spin(r, f, 950),
    "spin of blocks": lambda r, f: spin(r, f, 700, blocky),
    "spin of colours": lambda r, f: spin(r, f, 500, flowing),
    "flick turns": flick,
    "flick turns, short": lambda r, f: flick(r, f, turning=0.1),
    "flick turns, long": lambda r, f: flick(r, f, hold=0.25, turning=0.3, reach=(150, 300)),
    "flick turns of blocks": lambda r, f: flick(r, f, blocky),
    "flick turns of colours": lambda r, f: flick(r, f, flowing),
    "roll": lambda r, f: roll(r, f, 4.0),
    "fast roll": lambda r, f: roll(r, f, 15.0),
    "flight": lambda r, f: flight(r, f, 2.0),
    "fast flight": lambda r, f: flight(r, f, 6.0),
    "stars": lambda r, f: stars(r, f, 0.5),
    "fast stars": lambda r, f: stars(r, f, 3.0),
    "noise": lambda r, f: noise(r, f, 8),
    "coarse noise": lambda r, f: noise(r, f, 32),
    "bursts of noise": bursts,
    "scroll": lambda r, f: scroll(r, f, 200),
    "fast scroll": lambda r, f: scroll(r, f, 1500),
    "fast scroll, coarse": lambda r, f: scroll(r, f, 1500, 32),
    "shake": lambda r, f: shake(r, f, 15),
    "wild shake": lambda r, f: shake(r, f, 60, blocky),
    "flashes": lambda r, f: flashes(r, f, 0.1),
    "long flashes": lambda r, f: flashes(r, f, 0.2, 0.7),
    "lights": lights,
    "disco": disco,
    "crowd": lambda r, f: crowd(r, f, 400),
    "passing": lambda r, f: passing(r, f, 400),
    "passing fast": lambda r, f: passing(r, f, 1500),
    "tunnel": lambda r, f: tunnel(r, f, 4, 1),
    "fast tunnel": lambda r, f: tunnel(r, f, 20, 6),
}  # fmt: skip


SCENES = {
    "still": lambda r: spin(r, 15, 0),
    "pan": lambda r: spin(r, 15, 60),
    "fast pan": lambda r: spin(r, 15, 320),
    "blocks": lambda r: spin(r, 15, 60, blocky),
    "dark": lambda r: spin(r, 15, 30, dark),
    "two levels": lambda r: spin(r, 15, 60, level),
    "roll": lambda r: roll(r, 15, 2.0),
    "flight": lambda r: flight(r, 15, 1.0),
    "scroll": lambda r: scroll(r, 15, 100),
    "crowd": lambda r: crowd(r, 15, 100),
    "tunnel": lambda r: tunnel(r, 15, 2, 0.3),
}
