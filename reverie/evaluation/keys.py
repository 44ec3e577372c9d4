"""Which recorded action each latent action stands for, so that an agent of a latent world can play the real game.

A world that was learned from pictures alone has codes of its own. A few labelled steps say which keys they are.

Shapes: C codes, N labelled steps, T frames that the latent action model depends on.
"""

from pathlib import Path

import numpy as np

from reverie.data.splits import labelled
from reverie.data.store import open_dataset
from reverie.errors import ReverieError
from reverie.evaluation.control import code_map
from reverie.nn.compiled import compiled
from reverie.world import WorldModel

LABELS = 100  # steps whose recorded actions are used


def keys_of(run: Path, world: WorldModel, labels: int = LABELS, seed: int = 0) -> np.ndarray | None:
    """Return the recorded action that each latent action of a run's world stands for, (C, ...).

    ``labels``: steps of the training data with recorded actions, drawn at random. None if the world's actions are
    recorded ones. ReverieError if the data are gone, or no action is recorded.
    """
    if world.lam is None:
        return None
    if not (run / "data").exists():
        raise ReverieError(f"'{run}' came without its data, which say what its latent actions stand for.")
    dataset = open_dataset(run / "data", "train")
    space, look = dataset.spec.actions, world.lam.receptive_field + 1
    known = np.flatnonzero(labelled(dataset) & (dataset.lengths >= look))
    if not len(known):
        raise ReverieError(f"'{run}' has latent actions, and no step of its data says which recorded ones they are.")
    rng, steps = np.random.default_rng(seed), []
    for episode in rng.choice(known, labels).tolist():
        first = rng.integers(dataset.lengths[episode] - look + 1)
        steps.append(dataset.read(episode, int(first), look, ("frames", "actions")))
    frames_NT, recorded_N = np.stack([s["frames"] for s in steps]), np.stack([s["actions"][-1] for s in steps])
    codes_N = np.asarray(compiled(world, lambda world, frames: world.lam.infer(frames))(frames_NT))[:, -1]
    good = ~space.is_unlabelled(recorded_N)
    numbers, places = np.unique([space.number(action) for action in recorded_N[good]], return_inverse=True)
    return space.nth(numbers[code_map(codes_N[good], places, world.lam.codes)])
