"""Checkpoints that know themselves: ``load(path)`` needs nothing but the path.

A run's folder holds ``run.json`` (its config, the spec and fingerprint of its data, the code's version) and
``checkpoints/<step>/`` with up to three flat dicts of arrays by dotted name: ``weights`` (what was trained, and what
training changed besides), ``ema`` (the running mean of the trained weights, when there is one) and ``optimizer``.
Frozen parts are not in it: they belong to the run that trained them, which the config names. Nor are random keys:
they are functions of the seed and the step.

Both are checked when they are read: ``run.json`` has a checksum inside, a checkpoint a checksum manifest that knows its
step and its items (``reverie.checksums``), written before the checkpoint gets its name.
"""

import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from jax.sharding import SingleDeviceSharding

from reverie import config
from reverie.bounded import read_json
from reverie.checksums import check_manifest, write_manifest
from reverie.errors import Damaged, ReverieError, first_line
from reverie.training.blueprint import Blueprint, Place, Weights
from reverie.training.record import RECORD, Record, find_run, identity, read_record
from reverie.training.sharding import from_first

CHECKPOINTS = "checkpoints"
METADATA = "_CHECKPOINT_METADATA"  # orbax's own, in each checkpoint; ours in it says that there is a checksum manifest
SEALED = {"manifest": True}
# A new checkpoint of a step of which there is an old one is called N.new, until the old one is out of its way.
NAME = re.compile(r"(\d{1,18})(\.new)?")
GONE, UNFINISHED = ".old", ".orbax-checkpoint-tmp"  # in the names of those being deleted, and being written
_loading: ContextVar[tuple[Path, ...]] = ContextVar("_loading", default=())  # runs being loaded, each for the next

# What goes wrong in orbax is raised from here in one line; its own pages of traceback need not come before it.
logging.getLogger("absl").addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)


def is_done(folder: Path, run: Any) -> bool:
    """Whether ``folder`` holds the last checkpoint of just this run, whole."""
    if not (folder / RECORD).is_file() or run.steps not in steps(folder):
        return False
    if config.to_json(read_record(folder).run) != config.to_json(run):
        return False
    try:
        _check(folder, run.steps, ("weights", "ema", "optimizer"))
    except Damaged:
        return False
    return True


# Models that ``load`` gives for runs that are yet to be trained, by folder, while recipes are checked.
untrained: ContextVar[dict[Path, Callable[[], nnx.Module]] | None] = ContextVar("untrained", default=None)


def load(path: str | Path) -> Any:
    """Return what a run trained, with the averaged weights where the run kept them.

    ``path``: a run's folder, or a world's folder (then its dynamics: a WorldModel). Raises ReverieError, and creates
    nothing, when there is no such run or nothing in it can be read.
    """
    if make := (untrained.get() or {}).get(Path(os.path.abspath(path))):
        return make()
    folder, above = find_run(path), _loading.get()
    if folder in above:
        raise ReverieError(f"'{folder}' is trained on top of itself: the {RECORD} of another run is in its place.")

    def work() -> Any:
        _loading.set((*above, folder))
        return _load(folder)

    # An objective's `init` loads other runs while it is being traced. Traces belong to a thread: in one of its own,
    # what is read here are arrays, wherever the call came from.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(copy_context().run, work).result()


def _load(folder: Path) -> Any:
    record = read_record(folder)
    device = SingleDeviceSharding(jax.local_devices()[0])
    blueprint = Blueprint(record.run.objective, record.spec, record.run.seed, folder)
    _, found = restore(folder, lambda shape: device, ("weights", "ema"))
    blueprint.check(folder, found["weights"])
    check_frozen(folder, record, blueprint)
    return blueprint.merge(blueprint.build(lambda shape: device, found["weights"] | found["ema"]))


def check_frozen(folder: Path, record: Record, blueprint: Blueprint) -> None:
    """Raise ReverieError if a part that a run took from another one is no longer what it learned with."""
    if record.frozen != blueprint.fingerprint():
        raise ReverieError(
            f"'{folder}' was trained on top of another run that has changed since (its "
            f"{' or '.join(record.run.objective.frozen)}): train it again, or bring the old one back."
        )


