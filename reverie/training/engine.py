"""The only training loop. It depends on the interface of an objective, and on no model.

The order inside the loop matters: report, save, next batch, step, log. Reports use the state that is saved. A save
comes before the next batch is drawn, so resuming at step n draws batch n. A step is dispatched without waiting for it,
and the numbers of the previous step are read while it runs. Everything random is a function of (seed, step), so
nothing random is saved, and a run that was killed and resumed gives the same bits as an uninterrupted one.

B rows of a batch.
"""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from reverie import config
from reverie.data.episode import Dataset
from reverie.data.held_out import train_and_held_out
from reverie.data.loader import batches, clips
from reverie.data.order import Order, order_of
from reverie.data.shifted import enlarged
from reverie.errors import ReverieError
from reverie.nn import placement
from reverie.nn.batch import Loss
from reverie.nn.compiled import cache_compilations, compiler_options
from reverie.training import checkpoint, exact, folder, health, partial, sharding
from reverie.training.blueprint import Blueprint, Weights
from reverie.training.checkpoint import Writer
from reverie.training.log import Log, Logger, LoggerName, announce, check_loggers, open_loggers
from reverie.training.optim import OptimConfig
from reverie.training.record import Record, write_record
from reverie.training.resume import places
from reverie.training.signals import stop_signals
from reverie.training.update import Scalars, loss_of, rows_of, train_step, update
from reverie.training.watch import Watch, ready, with_peers

SKIPPED = "skipped"  # a number of the training state, beside the optimiser's in checkpoints


class Objective(Protocol):
    """What is trained: a frozen dataclass of configs and of paths to other runs.

    frozen: attributes without gradient and optimiser state, which are not saved again. reads: arrays of a batch.
    encoder: (model, batch) -> the arrays that ``prepare`` computes once; None if there are none.
    """

    @property
    def frozen(self) -> tuple[str, ...]: ...

    @property
    def reads(self) -> tuple[str, ...]: ...

    @property
    def encoder(self) -> Callable[[Any, dict[str, Array]], dict[str, Array]] | None: ...

    def init(self, rngs: nnx.Rngs, spec: Any, folder: Path) -> nnx.Module:
        """Build the model for data like ``spec``. Paths to other runs are relative to ``folder``, this run's folder."""
        ...

    def prepare(self, model: Any, dataset: Dataset, cache: Path) -> Dataset:
        """Return the dataset that steps read: ``dataset``, or outputs of frozen parts, computed once and cached."""
        ...

    def loss(self, model: Any, batch: dict[str, Array], keys_B: Array, progress: Array) -> Loss:
        """Return the loss and cheap metrics of a batch or a part of one; called in every step. See ``nn.batch``.

        ``keys_B``: one for each row. ``progress``: the finished share of the run, 0..1, for schedules. Variables that
        are not Params are updated once per step, from the notes of the loss.
        """
        ...

    def report(self, model: Any, batch: dict[str, Array], key: Array) -> dict[str, Array]:
        """Return costly metrics, and pictures (uint8 HWC), of held-out clips."""
        ...


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that determines the result of a training run, and how often it logs, reports and saves."""

    objective: Objective = field(kw_only=False)
    data: str = "data"  # store or .npz file, relative to the folder in which the run's folder lies
    augment_below: int = 0  # shift augmentation for a dataset of fewer frames
    batch: int = 16  # clips per step
    length: int = 16  # frames per clip
    relevant: float = 0.0  # share of clips that contain a reward, an end or a task; others are drawn uniformly
    labelled: float = 0.0  # share of clips with recorded actions, if only some episodes have them; 0: uniformly
    steps: int = 1000  # training steps
    seed: int = 0  # seed of the weights, the batches and all noise
    optimizer: OptimConfig = field(default_factory=OptimConfig)
    accumulate: int = 1  # parts in which a batch is computed, to save memory; the result is the same
    mesh: str = "data"  # axes of the mesh of devices and their sizes: data (copies of weights), fsdp (parts of them)
    exact: bool = False  # the same bits on 1, 2, 4 or 8 devices; slower
    log_every: int = 50  # steps between two lines of the log
    report_every: int = 1000  # steps between two reports on held-out clips; 0: never
    report_clips: int = 16  # held-out clips in a report
    save_every: int = 1000  # steps between two checkpoints; 0: only the last
    keep: int = 2  # newest checkpoints that are kept, besides the one from which the run can be extended
    keep_every: int = 0  # keep the checkpoint of every so many steps as well; 0: of none
    keep_best: str = ""  # keep that of the best report as well: psnr, or min:NAME where less is better
    # another run or plain weights (.safetensors), from this one's folder, or reverie:general/tokenizer of the package:
    # what fits is taken
    start_from: str = ""
    loggers: tuple[LoggerName, ...] = ()  # who gets metrics and pictures besides the run's folder
    max_skipped: int = 10  # steps in a row with a loss or gradient that is not finite; then training stops
    stall_minutes: float = 30.0  # without progress, after which training ends with its stacks on disk; 0: never
    profile: int = 0  # steps of which JAX's profiler writes a profile, from the fifth on; 0: none

    def __post_init__(self):
        sharding.axes_of(self.mesh)


class TrainState(NamedTuple):
    """The training state. ``skipped``: how many steps in a row, up to this one, were skipped (``training.health``)."""

    step: Array
    params: Weights
    rest: Weights
    ema: Weights
    opt: Any
    skipped: Array


class Interrupted(SystemExit):
    """The run was saved and stopped because of a signal. The exit code is 128 + the signal's number."""


