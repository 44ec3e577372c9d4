"""A small platform game of tiles: hills, coins, a bird, and a player whose actions are all visible.

It is designed to be easy to learn. With ``speed == tile`` everything moves by whole tiles, so each tile of a frame is
one of about 22 per theme, and a tokenizer whose patch is a tile has nearly symbolic tokens. Facing, walking, rising and
falling are different sprites, so one frame determines the effect of an action (at smaller speeds it does not show how
much of a rise is left). Left and right also steer in the air, releasing jump falls, holding it after the rise hovers.

H = W = tiles * tile pixels. A tile is shown by a letter per pixel, and letters by the colours of the theme.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from einops import rearrange

from reverie.actions import ActionSpace
from reverie.data.episode import Episode, Share, Spec, record, share_of
from reverie.data.mixed import draw_policy
from reverie.data.search import steps_to_go
from reverie.errors import ReverieError

STAY, LEFT, RIGHT, JUMP = range(4)
STAND, WALK, RISE, FALL = range(4)  # the player's pose
LEVEL, X, Y, POSE, RISING, FACING, COINS, BIRD_X, BIRD_WAY, TIME = range(10)  # the state; places in pixels
JUMP_TILES = 2
LIKENESS = 30  # of 255: largest root mean square distance of a picture of the player from its sprite
CHANCE = 0.3, 0.8  # of a random action, in half-good play: the best policy takes all coins of 6 tiles in 7 steps
CHANGE, SEEK = 0.55, 0.25  # policy: probability of a new choice per tile moved; then, of heading for a coin

ACTIONS = ActionSpace(
    "discrete", 4, ("stay", "left", "right", "jump"), ("ArrowDown", "ArrowLeft", "ArrowRight", "ArrowUp")
)

TILES = ("sky", "earth", "stone", "grass", "flower", "platform", "sun", "cloud", "cloud end", "coin")
SOLID = [TILES.index(name) for name in ("earth", "stone", "grass", "flower", "platform")]
POSES = ("stand", "walk", "rise", "fall")
COLOURS = {
    "h": (196, 42, 92), "s": (255, 214, 170), "k": (36, 24, 32), "b": (44, 138, 168), "B": (112, 190, 206),
    "l": (70, 44, 60),  # a dreamer in nightcap and pyjamas
    "y": (255, 205, 40), "Y": (255, 240, 150), "o": (226, 150, 20),  # coin
    "w": (250, 250, 250), "v": (206, 214, 226), "r": (240, 130, 40),  # bird
}  # fmt: skip
# sky; cloud, its shade; sun, its rays; grass, its edge; earth, its grain; stone, its light; bricks, joints; flower
THEME_LETTERS = ".cCzZgGdDnNpPf"
THEMES = (
    # meadow, desert, night, snow, autumn, candy
    ((124, 198, 246), (255, 255, 255), (214, 236, 252), (255, 226, 90), (255, 190, 60),
     (92, 184, 72), (58, 140, 54), (150, 102, 62), (128, 84, 50), (112, 100, 92),
     (146, 134, 122), (206, 128, 70), (150, 84, 44), (240, 90, 130)),
    ((252, 216, 160), (255, 240, 214), (246, 222, 186), (250, 120, 70), (255, 166, 96),
     (238, 190, 96), (206, 150, 66), (206, 140, 78), (184, 118, 62), (150, 92, 56),
     (176, 116, 74), (178, 84, 56), (128, 56, 40), (70, 150, 90)),
    ((34, 38, 84), (84, 90, 150), (62, 68, 124), (244, 240, 206), (200, 198, 180),
     (62, 140, 130), (42, 104, 108), (80, 62, 110), (66, 50, 94), (108, 92, 140),
     (140, 122, 172), (130, 110, 170), (88, 72, 130), (250, 220, 110)),
    ((176, 208, 236), (244, 250, 255), (220, 234, 248), (255, 244, 190), (250, 228, 150),
     (248, 252, 255), (204, 222, 240), (122, 140, 170), (106, 122, 154), (86, 98, 130),
     (150, 166, 194), (120, 190, 226), (80, 144, 190), (60, 140, 90)),
    ((248, 196, 150), (255, 232, 206), (244, 214, 184), (255, 240, 170), (255, 214, 110),
     (214, 110, 48), (170, 74, 38), (112, 74, 58), (94, 60, 48), (134, 116, 104),
     (164, 146, 132), (158, 110, 70), (110, 72, 46), (190, 40, 50)),
    ((255, 200, 224), (255, 246, 250), (250, 222, 236), (255, 250, 180), (255, 224, 120),
     (130, 222, 190), (84, 180, 160), (196, 140, 214), (176, 118, 198), (240, 170, 200),
     (252, 200, 222), (255, 160, 120), (224, 112, 90), (255, 255, 255)),
)  # fmt: skip
SHEETS = {
    8: """