class Writer:
    """Saves in the background, keeps the newest ``keep`` checkpoints and those at the steps ``always``.

    ``start``, ``end``: steps that training goes on from, and to. Checkpoints after ``start`` (the end of a shorter run,
    or damaged ones) stay until a new one is complete that is as late as the last of them, or is the last of all. None
    is saved before that, so a run is never older than it was.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 1,
        always: Sequence[int] = (),
        start: int | None = None,
        end: int | None = None,
    ):
        self._run, self._folder = folder, folder / CHECKPOINTS
        self._keep, self._always = max(keep, 1), set(always)
        self._later = {step for step in steps(folder) if start is not None and step > start}
        self._first = min(max(self._later, default=0), sys.maxsize if end is None else end)
        self._step: int | None = None  # which is being saved
        options = ocp.options.AsyncOptions(post_finalization_callback=self._seal)
        with self._saving():
            self._folder.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                for left in self._folder.glob(f"*{UNFINISHED}*"):
                    shutil.rmtree(left, ignore_errors=True)
                self._tidy(set())
            self._checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=options)

    def save(self, step: int, items: dict[str, Weights]) -> bool:
        """Copy the arrays off the devices and return; they are written while training goes on.

        Returns False, and saves nothing, while an older checkpoint is of a later step.
        """
        self.wait()
        if step < self._first:
            return False
        items = {name: item for name, item in items.items() if item}
        with self._saving():
            # A disk that fills up on the way is an error as well, but orbax makes a noise about it.
            needed = sum(leaf.nbytes for item in items.values() for leaf in item.values())
            if (free := shutil.disk_usage(self._folder).free) < needed:
                raise OSError(f"the disk is full: {needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")
            self._about = {"run": identity(self._run), "step": step, "items": sorted(items)}
            self._name = f"{step}.new" if (self._folder / str(step)).exists() else str(step)
            args = ocp.args.Composite(**{name: ocp.args.StandardSave(item) for name, item in items.items()})
            self._step = step
            self._checkpointer.save(self._folder / self._name, args=args, force=True, custom_metadata=SEALED)
        return True

    def wait(self) -> list[int]:
        """Return the steps on disk when everything is written; ReverieError if it could not be."""
        step, self._step = self._step, None
        with self._saving():
            self._checkpointer.wait_until_finished()
            if step is not None:
                replaced, self._later, self._first = self._later - {step}, set(), 0
                if jax.process_index() == 0:
                    found = [each for each in steps(self._run) if each not in replaced]
                    kept = {*found[-self._keep :], *self._always.intersection(found)}
                    self._tidy(set(steps(self._run)) - kept)
        return steps(self._run)

    def _seal(self) -> None:
        """Write the checksum manifest: in orbax's thread, when all is written and the folder has no name yet."""
        final = self._folder / self._name
        written = next(self._folder.glob(f"{self._name}{UNFINISHED}*"), final)
        write_manifest(written, self._about)

    def _tidy(self, delete: set[int]) -> None:
        """Give new checkpoints their names, and delete old ones: what is half deleted has no valid name any more."""
        for fresh in self._folder.glob("*.new"):
            named = fresh.with_suffix("")
            if named.exists():
                os.replace(named, named.with_suffix(GONE))
            os.replace(fresh, named)
        for step in delete:
            os.replace(self._folder / str(step), self._folder / f"{step}{GONE}")
        for gone in self._folder.glob(f"*{GONE}"):
            shutil.rmtree(gone, ignore_errors=True)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except ReverieError:
            if kind is None:
                raise
        finally:
            self._checkpointer.close()

    @contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of a full disk orbax makes an OSError, a ValueError or a bare Exception
            good = steps(self._run)
            left = f"The checkpoint of step {good[-1]} is intact." if good else "There is no earlier checkpoint."
            raise ReverieError(f"cannot save to '{self._folder}': {first_line(error)}. {left}") from error


def steps(folder: Path) -> list[int]:
    """Return the steps of which a run has checkpoints, oldest first. (Unfinished ones have longer names.)"""
    root = folder / CHECKPOINTS
    found = [NAME.fullmatch(path.name) for path in root.iterdir()] if root.is_dir() else []
    return sorted({int(match[1]) for match in found if match})