class Pace(NamedTuple):
    """The schedule of a step: its learning rate, and the finished share of the run."""

    rate: Any
    progress: Any


def pace_of(run: Run, step: int) -> Pace:
    """Return the pace of step number ``step``, counted from 0."""
    return Pace(np.float32(run.optimizer.rate_at(step, run.steps)), np.float32(step / run.steps))


def fit(
    run: Run,
    out: str | Path,
    *,
    dataset: Dataset | None = None,
    held_out: Dataset | None = None,
    progress: bool = True,
    fresh: bool = False,
) -> Path:
    """Train ``run`` in the folder ``out``, resuming from its last checkpoint if there is one; return the folder.

    ``dataset`` (and ``held_out`` for reports) replace the data that the run names. ``fresh`` starts over; the old run
    stays until the new one is complete, and so does the end of a shorter run until the longer one is. Ctrl-C and
    SIGTERM save first (``Interrupted``). Raises ReverieError if the folder holds another run, other data or nothing
    readable; if the loss is not finite in too many steps in a row; if the disk is full.
    """
    cache_compilations()
    out = Path(out).absolute()
    mesh = check_here(run)
    dataset, held_out = train_and_held_out(out.parent / run.data, run.length, dataset, held_out)
    dataset = enlarged(dataset, run.augment_below)
    order = _order(run, dataset)
    with folder.owned(out):
        source, place, newest = places(run, out, dataset, fresh)
        blueprint = Blueprint(run.objective, dataset.spec, run.seed, out)
        state, frozen, taken = _state(run, source, blueprint, mesh, newest)
        record = Record(run, dataset.spec, dataset.fingerprint, blueprint.fingerprint())
        # Everything that can fail before the first step has run: the folder changes only now.
        if place != source:
            sharding.by_first(lambda: folder.begin(out, lambda item: checkpoint.reaches(item, newest)))
        elif place == out:
            sharding.by_first(lambda: folder.discard(out))
        loggers: list[Logger] = []

        def begin() -> None:
            loggers.extend(open_loggers(run.loggers, place, config.to_json(run)))
            write_record(place, record)
            taken.write(place)
            if said := health.unused_accelerator():
                print(said, file=sys.stderr, flush=True)
            if progress:
                announce(folder.named(place).name, int(state.step), run.steps)

        sharding.by_first(begin)
        weights = (sharding.whole(mesh, frozen), state.params, state.rest)
        model = blueprint.merge(*(exact.alone(weights) if run.exact else weights))
        split, alike = held_out.split, held_out.fingerprint == dataset.fingerprint
        dataset = run.objective.prepare(model, dataset, place / "cache" / "train")
        held_out = dataset if alike else run.objective.prepare(model, held_out, place / "cache" / "val")
        held_out.split = split
        del model, weights  # its weights will be donated
        _train(run, place, blueprint, mesh, state, frozen, dataset, order, held_out, progress, loggers)
        if place != out:
            sharding.by_first(lambda: folder.commit(out))
    return out


def check_all(runs: dict[Path, Run], dataset: Dataset) -> None:
    """Raise ReverieError before the first of several runs, each in its folder, if one of them must fail."""
    with checkpoint.untrained_models() as models:
        for out, run in runs.items():
            check_here(run)
            _order(run, enlarged(dataset, run.augment_below))
            Blueprint(run.objective, dataset.spec, run.seed, out)
            models[out] = checkpoint.structure(run, dataset.spec, out)


