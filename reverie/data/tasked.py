"""The task of each frame, as a number that a policy can be conditioned on."""

from collections.abc import Collection

import numpy as np

from reverie.data.episode import Dataset

TASK = "task"  # the name of the array


class Tasked:
    """A dataset whose windows also have the id of their episode's task: "task" int32 (length,).

    named: the task of each episode, in words; tasks: those that have an id (see ``Spec``). Others are 0.
    """

    def __init__(self, dataset: Dataset, named: list[str], tasks: tuple[str, ...]):
        self.dataset, self.spec, self.split = dataset, dataset.spec, dataset.split
        self.lengths, self.fingerprint = dataset.lengths, dataset.fingerprint
        ids = {task: number for number, task in enumerate(tasks, start=1)}
        self._ids = [ids.get(task, 0) for task in named]

    def read(
        self, episode: int, start: int, length: int, names: Collection[str] | None = None
    ) -> dict[str, np.ndarray]:
        """See ``Dataset.read``."""
        window = self.dataset.read(episode, start, length, names)
        if names is not None and TASK not in names:
            return window
        return window | {TASK: np.full(length, self._ids[episode], np.int32)}
