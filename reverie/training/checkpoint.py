"""Checkpoints that know themselves: ``load(path)`` needs nothing but the path.

A run's folder holds ``run.json`` (its config, the spec and fingerprint of its data, the code's version) and
``checkpoints/<step>/`` with up to three flat dicts of arrays by dotted name: ``weights`` (what was trained, and what
training changed besides), ``ema`` (the running mean of the trained weights, when there is one) and ``optimizer``.
Frozen parts are not in it: they belong to the run that trained them, which the config names. Nor are random keys:
they are functions of the seed and the step.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import SingleDeviceSharding

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from reverie import config
from reverie.errors import ReverieError, did_you_mean
from reverie.training.blueprint import Blueprint, Place, Weights
from reverie.training.log import WANDB
from reverie.training.sharding import by_first

FORMAT = 1  # of run.json and of what lies beside it
RECORD, CHECKPOINTS = "run.json", "checkpoints"
SEAL = "seal.json"  # sizes and checksums of a checkpoint's files
COMMIT = "commit_success.txt"  # orbax writes it, and needs it on cloud storage only
# What a disk refuses: it is full, read-only, forbidden, or has a file where a folder should be.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}

# What goes wrong in orbax is raised from here in one line; its own pages of traceback need not come before it.
logging.getLogger("absl").addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)


@dataclass(frozen=True)
class Record:
    """What ``run.json`` says: the run's config, the spec of its data, what they and the frozen weights hash to."""

    run: Any
    spec: Any
    fingerprint: str
    frozen: str = ""


def write_record(folder: Path, record: Record) -> None:
    """Write ``run.json``, whole or not at all."""
    text = {
        "format": FORMAT,
        "reverie": _version(),
        "code": _code_hash(),
        "jax": jax.__version__,
        "data": record.fingerprint,
        "frozen": record.frozen,
        "spec": config.to_json(record.spec),
        "run": config.to_json(record.run),
    }
    fresh = folder / f".{RECORD}.{os.getpid()}"
    fresh.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, folder / RECORD)


