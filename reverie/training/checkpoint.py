"""Self-describing checkpoints: ``load(path)`` needs nothing but the path.

A run's folder holds ``run.json`` (its config, the spec and fingerprint of its data, the code's version) and
``checkpoints/<step>/``. A checkpoint has up to three flat dicts of arrays by dotted name: ``weights`` (trained weights
and other variables that training changes), ``ema`` (the EMA of the trained weights, if any) and ``optimizer``.
Frozen parts are not saved again: the config names the run that trained them. Neither are random keys, which are
functions of the seed and the step.

Both are verified when they are read. ``run.json`` contains a checksum. A checkpoint has a checksum manifest that states
its step and its items (``reverie.checksums``); it is written before the checkpoint gets its name. An empty file
``<step>.saved`` beside the checkpoint stays until a run deletes that, so one that was deleted otherwise is missed.
"""

import logging
import math
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
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from jax.sharding import SingleDeviceSharding

from reverie import config
from reverie.bounded import read_json
from reverie.checksums import check_manifest, write_manifest
from reverie.errors import Damaged, ReverieError, first_line
from reverie.training import plain
from reverie.training.blueprint import Blueprint, Place, Weights
from reverie.training.record import RECORD, Record, find_run, identity, read_record
from reverie.training.sharding import from_first

CHECKPOINTS = "checkpoints"
METADATA = "_CHECKPOINT_METADATA"  # orbax's metadata; our entry in it states that a manifest exists
SEALED = {"manifest": True}
# A new checkpoint of a step that has an old one is named N.new until the old one is removed.
NAME, MARK = re.compile(r"(\d{1,18})(\.new)?"), re.compile(r"(\d{1,18})\.saved")
GONE, UNFINISHED = ".old", ".orbax-checkpoint-tmp"  # in names of checkpoints that are being deleted or written
# Runs being loaded, each needed by the next.
_loading: ContextVar[tuple[Path, ...]] = ContextVar("_loading", default=())

# Errors in orbax are raised from here in one line; this silences the tracebacks it logs.
logging.getLogger("absl").addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)


def is_done(folder: Path, run: Any) -> bool:
    """Whether ``folder`` holds the complete last checkpoint of exactly this run."""
    if not (folder / RECORD).is_file() or run.steps not in steps(folder):
        return False
    if config.to_json(read_record(folder).run) != config.to_json(run):
        return False
    try:
        _check(folder, run.steps, ("weights", "ema", "optimizer"))
    except Damaged:
        return False
    return True


# Models that ``load`` returns, by folder, for runs that are not trained yet, while recipes are checked.
Models = dict[Path, Callable[[], nnx.Module]]
untrained: ContextVar[Models | None] = ContextVar("untrained", default=None)


@contextmanager
def untrained_models(models: Models | None = None) -> Iterator[Models]:
    """Return a dict of models by folder, to be filled: inside, ``load`` gives these and reads no run."""
    models = {} if models is None else models
    token = untrained.set(models)
    try:
        yield models
    finally:
        untrained.reset(token)


def load(path: str | Path, *, step: int | None = None) -> Any:
    """Return the trained model of a run, with the averaged weights if the run kept them.

    ``path``: a run's folder, a world's folder (then its dynamics: a WorldModel), or a file of plain weights, which
    ``reverie export --weights`` writes. ``step``: of the checkpoint; the newest by default. Creates nothing. Raises
    ReverieError if there is no such run, or if it cannot be read.
    """
    models = untrained.get()
    if models is not None and (make := models.get(Path(os.path.abspath(path)))):
        return make()
    whole = Path(path).suffix == plain.SUFFIX
    folder, above = Path(os.path.abspath(path)) if whole else find_run(path), _loading.get()
    if folder in above:
        raise ReverieError(f"'{folder}' is trained on top of itself: the {RECORD} of another run is in its place.")

    def work() -> Any:
        _loading.set((*above, folder))
        return _load_plain(folder) if whole else _load(folder, step)

    # An objective's `init` loads other runs while it is being traced. Traces belong to a thread, so a thread of its own
    # returns arrays and not tracers.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(copy_context().run, work).result()


def _load(folder: Path, step: int | None) -> Any:
    record = read_record(folder)
    device = SingleDeviceSharding(jax.local_devices()[0])
    blueprint = Blueprint(record.run.objective, record.spec, record.run.seed, folder)
    if step is not None and step not in steps(folder):
        raise ReverieError(f"'{folder}' has no checkpoint of step {step}, but of {', '.join(map(str, steps(folder)))}.")
    at, found = restore(folder, lambda *_: device, ("weights", "ema"), step)
    if step not in (None, at):
        raise ReverieError(f"the checkpoint of step {step} in '{folder}' cannot be read.")
    blueprint.check(folder, found["weights"])
    check_frozen(folder, record, blueprint)
    return blueprint.merge(blueprint.build(lambda *_: device, found["weights"] | found["ema"]))


