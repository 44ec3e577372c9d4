"""Sessions of a thousand frames: does the world still move, and is its player still visible?

A rollout of a few dozen frames does not show a player who disappears at frame 100. So long sessions are generated, half
of them with random keys and half with held keys, and every frame is checked.

- A frame is *frozen* if it lies in more than ``STILL`` frames in a row in which nothing moves although keys change.
  Real worlds stand still too, for example when the player is pushed against a wall. "frozen_real" is the same share for
  the simulator with keys drawn the same way, or for recorded episodes if there is no simulator.
- A frame is *absent* if the simulator does not find its player in it (``visible``).
- A session is *lost* once more than ``STILL`` frames in a row were frozen or absent.

Legend: S sessions, T time, H W C image.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from reverie.actions import ActionSpace
from reverie.data.episode import Dataset, Simulator
from reverie.evaluation.drift import drift, looks
from reverie.evaluation.meaning import Numbers
from reverie.evaluation.rollouts import Clips, Rollouts
from reverie.evaluation.video import contact_sheet, scale_of
from reverie.nn.embed import random_actions

STEPS = (64, 256, 1000)  # numbers of generated frames for which shares are reported
STILL = 10  # frames in a row that may stand still
HOLD = 20  # frames for which a key is held
ALIKE = 8  # of 255: if no pixel of two frames differs by more, nothing moved
SESSIONS = 16  # with each kind of keys
FLOP = {"cpu": 1e13}  # the most FLOPs for all sessions together: a minute or two
FLOP_ELSEWHERE = 1e16
SHOWN, MOMENTS = 2, (1, 4, 16, 64, 128, 256, 400, 600, 800, 1000)  # sessions of each kind, and their generated frames
RECORDED = 16  # the most recorded episodes that are read for "frozen_real"


def measured(
    rollouts: Rollouts,
    given: Clips,
    flop_per_frame: float,
    dataset: Dataset,
    simulator: Simulator | None = None,
    states_BS: np.ndarray | None = None,
    sessions: int = SESSIONS,
) -> tuple[Numbers | None, dict[str, np.ndarray]]:
    """Return "long_play" of eval.json, and a picture by the same name; None, {} if a few short sessions cost too much.

    ``given``: clips whose context sessions start from. ``states``: of the simulator at the last context frames.
    "random" and "held" map the number of frames ("64", "256", "1000") to the shares "frozen", "frozen_real", "absent"
    (None unless the simulator can detect its player) and "lost" (of sessions). "drift" is that of the last quarter.
    The picture has the first ``SHOWN`` sessions of each kind at ``moments``.
    """
    sessions, frames = affordable(flop_per_frame, sessions)
    if not sessions:
        return None, {}
    rows = np.resize(np.unique(np.linspace(0, len(given.seen) - 1, sessions).astype(int)), sessions)
    keys = {kind: _keys(rollouts.space, sessions, frames, rollouts.seed, kind) for kind in ("random", "held")}
    both = np.concatenate([rows, rows])
    before = given.actions[both, : given.context]
    pieces = rollouts.pieces(given.seen[both], before, np.concatenate(list(keys.values())))
    finder = getattr(simulator, "visible", None)
    still, absent, seen, shown = _watched(pieces, given.seen[both, -1], frames, finder)
    steps, begun = [step for step in STEPS if step <= frames], looks(given.frames[rows])
    if simulator is not None and states_BS is not None:
        real = {kind: _simulated(simulator, states_BS[rows], frames, rollouts.seed, kind) for kind in keys}
    else:
        real = dict.fromkeys(keys, _recorded(dataset))

    def shares(found_ST: np.ndarray) -> dict[str, float]:
        return {str(step): float(found_ST[:, :step].mean()) for step in steps}

    numbers: Numbers = {"sessions": sessions, "frames": frames}
    for at, kind in enumerate(keys):
        part = slice(at * sessions, (at + 1) * sessions)
        frozen = stuck(still[part], keys[kind] if rollouts.space.size else None)
        gone = absent[part] if finder is not None else np.zeros_like(frozen)
        lost = np.maximum.accumulate(_long(frozen | gone), axis=1)
        numbers[kind] = {
            "frozen": shares(frozen),
            "frozen_real": shares(real[kind]) if real[kind].size else None,
            "absent": shares(gone) if finder is not None else None,
            "lost": {str(step): float(lost[:, step - 1].mean()) for step in steps},
            "drift": {str(step): _drift(seen, part, begun, step) for step in steps} if sessions >= 4 else None,
        }
    named = [
        (f"{kind} keys", at * sessions + row) for at, kind in enumerate(keys) for row in range(min(SHOWN, sessions))
    ]
    strips = [(name, shown[row]) for name, row in named]
    return numbers, {"long_play": contact_sheet(strips, columns=shown.shape[1], scale=scale_of(shown))}


def moments(frames: int) -> list[int]:
    """Return after which of its generated frames a session is shown: dense at first, then sparse."""
    return [moment for moment in MOMENTS if moment <= frames]


def affordable(flop_per_frame: float, sessions: int = SESSIONS) -> tuple[int, int]:
    """Return how many sessions of each kind, and how many frames, the limit on FLOPs allows; (0, 0): none."""
    most = FLOP.get(jax.default_backend(), FLOP_ELSEWHERE)
    for frames in reversed(STEPS):
        for count in (sessions, sessions // 2, sessions // 4):
            if count and 2 * count * frames * flop_per_frame <= most:
                return count, frames
    return 0, 0


def stuck(still_ST: np.ndarray, keys_ST: np.ndarray | None) -> np.ndarray:
    """Return which frames are frozen, bool (S, T): in a stretch of more than ``STILL`` still frames while keys change.

    ``still``: nothing moved since the previous frame. Without keys, every such stretch counts.
    """
    found = np.zeros_like(still_ST)
    for row, begin, end in _stretches(still_ST):
        if end - begin <= STILL:
            continue
        pressed = None if keys_ST is None else keys_ST[row, begin:end]
        if pressed is None or (pressed != pressed[:1]).any():
            found[row, begin:end] = True
    return found


def _long(found_ST: np.ndarray) -> np.ndarray:
    """The frames of each stretch from the ``STILL + 1``-th on."""
    late = np.zeros_like(found_ST)
    for row, begin, end in _stretches(found_ST):
        late[row, begin + STILL : end] = True
    return late


def _stretches(found_ST: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Yield (row, start, end) of every stretch of True."""
    for row, values in enumerate(found_ST):
        edges = np.flatnonzero(np.diff(np.pad(values.astype(np.int8), 1)))
        for begin, end in edges.reshape(-1, 2).tolist():
            yield row, begin, end


