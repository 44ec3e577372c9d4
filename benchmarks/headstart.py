"""What pretrained weights are worth: ``reverie learn`` with them and from nothing, on films they have never seen.

``python -m benchmarks.headstart weights FOLDER``: record games of many kinds and train the weights ``general`` on them;
an hour and a half of two CPU cores. ``films FOLDER``: write three kinds of film, with actions beside them.
``compare FOLDER [--minutes 10]``: learn each film from the weights and from nothing, and print a table.
Needs the packages vizdoom, envpool, ale-py, crafter and gymnasium[box2d].
"""

import argparse
import contextlib
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import av
import numpy as np

from reverie.data.sources.procgen import Name as Procgen
from reverie.data.sources.vizdoom import folder

STEPS = 1, 4, 8, 16  # frames into a rollout that the table shows
MAPS = {"1": ("E1M1", "E1M2", "E1M3", "E1M4", "E2M1", "E2M2", "E2M4", "E3M1", "E3M2", "E4M1", "E4M2")}
MAPS |= {"2": tuple(f"MAP{number:02}" for number in (1, 2, 3, 4, 5, 7, 10, 12, 15, 18, 21, 24, 29))}
WALKS, STANDS = (
    ("HealthGathering", "HealthGatheringSupreme"),
    ("DeadlyCorridor", "DefendCenter", "DefendLine", "TakeCover"),
)
FRAMES = {"frames": 128}
SIZE = {"size": (64, 64)}


def mix() -> Iterator[tuple[str, list[str], float]]:
    """Yield a store's name, its source with flags, and its share of the clips."""
    for game in Procgen.__args__:
        yield f"procgen-{game}", flags("procgen", game=game, count=60, policy="mixed", **FRAMES), 3
    for number, maps in MAPS.items():
        for each in maps:
            path = f"VizdoomFreedoom{number}{each}-S1-v0"
            yield f"freedoom-{each}", flags("vizdoom", path=path, walk=True, skip=2, count=16, **FRAMES, **SIZE), 1.6
    for scenario in WALKS + STANDS:
        walk, path = scenario in WALKS, f"Vizdoom{scenario}-v1"
        yield scenario, flags("vizdoom", path=path, walk=walk, skip=3, count=40, **FRAMES, **SIZE), 2
    yield "carracing", flags("carracing", drive=True, count=60, **FRAMES, **SIZE), 3
    yield "platformer", flags("platformer", count=60), 3


def flags(source: str, **fields: Any) -> list[str]:
    """Return a source and its fields as words of a command."""
    words = [source]
    for name, value in fields.items():
        words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def weights(folder: Path) -> None:
    """Record the mix in a folder, unless it is there, and train the weights: ``folder/general``."""
    stores, shares = [], []
    for name, (source, *more), share in mix():
        if not (store := folder / "data" / name).exists():
            reverie("data", source, store, *more)
        stores += ["--data", str(store)]
        shares.append(str(share))
    start = [f"--{stage}.start_from=reverie:vizdoom-field/{stage}" for stage in ("tokenizer", "dynamics")]
    longer = [
        "--tokenizer.steps=5000",
        "--tokenizer.batch=32",
        "--tokenizer.optimizer.rate=2e-3",
        "--dynamics.steps=3200",
    ]
    reverie("train", "coinrun-world", *stores, "--weights", *shares, *start, *longer, "--out", folder / "general")


def films(folder: Path) -> None:
    """Write three kinds of film: a maze in first person (ViZDoom), Crafter's island, and Robotank (Atari)."""
    import gymnasium

    gymnasium.register_envs(import_module("ale_py"))
    robotank = gymnasium.make("ALE/Robotank-v5", render_mode="rgb_array")
    kinds: Any = {
        "maze": (Maze(), (0.2, 0.2, 0.5, 0.1), 24, 400, (3, 10)),
        "crafter": (Island(), (0.1, 0.2, 0.2, 0.2, 0.2, 0.1), 60, 160, (2, 6)),
        "robotank": (robotank, (1,) * 18, 30, 320, (2, 6)),
    }
    for kind, (env, chances, episodes, frames, hold) in kinds.items():
        rng = random.Random(0)
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for episode in range(episodes):
            env.reset(seed=episode)
            write(folder / kind / f"{episode:03}", env, frames, held(rng, chances, hold))