stand | walk | rise | fall | bird up | bird down | coin
...hhhh. ...hhhh. ...hhhh. w..hhhh. .w...... ........ ........
..hhhhhh ..hhhhhh .shhhhhs hhhhhhhh .ww..... ........ ...yy...
.hhhhhhh hhhhhhhh .bhhhhhb .hhhhhhh .vww.... ......ww ..yYYy..
hhsssks. w.sssks. hhsssksb ..sssks. ..vwwwww v..wwwkw ..yYyo..
w.sssss. ..sssss. hhsssss. s.sssss. vvwwwwkw .vwwwwrr ..yYyo..
..bbbbb. ..bbbbbs w.bbbbb. bbbbbbbs .vvwwwrr ..vvww.. ..yyyo..
.sBBBBs. .sBBBBB. ..BBBBB. ..BBBBB. ........ ..vv.... ...oo...
..ll.ll. .ll...ll ...l.l.. .ll...ll ........ .v...... ........
sky | earth | stone | grass | flower | platform | sun | cloud | cloud end
........ dddddddd dddddddd gggggggg gggfgggg PPPPPPPP Z..ZZ..Z ........ ........
........ ddDddddd ddnnnddd gggggggg gfgyfggf pppPpppp ..zzzz.. ....CCcc ccc.....
........ dddddDdd dnNNnndd gGggGggG fyfGgGfy pppPpppp .zzzzzz. ..CccccC cccCC...
........ dddddddd dnNnnndd GdGGdGGd GfGGdGGf PPPPPPPP ZzzzzzzZ .Ccccccc cccccC..
........ dDdddddd ddnnnddd dddddddd dddddddd pppppppP ZzzzzzzZ CccccCCc ccccccC.
........ ddddddDd ddddddDd dDddddDd dDddddDd pppppppP .zzzzzz. CCCCCCCC CCCCCCC.
........ dddDdddd dDdddddd dddddddd dddddddd PPPPPPPP ..zzzz.. ........ ........
........ dddddddd dddddddd dddDdddd dddDdddd .P....P. Z..ZZ..Z ........ ........
""",
    4: """