def _keys(space: ActionSpace, sessions: int, frames: int, seed: int, kind: str) -> np.ndarray:
    """Return random actions (S, T, ...): a new one for every frame, or for every ``HOLD`` frames."""
    key = jax.random.fold_in(jax.random.key(seed), kind == "held")
    hold = HOLD if kind == "held" else 1
    if not space.size:
        return np.zeros((sessions, frames), space.dtype)
    drawn = np.asarray(random_actions(space, key, (sessions, -(-frames // hold))))
    return drawn.repeat(hold, axis=1)[:, :frames]


def _watched(pieces, last_SHWC: np.ndarray, frames: int, finder: Any):
    """Return (still, absent, looks) of every frame, and the frames at ``moments``, in one pass that keeps no others."""
    still, absent, seen, shown, done = [], [], [], [], 0
    for piece in pieces:
        every = np.concatenate([last_SHWC[:, None], piece], axis=1)
        still.append(_same(every[:, 1:], every[:, :-1]))
        if finder is not None:
            absent.append(~finder(piece))
        seen.append(looks(piece))
        shown += [piece[:, moment - 1 - done] for moment in moments(frames) if 0 < moment - done <= piece.shape[1]]
        last_SHWC, done = piece[:, -1], done + piece.shape[1]
    joined = {name: np.concatenate([part[name] for part in seen], axis=1)[:, :frames] for name in seen[0]}
    gone = np.concatenate(absent, axis=1)[:, :frames] if absent else np.zeros(0, bool)
    return np.concatenate(still, axis=1)[:, :frames], gone, joined, np.stack(shown, axis=1)


def _same(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether nothing moved between two uint8 frames (..., H, W, C): bool (...)."""
    return (np.maximum(one, other) - np.minimum(one, other)).max((-3, -2, -1)) <= ALIKE


def _simulated(simulator: Simulator, states_SS: np.ndarray, frames: int, seed: int, kind: str) -> np.ndarray:
    """Which frames of the simulator itself are frozen, with keys drawn the same way."""
    keys = _keys(simulator.actions, len(states_SS), frames, seed, kind)
    still = np.zeros((len(states_SS), frames), bool)
    for row, state in enumerate(states_SS):
        last = simulator.render(state)
        for time, action in enumerate(keys[row]):
            state = simulator.step(state, action if np.ndim(action) else int(action))[0]
            frame = simulator.render(state)
            still[row, time], last = _same(frame, last), frame
    return stuck(still, keys)


def _recorded(dataset: Dataset) -> np.ndarray:
    """Which frames of recorded episodes are frozen, (1, frames); empty if all episodes are too short."""
    found = []
    for episode in np.argsort(-dataset.lengths, kind="stable")[:RECORDED].tolist():
        length = min(int(dataset.lengths[episode]), STEPS[-1])
        if length <= STILL + 1:
            continue
        read = dataset.read(episode, 0, length)
        space = dataset.spec.actions
        keys = read["actions"][None, 1:] if space.size and space.is_action(read["actions"]).any() else None
        found.append(stuck(_same(read["frames"][1:], read["frames"][:-1])[None], keys))
    return np.concatenate(found, axis=1) if found else np.zeros((1, 0), bool)


def _drift(seen: dict[str, np.ndarray], part: slice, real: dict[str, np.ndarray], step: int) -> float:
    late = {name: values[part, step - max(1, step // 4) : step] for name, values in seen.items()}
    return drift(late, real, np.arange(part.stop - part.start))["drift"]