def check_here(run: Run) -> Mesh:
    """Return the mesh of a run; ReverieError if the run must fail on these devices, whatever its data are."""
    health.check(run)
    mesh = sharding.make_mesh(run.mesh)
    sharding.check_batch(mesh, run.batch, run.accumulate)
    if run.exact:
        exact.check(mesh, run.batch)
    sharding.by_first(lambda: check_loggers(run.loggers))
    return mesh


def _order(run: Run, dataset: Dataset) -> Order:
    """Return the order in which a run draws clips; ReverieError if it cannot draw them from this dataset."""
    return order_of(dataset, run.length, run.seed, run.relevant, run.labelled)


def _stream(run: Run, dataset: Dataset, order: Order, mesh: Mesh, start: int) -> Iterator[dict[str, np.ndarray]]:
    """Return the batches from step ``start`` on, of the rows that this process reads."""
    sizes = {"batch": run.batch, "length": run.length, "seed": run.seed, "order": order}
    return batches(dataset, start=start, shard=sharding.rows_here(mesh), names=run.objective.reads, **sizes)


def _train(
    run: Run,
    out: Path,
    blueprint: Blueprint,
    mesh: Mesh,
    state: TrainState,
    frozen: Weights,
    dataset: Dataset,
    order: Order,
    held_out: Dataset,
    progress: bool,
    loggers: Sequence[Logger],
) -> None:
    start, fall, everywhere = int(state.step), run.optimizer.fall(run.steps), sharding.everywhere(mesh)
    sharding.say_copied(mesh, state.params)
    stream = _stream(run, dataset, order, mesh, start)
    step, report = compile_step(run, blueprint, mesh, state), _compile_report(run, blueprint, mesh, frozen, held_out)
    log = _open_log(run, out, start, held_out.split, loggers, progress)
    watch = Watch(out, run.stall_minutes, run.profile)
    writer = Writer(out, run.keep, always=[fall], every=run.keep_every, start=start, end=run.steps)
    monitor = health.Monitor(run, state, _saved, everywhere, writer, log, watch)
    previous: Scalars = {}  # metrics of the step in flight
    with watch, stop_signals() as stop, writer, log, with_peers(), jax.transfer_guard("disallow"):
        for n in range(start, run.steps + 1):
            watch.at("collective", n)
            last, logs, signum = n == run.steps, n % run.log_every == 0, stop(n % run.log_every == 0)
            reports = n > start and run.report_every and (n % run.report_every == 0 or last)
            regular = (run.save_every and n % run.save_every == 0) or (reports and run.keep_best)
            saves = n > start and (n == fall or last or signum or regular)
            logs = logs or n == 1 or last
            if reports or saves:
                monitor.read(n, previous if logs else {}, state)
            if reports:
                watch.at("report", n)
                monitor.report(n, report(state))
            if saves:
                watch.at("checkpoint", n)
                saved = monitor.save(n, state)
            if reports or saves:
                log.pause(n)
            if signum:
                raise _interrupted(writer, signum, n, run.steps, f"step {n if saved else start}")
            if last:
                break
            watch.at("data", n)
            batch = sharding.put_batch(mesh, next(stream))
            watch.at("step" if n > start else "compilation", n, idle=ready(previous))
            pace = sharding.put(pace_of(run, n), everywhere)
            if n == start:
                log.count(n, step, (state, frozen, batch, pace), mesh.devices, compiled=not run.exact)
            state, metrics = step(state, frozen, batch, pace)
            if n == start:
                jax.block_until_ready(metrics)
                log.pause(n + 1)  # compiling is not training
            # One step runs while the next batch is read. More steps in flight would not be faster.
            jax.block_until_ready(previous)
            if logs or n % health.CHECK == 0:
                monitor.read(n, previous if logs else {}, state)
            previous = monitor.note(n + 1, metrics)
            log.tick(n)


def _interrupted(writer: Writer, signum: int, step: int, steps: int, saved: str) -> Interrupted:
    writer.wait()
    if jax.process_index() == 0:
        print(f"Stopped at step {step} of {steps}; the same command resumes from {saved}.", flush=True)
    return Interrupted(128 + signum)


