"""The evaluation of a world on held-out clips: image similarity, controllability, codes, tokens and speed.

The same dataset, count and seed always give the same clips, so two worlds are compared on the same frames. The world
is conditioned on ``context`` real frames and generates the rest along the recorded (or inferred) actions. Frames are
compared as uint8, as a player sees them. ``meaning.MEANING`` explains each number.

Legend: B clips, T time, H W C image, A actions, N tokens per frame.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from einops import rearrange
from scipy.stats import rankdata

from reverie.actions import ActionSpace
from reverie.data.episode import Dataset, Simulator
from reverie.data.loader import clips as clips_of
from reverie.data.loader import episodes_of_clips
from reverie.errors import ReverieError
from reverie.evaluation import control, long_play, thorough
from reverie.evaluation.frechet import Features
from reverie.evaluation.meaning import MEANING, Numbers
from reverie.evaluation.rollouts import BATCH, Clips, Rollouts, cost, even_batch, time_cached, time_uncached
from reverie.evaluation.video import contact_sheet, scale_of, side_by_side
from reverie.nn.embed import random_actions
from reverie.nn.image import WINDOW, psnr, ssim
from reverie.nn.quantise import usage
from reverie.world import WorldModel, passes_of, temperature_of

SHOWN_CLIPS, SHOWN_ACTIONS, SHOWN_FRAMES = 4, 16, 16  # in pictures: more do not fit on a screen
TRIED = 64  # an action swap tries at most so many actions per clip

Pictures = dict[str, np.ndarray]


@dataclass(frozen=True)
class _Exact:
    """The simulator that the clips came from, and its states at the last context frames."""

    simulator: Simulator
    states: np.ndarray | None  # (B, S); None if the dataset has none

    @property
    def can_swap(self) -> bool:
        """Whether every action can be tried from the recorded states."""
        space = self.simulator.actions
        return self.states is not None and space.kind != "continuous" and space.count <= TRIED


def evaluate(
    world: WorldModel,
    dataset: Dataset,
    *,
    clips: int = 64,
    context: int | None = None,
    horizon: int = 16,
    seed: int = 0,
    temperature: float | None = None,
    speed: bool = True,
    deep: bool = True,
    sessions: int | None = None,
    trained: int | None = None,
    practice: Dataset | None = None,
    features: Features | None = None,
) -> tuple[Numbers, Pictures]:
    """Return (numbers, pictures) of a world on held-out episodes, for ``report.write_report``.

    ``clips``: how many, at most. ``context``: real frames before each rollout; None: as many as the world takes. Lists
    have one entry per generated frame. ``*_ci`` are 95 % intervals [low, high] over the "episodes" of the clips. A
    number that this world or dataset cannot have is None. Pictures are uint8: (H, W, 3) or, for a clip, (T, H, W, 3).
    Raises ReverieError when world and dataset do not belong together.

    ``sessions``: the most long sessions (``long_play``) with each kind of keys; 0: none; None: one for every four
    clips, at most 16. ``deep``: also run ``thorough``. It needs ``trained``, the frames of a training clip (None: the
    horizon), ``practice``, the episodes that its action reader is trained on, and ``features``, a user's function.
    """
    space = world.config.actions
    _check_match(world, dataset)
    context = world.config.context if context is None else context
    if context < 1 or horizon < 1:
        raise ReverieError(f"a rollout needs a context frame and a generated frame, not {context} and {horizon}.")
    rollouts, given, exact = _prepared(world, dataset, clips, context, horizon, seed, temperature)
    numbers: Numbers = _conditions(rollouts, given, dataset) | dict.fromkeys(MEANING)
    numbers["passes"] = passes_of(world)
    tokens, unsure, views = _views(rollouts, given)
    numbers |= _likeness(given, views) | (trust(given, views["rollout"], unsure) if world.uncertainty else {})
    numbers |= _used("code", tokens, getattr(world.tokenizer, "codes", 0)) | _latent(given, space)
    numbers |= rollouts.report(tokens, given.actions)
    pictures = _pictures(given.truth, views)

    start = 0
    if exact and exact.can_swap and space.size:
        swap, start = _swap(rollouts, given, exact)
        numbers |= swap
    if space.size:
        pictures["actions"] = _held(rollouts, given, exact, start)
    if deep:
        numbers |= thorough.measured(rollouts, given, tokens, views, trained or horizon, practice, features)
        numbers |= cost(world)
    if sessions is None:
        sessions = min(long_play.SESSIONS, max(2, clips // 4))
    if sessions:
        flop = numbers["flop_per_frame"] or cost(world)["flop_per_frame"]
        simulator, states = (exact.simulator, exact.states) if exact else (None, None)
        numbers["long_play"], shown = long_play.measured(rollouts, given, flop, dataset, simulator, states, sessions)
        pictures |= shown
    return numbers | (speed_of(world, given.seen[0], given.recorded[0, :context], seed) if speed else {}), pictures


def _check_match(world: WorldModel, dataset: Dataset) -> None:
    space, spec = world.config.actions, dataset.spec
    if tuple(world.config.frame) != tuple(spec.frame):
        raise ReverieError(f"this world generates frames of {world.config.frame}, the dataset has {spec.frame}.")
    mine, theirs = ((s.kind, s.size, s.levels, s.low, s.high) for s in (space, spec.actions))
    if space.kind not in ("latent", "none") and mine != theirs:
        raise ReverieError(
            f"this world takes actions {space.choices}; the dataset has {spec.actions.choices}: "
            f"evaluate the world on its own data."
        )


def _prepared(
    world: WorldModel, dataset: Dataset, count: int, context: int, horizon: int, seed: int, temperature: float | None
) -> tuple[Rollouts, Clips, _Exact | None]:
    """Draw the clips, and find the actions that condition the world in them."""
    temperature = temperature_of(world, temperature)
    length = context + horizon
    different = int(np.maximum(dataset.lengths - length + 1, 0).sum())
    choice: Any = {"length": length, "count": min(count, max(different, 1)), "seed": seed}
    found, episodes = clips_of(dataset, **choice), episodes_of_clips(dataset, **choice)
    frames, recorded = found["frames"], found["actions"]
    rollouts = Rollouts(world, batch=even_batch(len(frames)), seed=seed, temperature=temperature)
    given = Clips(frames, recorded, rollouts.actions(frames, recorded), context, episodes)
    config: Any = dataset.spec.simulator
    states = found["states"][:, context - 1] if "states" in found else None
    return rollouts, given, _Exact(config.make(), states) if config else None


def _conditions(rollouts: Rollouts, given: Clips, dataset: Dataset) -> Numbers:
    """What the numbers were measured on, and with which settings."""
    kind = rollouts.space.kind
    return {
        "action_source": kind if kind in ("latent", "none") else "true",
        "clips": len(given.frames),
        "episodes": len(np.unique(given.episodes)),
        "context": given.context,
        "horizon": given.truth.shape[1],
        "seed": rollouts.seed,
        "temperature": rollouts.temperature,
        "dataset": dataset.spec.source,
        "split": dataset.split or None,
        "fingerprint": dataset.fingerprint,
        "fps": dataset.spec.fps,
        "device": jax.devices()[0].device_kind,
    }


def _views(rollouts: Rollouts, given: Clips) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return the clips' latents, the rollouts' uncertainty (B, T), and by name the frames to compare with the truth."""
    tokens, rebuilt = rollouts.reconstruct(given.frames)
    generated, unsure = rollouts.rollout_with_uncertainty(given.seen, given.actions)
    views = {
        "rollout": generated,
        "floor": rebuilt[:, given.context :],
        "copy_last": np.broadcast_to(given.seen[:, -1:], given.truth.shape),
    }
    if rollouts.space.size:
        views["random"] = rollouts.rollout(given.seen, _random_actions(rollouts, given))
    return tokens, unsure, views