def read_record(folder: Path) -> Record:
    """Read ``run.json``; ReverieError when it is damaged, or newer than this code."""
    try:
        data = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        version = data["format"]
        if version > FORMAT:
            raise ReverieError(
                f"'{folder}' was made by Reverie {data['reverie']}, newer than this one: upgrade to use it."
            )
        return Record(config.from_json(data["run"]), config.from_json(data["spec"]), data["data"], data["frozen"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReverieError(
            f"'{folder / RECORD}' cannot be read ({error!r}): it is damaged or not Reverie's."
        ) from error


def find_run(path: str | Path) -> Path:
    """Return the folder of a run: ``path`` itself, or the dynamics of a world's folder. Creates nothing."""
    path = Path(os.path.abspath(path))  # "run/../other" is read before there is a run
    if not path.exists():
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ReverieError(f"there is nothing at '{path}'.{did_you_mean(path.name, near) if len(near) < 50 else ''}")
    for folder in (path, path / "dynamics"):
        if (folder / RECORD).is_file():
            return folder
    stages = sorted(p.parent.name for p in path.glob(f"*/{RECORD}")) if path.is_dir() else []
    hint = f" It has stages: {', '.join(stages)}; name one of them." if stages else ""
    raise ReverieError(f"'{path}' holds no trained model: there is no {RECORD} in it.{hint}")


def is_done(folder: Path, run: Any) -> bool:
    """Whether ``folder`` holds the last checkpoint of just this run."""
    if not (folder / RECORD).is_file() or run.steps not in steps(folder):
        return False
    return config.to_json(read_record(folder).run) == config.to_json(run)


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Create a run's folder and keep other processes from training in it; what its disk refuses is one line."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            by_first(lambda: _lock(lock, folder))
            yield
    except OSError as error:
        if error.errno not in FULL | CLOSED:
            raise
        raise ReverieError(f"cannot write to '{folder}': {error.strerror}.") from error


def _lock(file: IO, folder: Path) -> None:
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the system however the process ends
    except BlockingIOError:
        raise ReverieError(f"another process is training in '{folder}': wait, or choose another.") from None


def clear(folder: Path) -> None:
    """Throw away what a run has left in its folder, and nothing else that may lie there."""

    def removed() -> None:
        for name in (CHECKPOINTS, "report", "cache"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in ("metrics.jsonl", "timing.jsonl", WANDB, RECORD):
            (folder / name).unlink(missing_ok=True)

    by_first(removed)


def load(path: str | Path) -> Any:
    """Return what a run trained, with the averaged weights where the run kept them.

    ``path``: a run's folder, or a world's folder (then its dynamics: a WorldModel). Raises ReverieError, and creates
    nothing, when there is no such run or nothing in it can be read.
    """
    # An objective's `init` loads other runs while it is being traced. Traces belong to a thread: in one of its own,
    # what is read here are arrays, wherever the call came from.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_load, find_run(path)).result()


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


def export(run: str | Path, out: str | Path) -> Path:
    """Write a slim copy of a run, or of every stage of a world: configs and weights, nothing to train on with."""
    source, out = Path(run).absolute(), Path(out).absolute()
    if out.exists():
        raise ReverieError(f"'{out}' exists already: choose another place for the copy.")
    stages = [source] if (source / RECORD).is_file() else sorted(p.parent for p in source.glob(f"*/{RECORD}"))
    if not stages:
        find_run(source)
    device = SingleDeviceSharding(jax.local_devices()[0])
    half = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        for stage in stages:
            folder = half / stage.relative_to(source)
            folder.mkdir(parents=True)
            shutil.copyfile(stage / RECORD, folder / RECORD)
            step, found = restore(stage, lambda shape: device, ("weights", "ema"))
            with Writer(folder) as writer:
                writer.save(step, {"weights": found["weights"] | found["ema"]})
        for note in half.rglob(COMMIT):
            note.unlink()  # it names the folder it was written to
        for extra in (*source.glob("*.json"), *source.glob("*.npz")):
            shutil.copyfile(extra, half / extra.name)
        os.replace(half, out)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return out


class Writer:
    """Saves in the background, keeps the newest ``keep`` checkpoints and those at the steps ``always``."""

    def __init__(self, folder: Path, keep: int = 1, always: Sequence[int] = ()):
        self._folder = folder / CHECKPOINTS
        self._unsealed: Path | None = None
        policies = ocp.checkpoint_managers
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(max(keep, 1)), policies.CustomSteps(list(always))]
            ),
            cleanup_tmp_directories=True,
        )
        with self._saving():
            self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, step: int, items: dict[str, Weights]) -> None:
        """Copy the arrays off the devices and return; they are written while training goes on."""
        self.wait()
        with self._saving():
            # A disk that fills up on the way is an error as well, but orbax makes a noise about it.
            needed = sum(leaf.nbytes for item in items.values() for leaf in item.values())
            if (free := shutil.disk_usage(self._folder).free) < needed:
                raise OSError(f"the disk is full: {needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")
            args = {name: ocp.args.StandardSave(item) for name, item in items.items() if item}
            self._manager.save(step, args=ocp.args.Composite(**args), force=True)
            self._unsealed = self._folder / str(step)

    def wait(self) -> list[int]:
        """Return the steps on disk when everything is written; ReverieError if it could not be."""
        unsealed, self._unsealed = self._unsealed, None
        with self._saving():
            self._manager.wait_until_finished()
            if unsealed and jax.process_index() == 0:
                _seal(unsealed)
        return steps(self._folder.parent)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except ReverieError:
            if kind is None:
                raise
        finally:
            self._manager.close()

    @contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except (
            Exception
        ) as error:  # a full disk is an OSError, a ValueError or a bare Exception, depending on who met it
            good = steps(self._folder.parent)
            left = f"The checkpoint of step {good[-1]} is intact." if good else "There is no earlier checkpoint."
            raise ReverieError(f"cannot save to '{self._folder}': {_first_line(error)}. {left}") from error


