"""A run that starts with the weights of another run: those whose names and shapes agree, and lists of all others."""

from pathlib import Path
from typing import Any, NamedTuple

import jax

from reverie.checksums import write_json
from reverie.errors import ReverieError
from reverie.training import checkpoint
from reverie.training.blueprint import Blueprint, Place, Weights
from reverie.training.record import find_run

REPORT = "start.json"  # in the folder of a run: which weights it has from another run
SHOWN = 3  # names of each kind in the printed line


class Taken(NamedTuple):
    """The ``weights`` that another run gave, and names and shapes of those that it did and did not give."""

    weights: Weights
    report: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write the report into a run's folder, if there is one."""
        if self.report:
            write_json(folder / REPORT, self.report)


NOTHING = Taken({}, {})


def take(source: Path, blueprint: Blueprint, place: Place) -> Taken:
    """Return the trained weights of ``source`` that fit ``blueprint``: the averaged ones, if the run has them.

    Prints how many were and were not taken. ReverieError if there is no such run, or if no weight fits.
    """
    folder = find_run(source)
    step, found = checkpoint.restore(folder, place, ("weights", "ema"), together=True)
    there, here = found["weights"] | found["ema"], {name: blueprint.shapes[name] for name in blueprint.saved}
    both = here.keys() & there.keys()
    taken = {name: there[name] for name in here if name in both and there[name].shape == here[name].shape}
    if not taken:
        raise ReverieError(f"no weight of '{folder}' fits: none has the name and the shape of one of this run.")
    lists = {
        "another shape": {name: [there[name].shape, here[name].shape] for name in sorted(both - taken.keys())},
        "new": {name: here[name].shape for name in here if name not in both},
        "not used": {name: there[name].shape for name in there if name not in both},
    }
    if jax.process_index() == 0:
        said = [f"{len(taken)} of {len(here)} weights are from '{folder}', step {step}"]
        for kind, names in lists.items():
            shown = [*names][:SHOWN] + ["..."] * (len(names) > SHOWN)
            said += [f"{len(names)} {kind} ({', '.join(shown)})"] if names else []
        print("; ".join(said), flush=True)
    report = {"run": folder.name, "step": step, "taken": {name: leaf.shape for name, leaf in taken.items()}, **lists}
    return Taken({name: leaf.astype(here[name].dtype) for name, leaf in taken.items()}, report)