def _random_actions(rollouts: Rollouts, given: Clips) -> np.ndarray:
    drawn = np.asarray(random_actions(rollouts.space, jax.random.key(rollouts.seed), given.actions.shape[:2]))
    return np.concatenate([given.actions[:, : given.context], drawn[:, given.context :]], axis=1)


@jax.jit
def _alike(truth, other):
    large = min(truth.shape[-3:-1]) >= WINDOW
    return {"psnr": psnr(truth, other)} | ({"ssim": ssim(truth, other)} if large else {})


def _likeness(given: Clips, views: dict[str, np.ndarray]) -> Numbers:
    """PSNR and SSIM of each view per generated frame, and delta-PSNR."""
    numbers: Numbers = {}
    truth = given.truth
    decibels = {}
    for view, frames in views.items():
        prefix = "" if view == "rollout" else f"{view}_"
        parts = [_alike(truth[at : at + BATCH], frames[at : at + BATCH]) for at in range(0, len(truth), BATCH)]
        values = {kind: np.concatenate([part[kind] for part in parts]) for kind in parts[0]}
        decibels[view] = values["psnr"]
        for kind in values:
            numbers |= _mean(f"{prefix}{kind}", values[kind], given.episodes)
    if "random" in decibels:
        delta = decibels["rollout"] - decibels["random"]
        numbers |= _mean("delta_psnr", delta, given.episodes)
        numbers |= _mean("delta_psnr_4", delta[:, 3], given.episodes) if delta.shape[1] >= 4 else {}
    return numbers