stand | walk | rise | fall | bird up | bird down | coin
.hh. .hh. .hh. whh. w... .... .yy.
whhh whhh shhs hhhh ww.w ...w .Yyo
.sk. .sks bskb ssks .wwr vwwr .yyo
.bb. b..b w.b. b..b .v.. .v.. ....
sky | earth | stone | grass | flower | platform | sun | cloud | cloud end
.... dddd dddd gggg ggfg PPPP .zz. .... ....
.... dDdd dNnd gGgG gGgG ppPp zzzz ..cc cc..
.... dddd dnnd dddd dddd ppPp zzzz Cccc cccC
.... ddDd dddd dDdd dDdd PPPP .zz. .CCC CCC.
""",
}


@dataclass(frozen=True, kw_only=True)
class PlatformerConfig:
    """A small platform game of tiles; every episode has a level of its own."""

    tiles: int = 8  # tiles of a side, 6..32; the picture is square
    tile: int = 8  # pixels of a tile's side: 4, 8 or a multiple of 8
    speed: int = 0  # pixels moved per frame, a divisor of tile; 0: one tile a frame
    themes: int = 4  # sets of colours, 1..6
    count: int = 256  # episodes to record
    frames: int = 48  # frames per episode
    seed: int = 0  # seed of the levels
    # start the player in any free place, half of the time rising, so that rare moments such as high jumps are frequent
    anywhere: bool = False
    play: Literal["seek", "mixed"] = "seek"  # who plays: a policy that often heads for coins, or ones of mixed quality
    goal: Literal["none", "coins"] = "none"  # coins: an episode ends when all coins are taken

    def __post_init__(self):
        if not 6 <= self.tiles <= 32 or not (self.tile == 4 or (self.tile > 0 and self.tile % 8 == 0)):
            raise ReverieError("the platformer needs tiles = 6..32, and tile = 4, 8 or a multiple of 8.")
        if self.speed < 0 or (self.speed and self.tile % self.speed):
            raise ReverieError(f"speed {self.speed} must divide a tile of {self.tile} pixels (0: one tile a frame).")
        if not 1 <= self.themes <= len(THEMES) or self.count < 1 or self.frames < 2 or self.seed < 0:
            raise ReverieError(f"the platformer has 1..{len(THEMES)} themes, count >= 1, frames >= 2, seed >= 0.")

    @property
    def pace(self) -> int:
        """Pixels moved per frame."""
        return self.speed or self.tile

    def spec(self) -> Spec:
        """Return the spec of its episodes; the player walks six tiles per second."""
        side = self.tiles * self.tile
        return Spec((side, side, 3), ACTIONS, min(60.0, 6.0 * self.tile / self.pace), "platformer", self)

    def make(self) -> "Platformer":
        """Return the simulator."""
        return Platformer(self)

    def episodes(self, shard: Share | tuple[int, int] = (0, 1)) -> Iterator[Episode]:
        """Yield ``count`` episodes, each on a level of its own, played by ``Platformer.policy`` or a mixture."""
        simulator, fps = self.make(), self.spec().fps
        for index in share_of(shard).of(self.count):
            rng = np.random.default_rng((self.seed, index))
            level = int(rng.integers(2**31))
            mixed = self.play == "mixed"
            kind, policy = draw_policy(simulator, rng, CHANCE) if mixed else ("", simulator.policy)
            yield record(simulator, seed=level, frames=self.frames, rng=rng, fps=fps, policy=policy, kind=kind)


class Level(NamedTuple):
    """The constant part of a level, drawn from its seed."""

    theme: int
    solid: list[list[bool]]  # row, column; one tile of wall around it on every side, so index + 1
    pictures: np.ndarray  # (tiles, tiles) index of each tile's picture, without coins
    coins: tuple[tuple[int, int], ...]  # row, column
    start: tuple[int, int]
    bird: tuple[int, int]  # first and last column of its patrol, in row 1


class Platformer:
    """The simulator; see ``reverie.data.episode.Simulator``. States are (10,) int32, named at the head of this file."""

    actions = ACTIONS

    def __init__(self, config: PlatformerConfig):
        self.config = config
        self._ways: dict[int, dict] = {}  # of each level that was searched: the fewest steps to all coins

    def reset(self, seed: int) -> np.ndarray:
        """Return the first state of level ``seed`` (modulo 2**31)."""
        seed %= 2**31
        level, tile = _level(seed, self.config.tiles, self.config.themes), self.config.tile
        (row, column), rising = level.start, 0
        if self.config.anywhere:
            rng = np.random.default_rng((seed, 1))
            row, column = rng.choice(np.argwhere(~np.array(level.solid))).tolist()
            row, column, rising = row - 1, column - 1, int(rng.integers(2))
        supported = level.solid[row + 2][column + 1]
        pose = RISE if rising else STAND if supported else FALL
        first, last = level.bird
        bird = first + seed % (last - first)
        coins = (1 << len(level.coins)) - 1
        return np.array(
            [seed, column * tile, row * tile, pose, rising, 1 - seed // 2 % 2 * 2, coins, bird * tile, 1, 0], np.int32
        )

    def step(self, state: np.ndarray, action: int) -> tuple[np.ndarray, float, bool]:
        """Return (state, reward, end): reward 1 for a coin, and an end if that is the goal. IndexError unless 0..3."""
        if not 0 <= action < ACTIONS.size:
            raise IndexError(f"action {action} of {ACTIONS.size}")
        seed, x, y, pose, rising, facing, coins, bird_x, bird_way, time = state.tolist()
        tile, pace = self.config.tile, self.config.pace
        level = _level(seed, self.config.tiles, self.config.themes)
        action = int(action)  # of a NumPy number, comparisons cannot be subtracted
        way = (action == RIGHT) - (action == LEFT)
        facing = way or facing
        if action == JUMP and pose in (STAND, WALK):
            rising = JUMP_TILES * tile // pace
        if rising and action != STAY:  # up, then sideways: onto the ledge beside
            up = self._free(level, x, y - pace)  # under a ceiling the rise waits, and so shows
            y, rising = y - pace * up, rising - up
            x += pace * way * self._free(level, x + pace * way, y)
        else:  # sideways, then down: onto the ledge below
            rising = 0
            x += pace * way * self._free(level, x + pace * way, y)
            y += pace * (action != JUMP and self._free(level, x, y + pace))
        supported = not self._free(level, x, y + pace)
        pose = RISE if rising else FALL if not supported else WALK if way else STAND
        reward = 0.0
        for index, (row, column) in enumerate(level.coins):
            if coins >> index & 1 and 2 * abs(row * tile - y) < tile and 2 * abs(column * tile - x) < tile:
                coins, reward = coins & ~(1 << index), reward + 1.0
        bird_x += pace * bird_way
        if bird_x in (level.bird[0] * tile, level.bird[1] * tile):
            bird_way = -bird_way
        end = self.config.goal == "coins" and not coins
        return np.array([seed, x, y, pose, rising, facing, coins, bird_x, bird_way, time + 1], np.int32), reward, end

    def render(self, state: np.ndarray) -> np.ndarray:
        """Return the frame (H, W, 3) uint8: scenery and coins, the bird, and the player in front."""
        seed, x, y, pose, _, facing, coins, bird_x, bird_way, _ = state.tolist()
        tiles, tile, themes = self.config.tiles, self.config.tile, self.config.themes
        frame = _scenery(seed, coins, tiles, tile, themes).copy()
        sprites = _sprites(_level(seed, tiles, themes).theme, tile)
        wings = "bird up" if bird_x // tile % 2 else "bird down"  # follows from its position: no hidden state
        for name, way, left, top in ((wings, bird_way, bird_x, tile), (POSES[pose], facing, x, y)):
            picture, mask = sprites[name, way]
            np.copyto(frame[top : top + tile, left : left + tile], picture, where=mask)
        return frame

    def visible(self, frames: np.ndarray) -> np.ndarray:
        """Return whether the player is visible in each of uint8 frames (..., H, W, C), in any pose, anywhere.

        He is visible where the root mean square distance to one of his sprites is below ``LIKENESS``; transparent
        pixels do not count. Anything else is at least three times as far away.
        """
        tile, pace = self.config.tile, self.config.pace
        sprites = [_sprites(0, tile)[pose, way] for pose in POSES for way in (1, -1)]  # of one colour in every theme
        masks = np.stack([np.broadcast_to(mask, picture.shape).ravel() for picture, mask in sprites], 1)
        masks, pictures = np.float32(masks), np.stack([np.float32(picture).ravel() for picture, _ in sprites], 1)
        found = []
        for frame in frames.reshape(-1, *frames.shape[-3:]):
            places = np.lib.stride_tricks.sliding_window_view(frame, (tile, tile), (0, 1))[::pace, ::pace]
            places = rearrange(places, "y x c h w -> (y x) (h w c)").astype(np.float32)
            error = np.square(places) @ masks - 2 * places @ (pictures * masks) + (pictures**2 * masks).sum(0)
            found.append((error / masks.sum(0)).min() < LIKENESS**2)
        return np.array(found).reshape(frames.shape[:-3])

    def policy(self, state: np.ndarray, rng: np.random.Generator, last_action: int) -> int:
        """Repeat the last action for a while, then head for the nearest coin or take a random action."""
        if last_action >= 0 and rng.random() >= CHANGE * self.config.pace / self.config.tile:
            return last_action
        seed, x, y, *_ = state.tolist()
        level, tile = _level(seed, self.config.tiles, self.config.themes), self.config.tile
        coins = [place for index, place in enumerate(level.coins) if int(state[COINS]) >> index & 1]
        if coins and rng.random() < SEEK:
            row, column = min(coins, key=lambda place: abs(place[0] * tile - y) + abs(place[1] * tile - x))
            if row * tile < y and (column * tile == x or rng.random() < 0.5):
                return JUMP
            return STAY if column * tile == x else LEFT if column * tile < x else RIGHT
        return int(rng.random() * ACTIONS.size)

    def solved(self, state: np.ndarray) -> bool:
        """Return whether all coins are taken."""
        return not state[COINS]

    def best(self, state: np.ndarray) -> int:
        """Return the first step of a shortest way to all coins that are left. A level is searched once (30 ms)."""

        def following(state: np.ndarray) -> list[np.ndarray]:
            return [self.step(state, action)[0] for action in range(ACTIONS.size)]

        def name(state: np.ndarray) -> tuple[int, ...]:  # what matters: not the clock, the bird, the way he faces
            supported = int(state[POSE]) in (STAND, WALK)
            return int(state[X]), int(state[Y]), supported, int(state[RISING]), int(state[COINS])

        level = int(state[LEVEL])
        if name(state) not in self._ways.get(level, ()):
            self._ways[level] = {name(state): np.inf} | steps_to_go(state, following, name, self.solved)
        return int(np.argmin([self._ways[level].get(name(each), np.inf) for each in following(state)]))

    def _free(self, level: Level, x: int, y: int) -> bool:
        """Whether a body of one tile fits at pixel (x, y)."""
        tile, solid = self.config.tile, level.solid
        top, bottom, left, right = y // tile + 1, (y - 1) // tile + 2, x // tile + 1, (x - 1) // tile + 2
        return not (solid[top][left] or solid[top][right] or solid[bottom][left] or solid[bottom][right])


@lru_cache(maxsize=2048)
def _level(seed: int, tiles: int, themes: int) -> Level:
    """Draw a level: hills whose steps are at most a jump, platforms a jump above something, coins on the way."""
    rng = np.random.default_rng(seed)
    theme = int(rng.integers(themes))
    height = [int(rng.integers(1, 3))]  # of the ground, in tiles: 1..3, so no step is higher than a jump
    while len(height) < tiles:
        new = int(rng.integers(1, 4 if tiles > 6 else 3))
        height.append(new if rng.random() < 0.5 else height[-1])
    pictures = np.full((tiles, tiles), TILES.index("sky"))
    for column, high in enumerate(height):
        pictures[tiles - high :, column] = rng.choice([TILES.index("earth"), TILES.index("stone")], high, p=[0.8, 0.2])
        pictures[tiles - high, column] = TILES.index("flower" if rng.random() < 0.25 else "grass")
    for _ in range(2 * tiles):
        _platform(pictures, height, rng)
    solid = np.pad(np.isin(pictures, SOLID), 1, constant_values=True)
    tops = [(r - 1, c - 1) for r, c in np.argwhere(~solid & np.roll(solid, -1, 0)).tolist()]  # on something solid
    places = [tops[i] for i in rng.permutation(len(tops))[: tiles // 2 + 1]]
    coins = [(r - 1, c) if r > 2 and not solid[r, c + 1] and rng.random() < 0.4 else (r, c) for r, c in places[1:]]
    side = int(rng.integers(2))
    pictures[0, -1 if side else 0] = TILES.index("sun")
    for _ in range(2):
        column = int(rng.integers(1, tiles - 2))
        if (pictures[0, column : column + 2] == TILES.index("sky")).all():
            pictures[0, column : column + 2] = TILES.index("cloud"), TILES.index("cloud end")
    bird = int(rng.integers(tiles // 2)), int(rng.integers(tiles // 2 + 2, tiles))
    return Level(theme, solid.tolist(), pictures, tuple(coins), places[0], bird)


def _platform(pictures: np.ndarray, height: list[int], rng: np.random.Generator) -> None:
    """Try one random platform; draw it if the player can walk under it and get onto it from the ground beside."""
    tiles = len(height)
    wide, row = int(rng.integers(1, 4)), int(rng.integers(3, tiles - 2))
    first = int(rng.integers(tiles - wide + 1))
    around = pictures[row - 2 : row + 3, max(0, first - 1) : first + wide + 1]
    below = [row <= tiles - height[column] - 2 for column in range(first, first + wide)]
    beside = [row == tiles - height[column] - 2 for column in (first - 1, first + wide) if 0 <= column < tiles]
    if all(below) and any(beside) and not (around == TILES.index("platform")).any():
        pictures[row, first : first + wide] = TILES.index("platform")


@lru_cache(maxsize=64)
def _scenery(seed: int, coins: int, tiles: int, tile: int, themes: int) -> np.ndarray:
    """Return the picture of a level with the remaining coins, without moving things; read-only."""
    level = _level(seed, tiles, themes)
    pictures = level.pictures.copy()
    for index, place in enumerate(level.coins):
        if coins >> index & 1:
            pictures[place] = TILES.index("coin")
    frame = rearrange(_tiles(level.theme, tile)[pictures], "row column h w c -> (row h) (column w) c")
    return np.ascontiguousarray(frame)


@lru_cache(maxsize=64)
def _tiles(theme: int, tile: int) -> np.ndarray:
    """Return the pictures of all tiles, each drawn over the sky: (len(TILES), tile, tile, 3)."""
    return np.stack([_draw(name, theme, tile)[0] for name in TILES])


@lru_cache
def _sprites(theme: int, tile: int) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
    """Return (picture, where it is not transparent) of each moving thing, facing right (1) and left (-1)."""
    drawn = {name: _draw(name, theme, tile) for name in (*POSES, "bird up", "bird down")}
    return {(n, way): (p[:, ::way], mask[:, ::way]) for n, (p, mask) in drawn.items() for way in (1, -1)}


def _draw(name: str, theme: int, tile: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (picture (tile,tile,3) uint8, mask (tile,tile,1) bool) of one tile in the colours of a theme."""
    letters = np.array([list(line) for line in _art(4 if tile == 4 else 8)[name]])
    letters = letters.repeat(tile // len(letters), 0).repeat(tile // len(letters), 1)
    colours = COLOURS | dict(zip(THEME_LETTERS, THEMES[theme], strict=True))
    picture = np.array([[colours[letter] for letter in line] for line in letters], np.uint8)
    return picture, (letters != ".")[..., None]


@lru_cache
def _art(size: int) -> dict[str, list[str]]:
    """Cut the sheet of one size into {name: lines}: rows of sprites side by side, under a line of their names."""
    art = {}
    lines = [line for line in SHEETS[size].splitlines() if line.strip()]
    for at in range(0, len(lines), size + 1):
        names = [name.strip() for name in lines[at].split("|")]
        rows = [line.split() for line in lines[at + 1 : at + 1 + size]]
        art |= {name: [row[index] for row in rows] for index, name in enumerate(names)}
    return art