def _load_plain(file: Path) -> Any:
    found, folder = plain.read(file), file.with_suffix("")  # as if the run were there, and the others beside it
    with untrained_models() as models:
        for path, record in found.others.items():
            at = Path(os.path.abspath(folder / path))
            models[at] = structure(record.run, record.spec, at)
        blueprint = Blueprint(found.record.run.objective, found.record.spec, found.record.run.seed, folder)
    blueprint.check(file, found.weights, blueprint.names)
    device = SingleDeviceSharding(jax.local_devices()[0])
    return blueprint.merge({name: jax.device_put(array, device) for name, array in found.weights.items()})


def structure(run: Any, spec: Any, folder: Path) -> Callable[[], nnx.Module]:
    """Return a function that makes the model of a run in ``folder`` on data like ``spec``, untrained."""
    return lambda: run.objective.init(nnx.Rngs(0), spec, folder)


def check_frozen(folder: Path, record: Record, blueprint: Blueprint) -> None:
    """Raise ReverieError if a frozen part from another run has changed since this run was trained with it."""
    if record.frozen != blueprint.fingerprint():
        raise ReverieError(
            f"'{folder}' was trained on top of another run that has changed since (its "
            f"{' or '.join(record.run.objective.frozen)}): train it again, or bring the old one back."
        )


class Writer:
    """Saves in the background; keeps the newest ``keep`` checkpoints, those at the steps ``always``, and the ``best``.

    ``every``: multiples of it are kept as well. ``start``, ``end``: first and last step of this training.
    Checkpoints after ``start`` (of a shorter run, or damaged ones) stay until a new one is complete that is at least as
    late, or is the last. No earlier one is saved, so a run never falls behind its previous state.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 1,
        always: Sequence[int] = (),
        *,
        every: int = 0,
        start: int | None = None,
        end: int | None = None,
    ):
        self._run, self._folder = folder, folder / CHECKPOINTS
        self._keep, self._always, self._every = max(keep, 1), set(always), every
        self.best: Callable[[list[int]], int | None] = lambda found: None  # of some steps, by their reports
        self._later = {step for step in steps(folder) if start is not None and step > start}
        self._first = min(max(self._later, default=0), sys.maxsize if end is None else end)
        self._step: int | None = None  # the step being saved
        options = ocp.options.AsyncOptions(post_finalization_callback=self._seal)
        with self._saving():
            self._folder.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                for step in {*_numbered(folder, MARK)} - {*steps(folder)}:  # before the unfinished one is deleted
                    self._mark(step).unlink()
                for left in self._folder.glob(f"*{UNFINISHED}*"):
                    shutil.rmtree(left, ignore_errors=True)
                self._tidy(set())
            self._checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=options)

    def save(self, step: int, items: dict[str, Weights]) -> bool:
        """Copy the arrays to the host and return; they are written while training continues.

        Returns False, and saves nothing, while an old checkpoint is of a later step.
        """
        self.wait()
        if step < self._first:
            return False
        items = {name: item for name, item in items.items() if item}
        with self._saving():
            # Checked first, because orbax logs a traceback if the disk becomes full while it writes.
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
        """Wait until everything is written and return the steps on disk; ReverieError if writing failed."""
        step, self._step = self._step, None
        with self._saving():
            self._checkpointer.wait_until_finished()
            if step is not None:
                replaced, self._later, self._first = self._later - {step}, set(), 0
                if jax.process_index() == 0:
                    found = [each for each in steps(self._run) if each not in replaced]
                    self._tidy(set(steps(self._run)) - self._kept(found))
        return steps(self._run)

    def _kept(self, found: list[int]) -> set[int]:
        """Which of the steps ``found``, oldest first, are kept."""
        regular = [step for step in found if self._every and step % self._every == 0]
        return {*found[-self._keep :], *regular, *({*self._always, self.best(found)} & {*found})}

    def _seal(self) -> None:
        """Write the checksum manifest, in orbax's thread, after all files and before the folder gets its name."""
        final = self._folder / self._name
        written = next(self._folder.glob(f"{self._name}{UNFINISHED}*"), final)
        write_manifest(written, self._about)
        self._mark(step := self._about["step"]).write_text(f"{step}\n", "utf-8")  # some programs copy no empty files

    def _mark(self, step: int) -> Path:
        return self._folder / f"{step}.saved"

    def _tidy(self, delete: set[int]) -> None:
        """Give new checkpoints their names and delete old ones, which lose their valid name first."""
        for fresh in self._folder.glob("*.new"):
            named = fresh.with_suffix("")
            if named.exists():
                os.replace(named, named.with_suffix(GONE))
            os.replace(fresh, named)
        for step in delete:
            self._mark(step).unlink(missing_ok=True)  # earlier versions wrote none
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
        except Exception as error:  # on a full disk orbax raises an OSError, a ValueError or a bare Exception
            good = steps(self._run)
            left = f"The checkpoint of step {good[-1]} is intact." if good else "There is no earlier checkpoint."
            raise ReverieError(f"cannot save to '{self._folder}': {first_line(error)}. {left}") from error


def steps(folder: Path) -> list[int]:
    """Return the steps of a run's checkpoints, oldest first. Unfinished ones have longer names and do not count."""
    return _numbered(folder, NAME)