def trust(given: Clips, generated: np.ndarray, unsure_BT: np.ndarray) -> Numbers:
    """The uncertainty of each generated frame, and whether a clip with more of it has a larger error.

    What went wrong in a rollout stays wrong, so the error of a frame is ranked against all uncertainty up to it.
    """
    error_BT = np.square(given.truth.astype(np.float32) - generated).mean((2, 3, 4))
    total, error = (ranks - ranks.mean(0) for ranks in (rankdata(x, axis=0) for x in (unsure_BT.cumsum(1), error_BT)))
    found = (total * error).sum(0) / np.maximum(np.sqrt(np.square(total).sum(0) * np.square(error).sum(0)), 1e-9)
    numbers = _mean("uncertainty", unsure_BT, given.episodes) | {"uncertainty_rank": found.tolist()}
    if (count := len(np.unique(given.episodes))) > 3:  # Fisher's interval, for ranks (Fieller et al., 1957)
        reach = 1.96 * np.sqrt(1.06 / (count - 3))
        middle = np.arctanh(np.clip(found, -0.999, 0.999))
        numbers["uncertainty_rank_ci"] = np.tanh(np.stack([middle - reach, middle + reach], axis=-1)).tolist()
    return numbers


def _mean(name: str, values: np.ndarray, episodes: np.ndarray) -> Numbers:
    return {name: values.mean(0).tolist(), f"{name}_ci": control.interval(values, groups=episodes).tolist()}


_usage = jax.jit(usage, static_argnums=1)


def _used(name: str, codes: np.ndarray, size: int) -> Numbers:
    if not np.issubdtype(codes.dtype, np.integer):  # continuous latents
        return {}
    return {f"{name}_{key}": float(share.value) for key, share in _usage(codes, size).items()}


def _latent(given: Clips, space: ActionSpace) -> Numbers:
    """How many latent actions are in use, and how well they predict the recorded ones."""
    if space.kind != "latent":
        return {}
    numbers = _used("lam", given.actions[:, 1:], space.size)
    if given.recorded.ndim > 2:
        return numbers
    codes, actions = given.actions[:, 1:], given.recorded[:, 1:]  # no action leads to the first frame
    known = actions >= 0
    if known.any():
        found = control.agreement(codes[known], actions[known])
        numbers["lam_agreement"], numbers["lam_agreement_chance"] = found["accuracy"], found["chance"]
        numbers["lam_nmi"] = found["nmi"]
        numbers["lam_actions"] = control.meanings(codes[known], actions[known], space.size)
    return numbers


