"""``run.json``, the record of a run: its config, the spec and fingerprint of its data, and its code version."""

import hashlib
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from reverie import config
from reverie.bounded import read_json
from reverie.checksums import checked, write_json
from reverie.errors import Damaged, ReverieError, did_you_mean, first_line
from reverie.training.folder import RECORD, settled

FORMAT = 2  # of run.json; format 1 had no checksum
VERSIONS = ("reverie", "code", "jax", "hardware")


@dataclass(frozen=True)
class Record:
    """The content of ``run.json``: the run's config, the spec of its data, hashes of data and frozen weights.

    ``versions``: of the code that began or last resumed the run, by "reverie", "code" and "jax", and the
    "hardware" it ran on; "" if unknown.
    """

    run: Any
    spec: Any
    fingerprint: str
    frozen: str = ""
    versions: dict[str, str] = field(default_factory=dict)


def versions() -> dict[str, str]:
    """Return what trains a run here and now: the version of Reverie, a hash of its source, that of JAX, the devices."""
    return dict(zip(VERSIONS, (_version(), _code_hash(), jax.__version__, _hardware()), strict=True))


def write_record(folder: Path, record: Record) -> None:
    """Write ``run.json`` atomically."""
    write_json(folder / RECORD, record_to(record))


def record_to(record: Record) -> dict[str, Any]:
    """Return a record as plain JSON data, with the versions of here and now unless it has its own."""
    return {
        "format": FORMAT,
        **(record.versions or versions()),
        "data": record.fingerprint,
        "frozen": record.frozen,
        "spec": config.to_json(record.spec),
        "run": config.to_json(record.run),
    }


def read_record(folder: Path) -> Record:
    """Read ``run.json``; ReverieError when it is damaged, or newer than this code."""
    return record_from(lambda: read_json(folder / RECORD), f"'{folder / RECORD}'")


def record_from(read: Callable[[], Any], where: str) -> Record:
    """Return the record in the JSON data that ``read`` returns; ReverieError as of ``read_record``.

    Config fields that are newer than the data get their defaults; its checksum proves that nothing else is missing.
    Data of format 1 have no checksum.
    """
    try:
        data = read()
        version = data["format"] if isinstance(data, dict) else None
        if not isinstance(version, int) or version < 1:
            raise Damaged("it has no format")
        if version > FORMAT:
            raise ReverieError(f"{where} was made by Reverie {data.get('reverie')}, newer than this one: upgrade.")
        data = checked(data, "it", required=version > 1)
        made = {name: str(data.get(name, "")) for name in VERSIONS}
        run, spec = (config.from_json(data[name]) for name in ("run", "spec"))
        record = Record(run, spec, data["data"], data["frozen"], made)
    except (Damaged, KeyError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else first_line(error)
        raise ReverieError(f"{where} cannot be read ({why}): it is damaged or not Reverie's.") from error
    texts = isinstance(record.fingerprint, str) and isinstance(record.frozen, str)
    if not (texts and hasattr(record.run, "objective") and hasattr(record.spec, "frame")):
        raise ReverieError(f"{where} cannot be read: what it holds is not a run of Reverie's.")
    return record


def identity(folder: Path) -> str:
    """Return a text that stays the same while a run is trained, so that checkpoints can be matched with their run.

    "" for a folder without a record.
    """
    if not (folder / RECORD).is_file():
        return ""
    record = read_record(folder)
    return f"data {record.fingerprint}, seed {record.run.seed}"


def existing(path: str | Path) -> Path:
    """Return the absolute path of what is there; ReverieError, with a similar name beside it, if nothing is."""
    path = Path(os.path.abspath(path))  # without links: "run/../other" may be read before "run" exists
    if not path.exists():
        inside = path.parent.iterdir() if path.parent.is_dir() else ()
        near = [p.name for p in inside if p.is_dir() and p.name[0] != "."]
        raise ReverieError(f"there is nothing at '{path}'.{did_you_mean(path.name, near) if len(near) < 50 else ''}")
    return path


def find_run(path: str | Path) -> Path:
    """Return the folder of a run: ``path`` itself, or the dynamics of a world's folder. Creates nothing."""
    path = existing(path)
    settled(path)
    for folder in (path, path / "dynamics"):
        if (folder / RECORD).is_file():
            return folder
    stages = sorted(p.parent.name for p in path.glob(f"*/{RECORD}")) if path.is_dir() else []
    hint = f" It has stages: {', '.join(stages)}; name one of them." if stages else ""
    raise ReverieError(f"'{path}' holds no trained model: there is no {RECORD} in it.{hint}")


def _version() -> str:
    try:
        return metadata.version("reverie-worlds")
    except metadata.PackageNotFoundError:  # run from its source, not installed
        return "unknown"


def _hardware() -> str:
    kinds = [device.device_kind for device in jax.devices()]
    devices = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    return f"{os.cpu_count()} cores ({platform.machine()})" if jax.default_backend() == "cpu" else devices


def _code_hash() -> str:
    """Return a hash of the package's source, which identifies the code of a run without git."""
    root = Path(config.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]
