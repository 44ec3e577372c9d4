"""A run that starts with the weights of another run, or with plain ones: all whose names and shapes agree.

All others are listed.
"""

import os
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from reverie.actions import ActionSpace
from reverie.catalogue import starts
from reverie.checksums import write_json
from reverie.errors import ReverieError, did_you_mean
from reverie.nn.embed import table_for
from reverie.training import checkpoint, plain
from reverie.training.blueprint import Blueprint, Place, Weights
from reverie.training.folder import STAGES, named
from reverie.training.record import find_run, read_record

REPORT = "start.json"  # in the folder of a run: which weights it has from another run
SHOWN = 3  # names of each kind in the printed line
OURS = "reverie:"  # begins the name of a stage that comes with the package, as in reverie:general/tokenizer


class Taken(NamedTuple):
    """The ``weights`` that another run gave, and names and shapes of those that it did and did not give."""

    weights: Weights
    report: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write the report into a run's folder, if there is one."""
        if self.report:
            write_json(folder / REPORT, self.report)


NOTHING = Taken({}, {})


def take(source: str, out: Path, blueprint: Blueprint, place: Place) -> Taken:
    """Return the weights of ``source``, a run or a file of plain weights, that fit ``blueprint``.

    ``source``: a path from ``out``, or the name of a stage that comes with the package. A run gives its averaged
    weights, if it has them. Prints how many were and were not taken. ReverieError if there is no such source, or if no
    weight fits.
    """
    folder, step, there, spaces = _weights_of(_place(source, out), place)
    here = {name: blueprint.shapes[name] for name in blueprint.saved}
    both = here.keys() & there.keys()
    known = both & spaces.keys() & blueprint.spaces.keys()
    other = {name for name in known if not spaces[name].is_like(blueprint.spaces[name])}
    drawn = {name for name in other if there[name].shape[1:] == here[name].shape[1:]}
    taken = {name: there[name] for name in here if name in both - other and there[name].shape == here[name].shape}
    if not taken:
        raise ReverieError(f"no weight of '{folder}' fits: none has the name and the shape of one of this run.")
    lists = {
        "of other actions": {name: [there[name].shape, here[name].shape] for name in sorted(drawn)},
        "another shape": {name: [there[name].shape, here[name].shape] for name in sorted(both - taken.keys() - drawn)},
        "new": {name: here[name].shape for name in here if name not in both},
        "not used": {name: there[name].shape for name in there if name not in both},
    }
    if jax.process_index() == 0:
        said = [f"{len(taken)} of {len(here)} weights are from '{folder}'" + (f", step {step}" if step else "")]
        for kind, names in lists.items():
            shown = [*names][:SHOWN] + ["..."] * (len(names) > SHOWN)
            said += [f"{len(names)} {kind} ({', '.join(shown)})"] if names else []
        print("; ".join(said), flush=True)
    report = {"run": folder.name, "step": step, "taken": {name: leaf.shape for name, leaf in taken.items()}, **lists}
    for name in drawn:
        key = jax.random.fold_in(jax.random.key(0), jnp.uint32(zlib.crc32(name.encode())))
        draw: Any = jax.jit(table_for, static_argnums=(0, 2))
        table = draw(blueprint.spaces[name], there[name], spaces[name], key)
        taken[name] = jax.device_put(table, place(name, table.shape))
    return Taken({name: leaf.astype(here[name].dtype) for name, leaf in taken.items()}, report)


def _place(source: str, out: Path) -> Path:
    if not source.startswith(OURS):
        # A world that is trained anew lies one folder deeper until it is complete; what is beside it does not.
        beside = out / source
        return beside if beside.exists() else named(out) / source
    name, _, stage = source.removeprefix(OURS).partition("/")
    if name not in (known := starts()) or stage not in STAGES:
        raise ReverieError(f"no weights '{source}' come with Reverie.{did_you_mean(name, known)}")
    return known[name] / stage


def _weights_of(source: Path, place: Place) -> tuple[Path, int | None, Weights, dict[str, ActionSpace]]:
    """Return where the weights of ``source`` lie, the step of a run, the weights by name, and their action spaces."""
    if source.suffix == plain.SUFFIX:
        file = Path(os.path.abspath(source))
        found = plain.read(file).weights
        return file, None, {name: jax.device_put(array, place(name, array.shape)) for name, array in found.items()}, {}
    folder = find_run(source)
    step, parts = checkpoint.restore(folder, place, ("weights", "ema"), together=True)
    record, spaces = read_record(folder), {}
    with suppress(ReverieError):  # a run on top of another one that is gone: what it did not share is not known
        spaces = Blueprint(record.run.objective, record.spec, record.run.seed, folder).spaces
    return folder, step, parts["weights"] | parts["ema"], spaces
