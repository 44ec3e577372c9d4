"""How a run resumes: in which folder, from which checkpoint, and whether the folder holds the same run."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import jax

from reverie import config
from reverie.data.episode import Dataset
from reverie.errors import ReverieError
from reverie.training import checkpoint, folder
from reverie.training.record import read_record

# Fields that may differ when a run resumes. (The fingerprint identifies the data, wherever they lie.)
MAY_CHANGE = {
    *("steps", "data", "log_every", "report_every", "report_clips", "save_every", "keep", "loggers"),
    *("max_skipped", "stall_minutes", "keep_every", "keep_best", "profile"),
}
# Fields that change how the result is computed, not what: they may differ anywhere in a config, with a line printed.
HOW = {"mesh", "exact", "accumulate", "remat", "scan", "dtype", "attention_parts", "codes_at_once"}


def places(run: Any, out: Path, dataset: Dataset, fresh: bool) -> tuple[Path, Path, int | None]:
    """Return the folder of the checkpoints, the folder to train in, and the last step whose checkpoint is this run's.

    A run with ``fresh``, or one that resumes from before the end of the old one, is trained in a folder of its own
    until it is complete (``training.folder``). If an unfinished one is there, it resumes.
    """
    new = out / folder.NEXT
    if fresh:
        return (out, new, None) if checkpoint.steps(out) else (out, out, None)
    if checkpoint.steps(new) and (is_run(run, new) or not checkpoint.is_done(out, run)):
        with contextlib.suppress(ReverieError):  # it is of another run
            return new, new, resume_from(run, new, dataset)
    newest, saved = resume_from(run, out, dataset), checkpoint.steps(out)
    return out, new if newest is not None and newest < saved[-1] else out, newest


def is_run(run: Any, out: Path) -> bool:
    """Whether a folder holds exactly this run."""
    return config.to_json(read_record(out).run) == config.to_json(run)


def resume_from(run: Any, out: Path, dataset: Dataset) -> int | None:
    """Return the last step whose checkpoint in ``out`` can be of this run; None if there are no checkpoints."""
    saved = checkpoint.steps(out)
    if not saved:
        if (gone := checkpoint.missing(out)) is not None and jax.process_index() == 0:
            print(f"The checkpoint of step {gone} in '{out}' is missing: training starts over.", file=sys.stderr)
        return None
    record = read_record(out)
    differ = config.differences(record.run, run)
    how = [said for name, said in differ.items() if name.rpartition(".")[2] in HOW]
    if changes := [s for name, s in differ.items() if name.split(".")[0] not in MAY_CHANGE and s not in how]:
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        raise ReverieError(
            f"'{out}' holds another run ({', '.join(changes[:3])}{more}): choose another folder, or start over "
            f"with --fresh."
        )
    if record.fingerprint != dataset.fingerprint:
        raise ReverieError(
            f"'{out}' was trained on other data ({record.fingerprint}, now {dataset.fingerprint}): choose another "
            f"folder, or start over with --fresh."
        )
    if how and jax.process_index() == 0:
        print(f"'{out}' resumes with another way of computing, which rounds differently: {', '.join(how)}.", flush=True)
    if record.run.steps == run.steps:
        return run.steps
    # A longer (or shorter) run is the same run only until the learning rate begins to fall.
    common = min(run.optimizer.fall(record.run.steps), run.optimizer.fall(run.steps))
    if saved[0] > common:
        raise ReverieError(
            f"'{out}' cannot go from {record.run.steps} to {run.steps} steps: its learning rate depends on the length "
            f"from step {common} on, and no checkpoint is left from before. Start over with --fresh."
        )
    if saved[-1] > common and jax.process_index() == 0:
        print(f"'{out}' resumes from step {max(n for n in saved if n <= common)}: later its learning rate fell.")
    return common
