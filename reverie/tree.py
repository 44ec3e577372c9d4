"""``reverie show RUN --tree``: a model as a tree of its parts, with parameters, shapes, bytes and shardings.

The structure is traced. No weight of this run is read or computed.
"""

import math
from pathlib import Path
from typing import Any

import jax
from rich.tree import Tree

from reverie.training import sharding
from reverie.training.blueprint import Blueprint
from reverie.training.cost import size_of
from reverie.training.log import si
from reverie.training.record import find_run, read_record

PARTS = {"params": "", "rest": "not trained", "frozen": "frozen"}


def tree(path: str | Path, layout: str = "") -> Tree:
    """Return the model of a run, or of a world's dynamics, as it lies on a mesh, the run's own by default.

    The devices need not be here. Raises ReverieError if there is no such run, if a run on top of which it was trained
    is missing, or if the layout is none.
    """
    folder = find_run(path)
    record = read_record(folder)
    blueprint = Blueprint(record.run.objective, record.spec, record.run.seed, folder)
    layout = layout or record.run.mesh
    mesh = sharding.sketched(layout)
    part_of = {name: part for part, names in blueprint.parts.items() for name in names}
    devices = f"{mesh.size} device{'s' if mesh.size > 1 else ''}, mesh {layout}"
    root = Tree(f"{folder.name}: {_total(blueprint.shapes.values())}, on {devices}", highlight=False)
    nodes: dict[str, Tree] = {"": root}
    for name, leaf in blueprint.shapes.items():
        *above, last = name.split(".")
        for depth in range(1, len(above) + 1):
            at = ".".join(above[:depth])
            if at not in nodes:
                inside = [each for each in blueprint.shapes if each.startswith(f"{at}.")]
                kinds = {part_of[each] for each in inside}
                mark = f", {PARTS[kinds.pop()]}" if len(kinds) == 1 and kinds != {"params"} else ""
                total = _total(blueprint.shapes[each] for each in inside)
                nodes[at] = nodes[".".join(above[: depth - 1])].add(f"{above[depth - 1]}: {total}{mark}")
        spec = sharding.sharding(mesh, name, leaf.shape).spec
        nodes[".".join(above)].add(f"{last}  {_shape(leaf)}  {_bytes([leaf])}  {_placed(spec)}")
    return root


def _total(leaves: Any) -> str:
    leaves = list(leaves)
    return f"{si(sum(math.prod(leaf.shape) for leaf in leaves)).strip()} numbers, {_bytes(leaves)}"


def _bytes(leaves: list[Any]) -> str:
    return f"{si(size_of(leaves))}B"


def _shape(leaf: jax.ShapeDtypeStruct) -> str:
    return f"{leaf.dtype.name}[{', '.join(map(str, leaf.shape))}]"


def _placed(spec: Any) -> str:
    """Return in words how an array lies on a mesh."""
    cut = [f"axis {axis} over {names}" for axis, names in enumerate(spec) if names]
    return f"sharded: {', '.join(cut)}" if cut else "replicated"
