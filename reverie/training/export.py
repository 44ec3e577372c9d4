"""A weights-only copy of a run or a world to give away, without optimiser state and without paths of this machine.

Its trained matrices may be stored as float16, which halves it. ``checkpoint.restore`` returns them as float32.

Only files of the known format are exported, and each is parsed and written again. No link is followed, and absolute
paths are reduced to their last name.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from reverie import config
from reverie.bounded import read_json
from reverie.checksums import checked, write_json
from reverie.data.arrays import ArrayDataset
from reverie.errors import ReverieError
from reverie.onnx.narrow import halves, is_matrix
from reverie.training import plain
from reverie.training.blueprint import Blueprint, Weights
from reverie.training.checkpoint import CHECKPOINTS, Writer, load, restore, structure, untrained_models
from reverie.training.folder import LOCK, STAGES, STARTS, STARTS_BYTES, owned
from reverie.training.record import RECORD, Record, find_run, read_record, write_record

NOTES = ("world.json", "eval.json", "actions.json")  # beside the stages of a world
ABSOLUTE = re.compile(r"(/.|~[\\/]|[A-Za-z]:[\\/]|\\\\|file:)")
WITHIN = re.compile(r"(?<![\w./\\])(?:~|[A-Za-z]:)?(?:[/\\][^/\\\s'\",;:()]+)+[/\\]([^/\\\s'\",;:()]+)")  # a text


def export(run: str | Path, out: str | Path, licence: str = "", bits: int = 32) -> Path:
    """Write a weights-only copy of a run, or of every stage of a world, to a new folder; ReverieError if it exists.

    ``licence``: of the world, to note in its ``world.json``. ``bits``: 32, or 16 to round trained matrices,
    but for those of tokenizers and latent action models that choose among codes.
    """
    source, out = Path(run).absolute(), Path(out).absolute()
    if out.exists():
        raise ReverieError(f"'{out}' exists already: choose another place for the copy.")
    stages = [source] if (source / RECORD).is_file() else _in_order(p.parent for p in source.glob(f"*/{RECORD}"))
    if not stages:
        find_run(source)
    half = out.with_name(f".{out.name}.{os.getpid()}")
    for left in out.parent.glob(f".{out.name}.[0-9]*"):  # of killed exports: no process holds their lock
        with suppress(ReverieError), owned(left):
            shutil.rmtree(left)
    with owned(half):
        try:
            for stage in stages:
                _export_stage(stage, source, half / stage.relative_to(source), bits)
            for name in NOTES:
                if _is_plain(source / name):
                    data = checked(read_json(source / name), f"'{source / name}'")
                    data.pop("contents", None)  # names of the user's files
                    data |= {"licence": licence} if licence and name == "world.json" else {}
                    write_json(half / name, _without_places(data))
            if _is_plain(source / STARTS):
                starts = ArrayDataset.load(source / STARTS, STARTS_BYTES)
                spec = _config_without_places(starts.spec)
                ArrayDataset(spec, starts.lengths, starts.arrays).save(half / STARTS)
            (half / LOCK).unlink()
            os.replace(half, out)
        finally:
            shutil.rmtree(half, ignore_errors=True)
    return out


def export_weights(run: str | Path, file: str | Path) -> Path:
    """Write every weight of a run's model to a .safetensors ``file``, and its configs to a JSON file beside it.

    ``load(file)`` returns the same model. ReverieError if one of the files exists, or if the config of a run that the
    model is made of has an absolute path.
    """
    source, file = find_run(run), Path(file).absolute()
    if file.suffix != plain.SUFFIX:
        raise ReverieError(f"'{file.name}' must end in {plain.SUFFIX}.")
    for each in (file, plain.beside(file)):
        if each.exists():
            raise ReverieError(f"'{each}' exists already: choose another place for the weights.")
    record, others = _portable(source), _Others()
    with untrained_models(others):
        blueprint = Blueprint(record.run.objective, record.spec, record.run.seed, source)
    model = load(source)
    weights = {name: leaf for part in blueprint.parts for name, leaf in blueprint.split(model, part).items()}
    records = {Path(os.path.relpath(folder, source)).as_posix(): each for folder, each in others.records.items()}
    plain.write(file, plain.Plain(record, records, jax.device_get(weights)))
    return file


class _Others(dict):
    """Untrained models of the runs that a run is trained on top of, which notes their records as they are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.records: dict[Path, Record] = {}

    def get(self, folder: Path, default: Any = None) -> Any:
        record = self.records[folder] = _portable(find_run(folder))
        return structure(record.run, record.spec, folder)