def reaches(item: Path, newest: int | None) -> bool:
    """Whether a run that goes on from step ``newest`` (None: from nothing) keeps ``item``, a path in its folder."""
    if newest is None:
        return False
    step = NAME.fullmatch(item.parts[1]) if item.parts[0] == CHECKPOINTS and len(item.parts) > 1 else None
    return step is None or int(step[1]) <= newest


def place_of(folder: Path, step: int) -> Path:
    """Return the folder of a run's checkpoint."""
    fresh = folder / CHECKPOINTS / f"{step}.new"
    return fresh if fresh.is_dir() else folder / CHECKPOINTS / str(step)


def restore(
    folder: Path, place: Place, items: Sequence[str], newest: int | None = None, *, together: bool = False
) -> tuple[int, dict[str, Weights]]:
    """Return (step, {item: arrays by name}) of the newest whole checkpoint, up to step ``newest``.

    Arrays are put where ``place`` says, whatever devices they were saved from. Items that were not saved come back
    empty. A checkpoint that its checksums prove damaged is passed over with a line, and stays; ReverieError when none
    is left. Any other error in reading says nothing about the checkpoint and is raised. ``together``: every process of
    a job calls this at once, and the first one chooses the step for all.
    """

    def choose() -> int:
        return _newest_whole(folder, items, newest)

    step = from_first(choose) if together else choose()
    at = place_of(folder, step)
    try:
        saved = _items(at, check_manifest(at, lambda name: False))
        return step, {item: _read(at / item, place) if item in saved else {} for item in items}
    except (ReverieError, OSError, MemoryError):
        raise
    except Exception as error:  # whatever orbax makes of a disk that fails, or of devices without room
        raise ReverieError(
            f"the checkpoint of step {step} in '{folder}' cannot be read now ({first_line(error)}); nothing is wrong "
            f"with its checksums, and nothing was changed: try again."
        ) from error


def _newest_whole(folder: Path, items: Sequence[str], newest: int | None) -> int:
    candidates = [step for step in reversed(steps(folder)) if newest is None or step <= newest]
    for step in candidates:
        try:
            _check(folder, step, items)
            return step
        except Damaged as error:
            print(f"The checkpoint of step {step} in '{folder}' is damaged ({first_line(error)}).", file=sys.stderr)
    why = "none of its checkpoints can be read" if candidates else "it has no checkpoint yet"
    raise ReverieError(f"nothing to load from '{folder}': {why}.")


def _check(folder: Path, step: int, items: Sequence[str]) -> None:
    """Raise ``Damaged`` unless a checkpoint is what was written, is of its step, and its ``items`` are whole."""
    at = place_of(folder, step)
    about = check_manifest(at, lambda name: "/" not in name or name.partition("/")[0] in items)
    if about is None:
        metadata = read_json(at / METADATA) if (at / METADATA).is_file() else None
        if not isinstance(metadata, dict) or metadata.get("custom_metadata") == SEALED:
            raise Damaged("its checksum manifest is missing")
    if about is not None and about.get("step", step) != step:
        raise Damaged(f"what is in it is of step {about['step']}")
    if about is not None and about.get("run") and about["run"] != identity(folder):
        raise Damaged(f"what is in it is of another run ({about['run']})")
    if "weights" not in _items(at, about):
        raise Damaged("its weights are missing")


def _items(at: Path, about: dict[str, Any] | None) -> set[str]:
    """The items of a checkpoint: as its manifest says, or, where an earlier version wrote none, its folders."""
    if about is None:
        return {path.name for path in at.iterdir() if path.is_dir()}
    return set(about.get("items") or {name.partition("/")[0] for name in about["files"] if "/" in name})


def named(tree: Any) -> Weights:
    """Return the leaves of any pytree by the path to each: ``{"1.0.mu.encoder.kernel": ...}``."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _read(path: Path, place: Place) -> Weights:
    handler = ocp.StandardCheckpointHandler()
    known = handler.metadata(epath.Path(path)).tree
    target = {n: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=place(tuple(m.shape))) for n, m in known.items()}
    return handler.restore(epath.Path(path), args=ocp.args.StandardRestore(target))