def steps(folder: Path) -> list[int]:
    """Return the steps of which a run has checkpoints, oldest first. (Unfinished ones have longer names.)"""
    root = folder / CHECKPOINTS
    return sorted(int(p.name) for p in root.iterdir() if p.name.isdigit()) if root.is_dir() else []


def restore(
    folder: Path, place: Place, items: Sequence[str], newest: int | None = None
) -> tuple[int, dict[str, Weights]]:
    """Return (step, {item: arrays by name}) of the newest checkpoint that can be read, up to step ``newest``.

    Arrays are put where ``place`` says, whatever devices they were saved from. Items that were not saved come back
    empty. A damaged checkpoint is passed over with a line; ReverieError when none is left.
    """
    candidates = [step for step in reversed(steps(folder)) if newest is None or step <= newest]
    for step in candidates:
        try:
            return step, {item: _read(folder / CHECKPOINTS / str(step) / item, place) for item in items}
        except Exception as error:  # whatever orbax makes of missing, cut or garbled files
            print(f"The checkpoint of step {step} in '{folder}' is damaged ({_first_line(error)}).", file=sys.stderr)
    why = "none of its checkpoints can be read" if candidates else "it has no checkpoint yet"
    raise ReverieError(f"nothing to load from '{folder}': {why}.")


def remove_after(folder: Path, step: int) -> None:
    """Delete the checkpoints after ``step``: the run goes on from there."""
    for later in steps(folder):
        if later > step:
            shutil.rmtree(folder / CHECKPOINTS / str(later))


def named(tree: Any) -> Weights:
    """Return the leaves of any pytree by the path to each: ``{"1.0.mu.encoder.kernel": ...}``."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _read(path: Path, place: Place) -> Weights:
    if not path.is_dir() and path.parent.is_dir() and path.name != "weights":
        return {}
    _check_seal(path.parent, path.name)  # before orbax reads: it leaves noisy threads behind when a file is broken
    handler = ocp.StandardCheckpointHandler()
    known = handler.metadata(epath.Path(path)).tree
    target = {n: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=place(tuple(m.shape))) for n, m in known.items()}
    return handler.restore(epath.Path(path), args=ocp.args.StandardRestore(target))


def _seal(folder: Path) -> None:
    """Note size and checksum of every file of a finished checkpoint."""
    names = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    seal = {name: [file.stat().st_size, _crc(file)] for name, file in names.items() if file.name != COMMIT}
    fresh = folder / f".{SEAL}.{os.getpid()}"
    fresh.write_text(json.dumps(seal), encoding="utf-8")
    os.replace(fresh, folder / SEAL)


def _check_seal(folder: Path, item: str) -> None:
    """Raise ValueError unless the files of an item are as they were sealed; what has no seal yet passes."""
    if not (folder / SEAL).is_file():
        return
    for name, (size, crc) in json.loads((folder / SEAL).read_text(encoding="utf-8")).items():
        if name.startswith(f"{item}/"):
            file = folder / name
            if not file.is_file():
                raise ValueError(f"{name} is missing")
            if file.stat().st_size != size or _crc(file) != crc:
                raise ValueError(f"{name} is not what was written")


def _crc(file: Path) -> int:
    crc = 0
    with file.open("rb") as stream:
        while block := stream.read(2**22):
            crc = zlib.crc32(block, crc)
    return crc


def _version() -> str:
    try:
        return metadata.version("reverie-worlds")
    except metadata.PackageNotFoundError:  # run from its source, not installed
        return "unknown"


def _code_hash() -> str:
    """A hash of the package's source: it says which code made a run also where git is not at hand."""
    root = Path(config.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