class Maze:
    """The rooms of ViZDoom's "my way home", with turns, a step ahead or none as actions."""

    def __init__(self):
        vizdoom: Any = import_module("vizdoom")
        self.game = vizdoom.DoomGame()
        self.game.load_config(str(Path(vizdoom.scenarios_path) / "my_way_home.cfg"))
        self.game.set_window_visible(False)
        self.game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
        self.game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        with contextlib.chdir(folder().name):  # the engine writes its settings to the current folder
            self.game.init()
        self.buttons = self.game.get_available_buttons_size()

    def reset(self, seed: int) -> None:
        """Begin an episode."""
        self.game.set_seed(seed)
        self.game.new_episode()

    def render(self) -> np.ndarray:
        """Return the picture, uint8 (H, W, 3)."""
        return self.game.get_state().screen_buffer

    def step(self, action: int) -> tuple[Any, ...]:
        """Press a button for two tics."""
        self.game.make_action([float(button == action) for button in range(self.buttons)], 2)
        return None, 0.0, self.game.is_episode_finished(), False, {}


class Island:
    """Crafter, of whose actions the first six are drawn: none, four ways to walk, and the use of what is ahead."""

    def reset(self, seed: int) -> None:
        """Begin an episode."""
        self.env = import_module("crafter").Env(seed=seed)
        self.picture = self.env.reset()

    def render(self) -> np.ndarray:
        """Return the picture, uint8 (H, W, 3)."""
        return self.picture

    def step(self, action: int) -> tuple[Any, ...]:
        """Act once."""
        self.picture, reward, ended, _ = self.env.step(action)
        return self.picture, reward, ended, False, {}


def held(rng: random.Random, chances: Sequence[float], hold: tuple[int, int]) -> Callable[[], int]:
    """Return a player that draws an action by its chance and keeps it for a while."""
    left = [0, 0]

    def play() -> int:
        if not left[1]:
            left[:] = rng.choices(range(len(chances)), chances)[0], rng.randint(*hold)
        left[1] -= 1
        return left[0]

    return play


def write(path: Path, env: Any, frames: int, play: Callable[[], int]) -> None:
    """Write an episode as mp4, and beside it the action taken at each frame."""
    actions: list[int] = []
    with av.open(str(path.with_suffix(".mp4")), "w") as out:
        stream: Any = None
        for _ in range(frames):
            picture = np.ascontiguousarray(env.render())
            if stream is None:
                stream = out.add_stream("libx264", rate=15, options={"crf": "18"})
                stream.height, stream.width, stream.pix_fmt = *(side // 2 * 2 for side in picture.shape[:2]), "yuv420p"
            picture = picture[: stream.height, : stream.width]
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
            actions.append(play())
            *_, ended, cut, _ = env.step(actions[-1])
            if ended or cut:
                break
        out.mux(stream.encode(None))
    path.with_suffix(".csv").write_text("\n".join(map(str, actions)))


def compare(folder: Path, minutes: float, kinds: list[str]) -> None:
    """Learn every film from the weights and from nothing, unless that was done, and print a table of held-out films."""
    print(
        "| film | start | " + " | ".join(f"step {step}" for step in STEPS) + " | delta-PSNR, step 4 | reconstruction |"
    )
    print("| --- " * (len(STEPS) + 4) + "|")
    for kind in kinds or sorted(path.name for path in folder.iterdir() if list(path.glob("*.mp4"))):
        found: Any = {}
        for start in ("none", "general"):
            out = folder / f"{kind}-{start}"
            if not (out / "eval.json").exists():
                reverie("learn", folder / kind, "--minutes", minutes, "--pretrained", start, "--out", out)
            found[start] = json.loads((out / "eval.json").read_text("utf-8"))
            print(row(kind, start, found[start]["psnr"], found[start]), flush=True)
        print(row(kind, "copy last frame", found["general"]["copy_last_psnr"], {}), flush=True)


def row(kind: str, start: str, curve: list[float], numbers: dict[str, Any]) -> str:
    """Return a line of the table."""
    rest = [f"{numbers['delta_psnr_4']:.1f}", f"{np.mean(numbers['floor_psnr']):.1f}"] if numbers else ["", ""]
    return "| " + " | ".join([kind, start, *(f"{curve[step - 1]:.1f}" for step in STEPS), *rest]) + " |"


def reverie(*words: Any) -> None:
    """Run a command of Reverie's; its output goes to stderr, since stdout has the table."""
    subprocess.run([sys.executable, "-m", "reverie", *map(str, words)], check=True, stdout=sys.stderr)


def main() -> None:
    """Do one of the three."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.headstart", description=__doc__)
    parser.add_argument("what", choices=("weights", "films", "compare"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("kinds", nargs="*", help="of film, to compare; all by default")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each training (10)")
    args = parser.parse_args()
    if args.what == "compare":
        compare(args.folder, args.minutes, args.kinds)
    else:
        {"weights": weights, "films": films}[args.what](args.folder)


if __name__ == "__main__":
    main()