def _numbered(folder: Path, pattern: re.Pattern[str]) -> list[int]:
    root = folder / CHECKPOINTS
    found = [pattern.fullmatch(path.name) for path in root.iterdir()] if root.is_dir() else []
    return sorted({int(match[1]) for match in found if match})


def missing(folder: Path, newest: int | None = None) -> int | None:
    """Return the step of the last checkpoint up to step ``newest`` if something else than a run deleted it."""
    limit = sys.maxsize if newest is None else newest
    saved = max((step for step in _numbered(folder, MARK) if step <= limit), default=None)
    # A run that was killed between the mark and the name leaves an unfinished checkpoint: nothing was lost.
    if saved is None or any((folder / CHECKPOINTS).glob(f"{saved}{UNFINISHED}*")):
        return None
    return None if any(saved <= step <= limit for step in steps(folder)) else saved


def reaches(item: Path, newest: int | None) -> bool:
    """Whether a run that resumes from step ``newest`` (None: from scratch) keeps ``item``, a path in its folder."""
    if newest is None:
        return False
    name = item.parts[1] if item.parts[0] == CHECKPOINTS and len(item.parts) > 1 else ""
    step = NAME.fullmatch(name) or MARK.fullmatch(name)
    return step is None or int(step[1]) <= newest


def place_of(folder: Path, step: int) -> Path:
    """Return the folder of a run's checkpoint."""
    fresh = folder / CHECKPOINTS / f"{step}.new"
    return fresh if fresh.is_dir() else folder / CHECKPOINTS / str(step)


def size(folder: Path, step: int) -> tuple[int, int]:
    """Return how many numbers the weights of a checkpoint are, and how many bytes all of it takes on disk.

    Nothing is loaded. ``Damaged`` unless its files are those that were written, by name and size.
    """
    at = place_of(folder, step)
    check_manifest(at, lambda name: False)
    taken = sum(file.stat().st_size for file in at.rglob("*") if file.is_file())
    try:
        arrays = ocp.StandardCheckpointHandler().metadata(epath.Path(at / "weights")).tree.values()
    except Exception as error:  # whatever orbax makes of a file of its own that is not as it should be
        raise Damaged(f"its shapes cannot be read ({first_line(error)})") from error
    return sum(math.prod(array.shape) for array in arrays), taken


def restore(
    folder: Path, place: Place, items: Sequence[str], newest: int | None = None, *, together: bool = False
) -> tuple[int, dict[str, Weights]]:
    """Return (step, {item: arrays by name}) of the newest intact checkpoint up to step ``newest``.

    ``place`` gives the shardings, whichever devices the arrays were saved from. Items that were not saved are empty. A
    checkpoint with wrong checksums is skipped with a printed line, and stays on disk; ReverieError if none is left. Any
    other read error is raised, since it does not mean damage. ``together``: every process of a job calls this at once,
    and process 0 chooses the step for all.
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
    except Exception as error:  # orbax raises various errors for a failing disk, or devices without memory
        raise ReverieError(
            f"the checkpoint of step {step} in '{folder}' cannot be read now ({first_line(error)}); nothing is wrong "
            f"with its checksums, and nothing was changed: try again."
        ) from error


def _newest_whole(folder: Path, items: Sequence[str], newest: int | None) -> int:
    def say(step: int, what: str) -> None:
        print(f"The checkpoint of step {step} in '{folder}' is {what}.", file=sys.stderr)

    candidates = [step for step in reversed(steps(folder)) if newest is None or step <= newest]
    gone = missing(folder, newest)
    if candidates and gone is not None:
        say(gone, f"missing; the newest left is of step {candidates[0]}")
    for step in candidates:
        try:
            _check(folder, step, items)
            return step
        except Damaged as error:
            say(step, f"damaged ({first_line(error)})")
    none = "it has no checkpoint yet" if gone is None else f"its checkpoint of step {gone} is missing"
    why = "none of its checkpoints can be read" if candidates else none
    raise ReverieError(f"nothing to load from '{folder}': {why}.")


def _check(folder: Path, step: int, items: Sequence[str]) -> None:
    """Raise ``Damaged`` unless a checkpoint is of its step and the checksums of its ``items`` are right."""
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
    """Return the items of a checkpoint, from its manifest, or from its folders if an earlier version wrote none."""
    if about is None:
        return {path.name for path in at.iterdir() if path.is_dir()}
    return set(about.get("items") or {name.partition("/")[0] for name in about["files"] if "/" in name})


def named(tree: Any) -> Weights:
    """Return the leaves of a pytree by dotted path: ``{"1.0.mu.encoder.kernel": ...}``."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _read(path: Path, place: Place) -> Weights:
    handler = ocp.StandardCheckpointHandler()
    known = handler.metadata(epath.Path(path)).tree
    dtypes = {n: jnp.float32 if m.dtype == jnp.float16 else m.dtype for n, m in known.items()}  # an export's rounding
    target = {n: jax.ShapeDtypeStruct(m.shape, dtypes[n], sharding=place(n, tuple(m.shape))) for n, m in known.items()}
    return handler.restore(epath.Path(path), args=ocp.args.StandardRestore(target))
