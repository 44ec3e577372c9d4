"""Which recorded action a latent action stands for, so that an agent of a latent world can play the real game.

A world that was learned from pictures alone has codes of its own. A few labelled steps say which keys they are. One key
for each code is not enough, since codes may swap meanings between scenes. On the platformer two codes meant "jump" and
"right" in levels of one theme, "right" and "jump" in the other. So similar frames count.

Shapes: E episodes, N labelled steps, K different actions among them, C codes, H W C image.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reverie.data.splits import labelled
from reverie.data.store import open_dataset
from reverie.errors import ReverieError
from reverie.nn.compiled import compiled
from reverie.world import WorldModel

LABELS = 100  # steps whose recorded actions are used
NEAREST = 5  # of them, those that decide: with 1 of 100, 65 % of other steps are right, with 5 67 %, with all 53 %


@dataclass(frozen=True)
class Keys:
    """Recorded actions for latent ones: what was done in labelled steps with this code, after the most similar frames.

    codes (N,) of the steps, frames (N, H, W, C) before them, actions (N, ...) recorded; size: the number of codes.
    """

    codes: np.ndarray
    frames: np.ndarray
    actions: np.ndarray
    size: int

    def __call__(self, codes_E: np.ndarray, frames_EHWC: np.ndarray) -> np.ndarray:
        """Return the action for each code after a frame, (E, ...): the most frequent one of the nearest steps."""
        known, places_N = np.unique(self.actions, axis=0, return_inverse=True)
        seen, shown = (each.reshape(len(each), -1).astype(np.float32) / 255 for each in (frames_EHWC, self.frames))
        distance_EN = (seen**2).sum(1)[:, None] - 2 * seen @ shown.T + (shown**2).sum(1)
        same_EN = codes_E[:, None] == self.codes
        distance_EN[~same_EN & same_EN.any(1, keepdims=True)] = np.inf  # a code that no step has: all count
        near = np.argsort(distance_EN, axis=1, kind="stable")[:, :NEAREST]
        counted = np.take_along_axis(distance_EN, near, axis=1) < np.inf
        votes_EK = (np.eye(len(known))[places_N.reshape(-1)[near]] * counted[..., None]).sum(1)
        return known[votes_EK.argmax(1)]


def keys_of(run: Path, world: WorldModel, labels: int = LABELS, seed: int = 0) -> Keys | None:
    """Return the recorded actions for the latent ones of a run's world.

    ``labels``: steps of the training data with recorded actions, drawn at random. None if the world's actions are
    recorded ones. ReverieError if the data are gone, or no action is recorded.
    """
    if world.lam is None:
        return None
    if not (run / "data").exists():
        raise ReverieError(f"'{run}' came without its data, which say what its latent actions stand for.")
    dataset: Any = open_dataset(run / "data", "train")
    look = world.lam.receptive_field + 1
    known = np.flatnonzero(np.array(labelled(dataset)) & (dataset.lengths >= look))
    if not len(known):
        raise ReverieError(f"'{run}' has latent actions, and no step of its data says which recorded ones they are.")
    rng, steps = np.random.default_rng(seed), []
    for episode in rng.choice(known, labels).tolist():
        first = rng.integers(dataset.lengths[episode] - look + 1)
        steps.append(dataset.read(episode, int(first), look, ("frames", "actions")))
    frames_NT, actions_NT = (np.stack([step[name] for step in steps]) for name in ("frames", "actions"))
    codes_N = np.asarray(compiled(world, lambda world, frames: world.lam.infer(frames))(frames_NT))[:, -1]
    good = ~dataset.spec.actions.is_unlabelled(actions_NT[:, -1])
    return Keys(codes_N[good], frames_NT[good, -2], actions_NT[good, -1], world.lam.codes)