def _portable(folder: Path) -> Record:
    """Return a run's record without paths of this machine."""
    record = read_record(folder)
    found = _record_without_places(record)
    if found.run.objective != record.run.objective:
        raise ReverieError(f"the config of '{folder}' names other files by absolute paths, which no other machine has.")
    return found


def _in_order(stages: Iterable[Path]) -> list[Path]:
    """Return folders of stages, each after those that it is trained on top of."""
    return sorted(stages, key=lambda stage: (STAGES.index(stage.name) if stage.name in STAGES else -1, stage.name))


def _export_stage(stage: Path, source: Path, out: Path, bits: int) -> None:
    read = [stage / RECORD, stage / CHECKPOINTS, *(stage / CHECKPOINTS).rglob("*")]
    if links := [path for path in (*read, *({stage} - {source})) if path.is_symlink()]:
        raise ReverieError(f"'{links[0]}' is a link: an export follows none. Put there what it points to.")
    record = _record_without_places(read_record(stage))
    device = SingleDeviceSharding(jax.local_devices()[0])
    step, found = restore(stage, lambda *_: device, ("weights", "ema"))
    weights = found["weights"] | found["ema"]
    if bits == 16:
        alone = stage == source
        blueprint = Blueprint(record.run.objective, record.spec, record.run.seed, stage if alone else out)
        # What chooses among codes stays as it is. Rounded, it chose others for 3 to 6 % of the tokens in three of eight
        # starts of the included world, and PSNR of rollouts fell from 41.8 to 36.1 dB.
        if not getattr(structure(record.run, record.spec, stage if alone else out)(), "codes", 0):
            weights |= _rounded({name: weights[name] for name in blueprint.parts["params"]})
        if record.frozen and not alone:  # what it was trained on top of was rounded before
            record = replace(record, frozen=blueprint.fingerprint())
    out.mkdir(parents=True, exist_ok=True)
    write_record(out, record)
    with Writer(out) as writer:
        writer.save(step, {"weights": weights})
    for note in out.rglob("commit_success.txt"):
        note.unlink()  # orbax's, needed on cloud storage only; it contains the path of the original


def _rounded(weights: Weights) -> Weights:
    """Return the float32 matrices among trained weights as float16.

    Vectors, which are few, stay as they are. So do statistics, such as a codebook: rounded, it chose other codes for
    three quarters of the demo's tokens.
    """
    return {name: jax.device_put(halves(np.asarray(leaf))[0]) for name, leaf in weights.items() if is_matrix(leaf)}


def _is_plain(file: Path) -> bool:
    """Whether this is a regular file; prints a line about a link, which is left out."""
    if file.is_symlink():
        print(f"'{file}' is a link and is left out.", file=sys.stderr)
    return file.is_file() and not file.is_symlink()


def _record_without_places(record: Record) -> Record:
    return replace(record, run=_config_without_places(record.run), spec=_config_without_places(record.spec))


def _config_without_places(value: Any) -> Any:
    return config.from_json(_without_places(config.to_json(value)))


def _without_places(data: Any) -> Any:
    """Return JSON data with each absolute path reduced to its last name."""
    if isinstance(data, dict):
        return {key: _without_places(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_without_places(item) for item in data]
    if not isinstance(data, str):
        return data
    if ABSOLUTE.match(data):
        return re.split(r"[\\/]", data.rstrip("\\/"))[-1]
    return WITHIN.sub(r"\1", data)