def _swap(rollouts: Rollouts, given: Clips, exact: _Exact) -> tuple[Numbers, int]:
    """Action swap at the first generated frame, and the clip whose actions lead to the most different frames.

    In a world of latent actions, the code of an action is the one that the latent action model infers from the context
    followed by the simulator's frame for that action.
    """
    assert exact.states is not None
    true = control.outcomes(exact.simulator, exact.states, given.seen[:, -1])
    count = true.shape[1]
    actions = exact.simulator.actions.nth(range(count))
    asked = np.broadcast_to(actions, (len(true), *actions.shape))
    if rollouts.space.kind == "latent":
        recorded = given.recorded[:, : given.context + 1]
        tries = [np.concatenate([given.seen, true[:, [action]]], axis=1) for action in range(count)]
        asked = np.stack([rollouts.actions(frames, recorded)[:, -1] for frames in tries], axis=1)
    generated = rollouts.branch(given.seen, given.actions[:, : given.context], asked)
    found = control.action_swap(generated, true, given.truth[:, 0])
    pairs = int(found["asked"].sum())
    start = int(np.argmax([len({frame.tobytes() for frame in frames}) for frames in true]))
    if not pairs:
        return {"swap_pairs": 0}, start
    shares = {name: float(found[name].sum() / pairs) for name in ("right", "chance", "blind")}
    return {
        "swap_accuracy": shares["right"],
        "swap_accuracy_ci": np.clip(control.interval(found["right"], found["asked"], given.episodes), 0, 1).tolist(),
        "swap_chance": shares["chance"],
        "swap_blind": shares["blind"],
        "swap_pairs": pairs,
    }, start


def _pictures(truth: np.ndarray, views: dict[str, np.ndarray]) -> Pictures:
    named = {"truth": truth, "reconstruction": views["floor"], "rollout": views["rollout"]}
    extra = {"random actions": views.get("random"), "copy last frame": views["copy_last"]}
    all_named = named | {name: frames for name, frames in extra.items() if frames is not None}
    shown = np.unique(np.linspace(0, len(truth) - 1, min(SHOWN_CLIPS, len(truth))).astype(int))
    size = scale_of(truth)
    rows = [
        (f"{row + 1}  {name}", frames[clip]) for row, clip in enumerate(shown) for name, frames in all_named.items()
    ]
    beside = [(name, rearrange(frames[shown], "b t h w c -> (b t) h w c")) for name, frames in named.items()]
    return {
        "sheet": contact_sheet(rows, columns=min(truth.shape[1], SHOWN_FRAMES), scale=size),
        "dream": side_by_side(beside, scale=2 * size),
    }


def _held(rollouts: Rollouts, given: Clips, exact: _Exact | None, start: int) -> np.ndarray:
    """Return a sheet of one clip's rollouts along each action, each above the simulator's frames if there are any."""
    space, horizon = rollouts.space, given.truth.shape[1]
    count = min(space.count, SHOWN_ACTIONS)
    actions = space.nth(range(count))
    seen = np.broadcast_to(given.seen[start], (count, *given.seen.shape[1:]))
    before = np.broadcast_to(given.actions[start, : given.context], (count, given.context, *space.shape))
    after = np.broadcast_to(actions[:, None], (count, horizon, *space.shape))
    generated = rollouts.rollout(seen, np.concatenate([before, after], axis=1))
    rows = []
    for action in range(count):
        name = space.label(action)
        rows.append((f"{name}: rollout", generated[action]))
        if exact and exact.states is not None and space.kind != "latent":
            held = control.held(exact.simulator, exact.states[start], actions[action], horizon)
            rows.append((f"{name}: truth", held))
    return contact_sheet(rows, columns=min(horizon, SHOWN_FRAMES), scale=scale_of(given.truth))


def speed_of(world: WorldModel, seen_THWC: np.ndarray, recorded_T: np.ndarray, seed: int = 0) -> Numbers:
    """Return one player's frames per second from these initial frames, with and without KV cache, and the latency."""
    seconds = time_cached(world, seen_THWC, recorded_T, seed=seed)
    numbers: Numbers = {
        "frames_per_second": float(1 / np.median(seconds)),
        "latency_p95_ms": float(np.quantile(seconds, 0.95) * 1e3),
    }
    if hasattr(world.dynamics, "imagine_uncached"):  # there for comparison; a family need not have it
        seconds = time_uncached(world, seen_THWC, recorded_T, seed=seed)
        numbers["frames_per_second_uncached"] = float(1 / np.median(seconds))
    return numbers