def _open_log(run: Run, out: Path, start: int, split: str, loggers: Sequence[Logger], progress: bool) -> Log:
    return Log(
        out,
        steps=run.steps,
        resume=start,
        frames=run.batch * run.length,
        name=folder.named(out).name,
        split=split,
        loggers=loggers,
        progress=progress,
        writes=jax.process_index() == 0,
    )


def compile_step(run: Run, blueprint: Blueprint, mesh: Mesh, state: TrainState) -> Any:
    tx, same = run.optimizer.make(), jax.tree.map(lambda leaf: leaf.sharding, state)
    if run.exact:
        parts = functools.partial(loss_of, run, blueprint), functools.partial(rows_of, run)
        wholes = (functools.partial(each, run, blueprint, tx) for each in (update, train_step))
        return exact.Step(mesh, *parts, *wholes)
    return jax.jit(
        placement.traced_on(sharding.place(mesh), train_step, run, blueprint, tx),
        donate_argnums=0,
        out_shardings=(same, sharding.everywhere(mesh)),
        compiler_options=compiler_options(),
    )


def _compile_report(
    run: Run, blueprint: Blueprint, mesh: Mesh, frozen: Weights, held_out: Dataset
) -> Callable[[TrainState], Scalars]:
    """Return the objective's report on fixed clips with a fixed key, so that reports can be compared."""
    if not run.report_every:
        return lambda state: {}
    mesh = sharding.make_mesh("data", list(mesh.devices.flat)[:1]) if run.exact else mesh
    places = int(np.maximum(held_out.lengths - run.length + 1, 0).sum())
    batch = clips(held_out, length=run.length, count=min(run.report_clips, places), seed=run.seed)
    batch = sharding.put(batch, sharding.rows(mesh, len(next(iter(batch.values())))))

    def report(batch: dict, *weights: Weights) -> Scalars:
        key = jax.random.fold_in(jax.random.key(run.seed), jnp.uint32(2**32 - 2))
        model = blueprint.merge(*map(placement.gathered_but_stacks, weights))
        return run.objective.report(model, placement.by_rows(batch), key)

    report = placement.traced_on(sharding.place(mesh), report)
    compiled: Any = jax.jit(report, out_shardings=sharding.everywhere(mesh), compiler_options=compiler_options())

    def measured(state: TrainState) -> Scalars:
        weights = (state.ema or state.params, state.rest, frozen)
        return jax.device_get(compiled(batch, *(exact.alone(weights) if run.exact else weights)))

    return measured


def _state(
    run: Run, out: Path, blueprint: Blueprint, mesh: Mesh, newest: int | None
) -> tuple[TrainState, Weights, partial.Taken]:
    """Return the initial or restored state, the frozen weights, the shardings of both, and what another run gave."""
    place = functools.partial(sharding.sharding, mesh)
    step, found = 0, {}
    if newest is not None:
        checkpoint.check_frozen(out, checkpoint.read_record(out), blueprint)
        step, found = checkpoint.restore(out, place, ("weights", "ema", "optimizer"), newest, together=True)
        blueprint.check(out, found["weights"])
        if not found["optimizer"]:
            raise ReverieError(f"'{out}' holds weights only, as an export does: it can be played, not trained on.")
    taken = partial.take(run.start_from, out, blueprint, place) if run.start_from and not found else partial.NOTHING
    weights = blueprint.build(place, found.get("weights", taken.weights))
    params, rest, frozen = ({name: weights[name] for name in blueprint.parts[part]} for part in blueprint.parts)
    tx = run.optimizer.make()
    shapes = jax.eval_shape(tx.init, params)
    if found:
        names = checkpoint.named(shapes)
        opt = jax.tree.unflatten(jax.tree.structure(shapes), [found["optimizer"][name] for name in names])
    else:
        opt = jax.jit(tx.init, out_shardings=sharding.shardings(mesh, shapes))(params)
    ema = (found.get("ema") or jax.tree.map(jnp.copy, params)) if run.optimizer.ema else {}
    row = min(int(found["optimizer"].get(SKIPPED, 0)) if found else 0, run.max_skipped - 1)
    made, skipped = (sharding.put(np.int32(number), sharding.everywhere(mesh)) for number in (step, row))
    return TrainState(made, params, rest, ema, opt, skipped), frozen, taken


def _saved(state: TrainState) -> dict[str, Weights]:
    """Return the items of a checkpoint."""
    optimizer = checkpoint.named(state.opt) | {SKIPPED: state.skipped}
    return {"weights": state.params | state.rest, "ema": state.ema, "optimizer": optimizer}
