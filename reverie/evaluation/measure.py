"""Everything ``reverie eval`` says about a world: pictures, control, codes, tokens and speed, on held-out clips.

Clips are fixed: the same dataset, count and seed give the same clips, so two worlds are compared on the same frames.
The world sees ``context`` real frames and dreams the rest along the recorded (or inferred) actions. Frames are measured
as uint8, as a player sees them. ``report.MEANING`` says what each number is.

Legend: B clips, T time, H W C image, A actions, N tokens per frame.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from einops import rearrange

from reverie.actions import ActionSpace
from reverie.data.episode import Dataset, Simulator
from reverie.data.loader import clips as clips_of
from reverie.data.loader import episodes_of_clips
from reverie.errors import ReverieError
from reverie.evaluation import control, long_play, thorough
from reverie.evaluation.dreams import BATCH, Clips, Dreams, cost, even_batch, played, played_uncached
from reverie.evaluation.frechet import Features
from reverie.evaluation.report import MEANING
from reverie.evaluation.video import contact_sheet, side_by_side
from reverie.nn.embed import random_actions
from reverie.nn.image import WINDOW, psnr, ssim
from reverie.nn.quantise import usage
from reverie.world import WorldModel

SHOWN_CLIPS, SHOWN_ACTIONS, SHOWN_FRAMES = 4, 16, 16  # in pictures: more do not fit on a screen
TRIED = 64  # actions, at most, that a swap tries from each moment

Numbers = dict[str, Any]
Pictures = dict[str, np.ndarray]


@dataclass(frozen=True)
class _Exact:
    """The simulator the clips came from, and its states at the last frame before each dream."""

    simulator: Simulator
    states: np.ndarray  # (B, S)


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

    ``clips``: how many, at most. ``context``: real frames before the dream; None: as many as the world takes. Lists
    have one entry per dreamed frame; ``*_ci`` are 95 % intervals [low, high] over the "episodes" that clips come from;
    what a world or dataset cannot have is None. Pictures are uint8: (H, W, 3) or, for a clip, (T, H, W, 3). Raises
    ReverieError when world and dataset do not belong together.

    ``sessions``: how many are played for long (``long_play``) with each kind of keys, at most; 0 leaves that out; None:
    one for every four clips, at most 16.
    ``deep``: what ``thorough`` measures as well. For it, ``trained``: frames of a clip in training (None: the horizon);
    ``practice``: episodes from which a network learns to read actions; ``features``: of clips, a user's own.
    """
    space, spec = world.config.actions, dataset.spec
    _belong(world, dataset)
    context = world.config.context if context is None else context
    if context < 1 or horizon < 1:
        raise ReverieError(f"a dream needs a real frame and a frame to dream at least, not {context} and {horizon}.")
    heat: float = world.dynamics.temperature if temperature is None else temperature
    length = context + horizon
    different = int(np.maximum(dataset.lengths - length + 1, 0).sum())
    choice: Any = {"length": length, "count": min(clips, max(different, 1)), "seed": seed}
    found, episodes = clips_of(dataset, **choice), episodes_of_clips(dataset, **choice)
    frames, recorded = found["frames"], found["actions"]
    dreams = Dreams(world, batch=even_batch(len(frames)), seed=seed, temperature=heat)
    given = Clips(frames, recorded, dreams.actions(frames, recorded), context, episodes)
    config: Any = spec.simulator
    simulator: Simulator | None = config.make() if config else None
    exact = _Exact(simulator, found["states"][:, context - 1]) if simulator and "states" in found else None

    numbers: Numbers = {
        "action_source": space.kind if space.kind in ("latent", "none") else "true",
        "clips": len(frames), "episodes": len(np.unique(episodes)), "context": context, "horizon": horizon,
        "seed": seed, "temperature": heat, "dataset": spec.source, "split": dataset.split or None,
        "fingerprint": dataset.fingerprint, "fps": spec.fps,
        "device": jax.devices()[0].device_kind, **dict.fromkeys(MEANING),
    }  # fmt: skip
    tokens, rebuilt = dreams.reconstruct(frames)
    views = {
        "dream": dreams.dream(given.seen, given.actions),
        "floor": rebuilt[:, context:],
        "copy_last": np.broadcast_to(frames[:, context - 1, None], given.truth.shape),
    }
    if space.size:
        views["random"] = dreams.dream(given.seen, _random_actions(given, space, seed))
    numbers |= _likeness(given, views)
    numbers |= _used("code", tokens, getattr(world.tokenizer, "codes", 0)) | _latent(given, space)
    numbers |= dreams.report(tokens, given.actions)
    pictures = _pictures(given.truth, views)

    swap, start = _swap(dreams, given, space, exact) if exact and space.size and _countable(exact) else ({}, 0)
    if space.size:
        pictures["actions"] = _held(dreams, given, space, exact, start)
    numbers |= swap
    if deep:
        numbers |= thorough.measured(dreams, given, tokens, views, trained or horizon, practice, features)
        numbers |= cost(world)
    if sessions is None:
        sessions = min(long_play.SESSIONS, max(2, clips // 4))
    if sessions:
        flop = numbers["flop_per_frame"] or cost(world)["flop_per_frame"]
        states = exact.states if exact else None
        numbers["long_play"] = long_play.measured(dreams, given, flop, dataset, simulator, states, sessions)
    return numbers | (speed_of(world, given.seen[0], recorded[0, :context], seed) if speed else {}), pictures


def _belong(world: WorldModel, dataset: Dataset) -> None:
    space, spec = world.config.actions, dataset.spec
    if tuple(world.config.frame) != tuple(spec.frame):
        raise ReverieError(f"this world dreams frames of {world.config.frame}, the dataset has {spec.frame}.")
    mine, theirs = ((s.kind, s.size, s.levels, s.low, s.high) for s in (space, spec.actions))
    if space.kind not in ("latent", "none") and mine != theirs:
        raise ReverieError(
            f"this world obeys {space.choices}; the dataset has {spec.actions.choices}: evaluate it on its own data."
        )


def _countable(exact: _Exact) -> bool:
    """Whether all actions of the simulator can be tried."""
    return exact.simulator.actions.kind != "continuous" and exact.simulator.actions.count <= TRIED


def _random_actions(given: Clips, space: ActionSpace, seed: int) -> np.ndarray:
    drawn = np.asarray(random_actions(space, jax.random.key(seed), given.actions.shape[:2]))
    return np.concatenate([given.actions[:, : given.context], drawn[:, given.context :]], axis=1)


@jax.jit
def _alike(truth, other):
    large = min(truth.shape[-3:-1]) >= WINDOW
    return {"psnr": psnr(truth, other)} | ({"ssim": ssim(truth, other)} if large else {})


def _likeness(given: Clips, views: dict[str, np.ndarray]) -> Numbers:
    """PSNR and SSIM of each view per step, and what the true actions are worth over random ones."""
    numbers: Numbers = {}
    truth = given.truth
    decibels = {}
    for view, frames in views.items():
        prefix = "" if view == "dream" else f"{view}_"
        parts = [_alike(truth[at : at + BATCH], frames[at : at + BATCH]) for at in range(0, len(truth), BATCH)]
        values = {kind: np.concatenate([part[kind] for part in parts]) for kind in parts[0]}
        decibels[view] = values["psnr"]
        for kind in values:
            numbers |= _mean(f"{prefix}{kind}", values[kind], given.episodes)
    if "random" in decibels:
        worth = decibels["dream"] - decibels["random"]
        numbers |= _mean("delta_psnr", worth, given.episodes)
        numbers |= _mean("delta_psnr_4", worth[:, 3], given.episodes) if worth.shape[1] >= 4 else {}
    return numbers


def _mean(name: str, values: np.ndarray, episodes: np.ndarray) -> Numbers:
    return {name: values.mean(0).tolist(), f"{name}_ci": control.interval(values, groups=episodes).tolist()}


_usage = jax.jit(usage, static_argnums=1)  # means, whose values are taken outside


def _used(name: str, codes: np.ndarray, size: int) -> Numbers:
    if not np.issubdtype(codes.dtype, np.integer):  # continuous latents
        return {}
    return {f"{name}_{key}": float(share.value) for key, share in _usage(codes, size).items()}


def _latent(given: Clips, space: ActionSpace) -> Numbers:
    """How the latent actions are used and what they say about the true ones, over all frames that have both."""
    if space.kind != "latent":
        return {}
    numbers = _used("lam", given.actions[:, 1:], space.size)
    if given.recorded.ndim > 2:
        return numbers
    codes, actions = given.actions[:, 1:], given.recorded[:, 1:]  # nothing leads to the first frame
    known = actions >= 0
    if known.any():
        found = control.agreement(codes[known], actions[known])
        numbers["lam_agreement"], numbers["lam_agreement_chance"] = found["accuracy"], found["chance"]
        numbers["lam_nmi"] = found["nmi"]
        numbers["lam_actions"] = control.meanings(codes[known], actions[known], space.size)
    return numbers


def _swap(dreams: Dreams, given: Clips, space: ActionSpace, exact: _Exact) -> tuple[Numbers, int]:
    """Exact action swap at the first dreamed frame, and the clip whose actions lead to the most different frames.

    A world of latent actions is asked in its own words: the code for an action is the one its latent action model
    infers from the context followed by the simulator's frame for that action.
    """
    true = control.outcomes(exact.simulator, exact.states, given.seen[:, -1])
    count = true.shape[1]
    actions = exact.simulator.actions.nth(range(count))
    asked = np.broadcast_to(actions, (len(true), *actions.shape))
    if space.kind == "latent":
        recorded = given.recorded[:, : given.context + 1]
        tries = [np.concatenate([given.seen, true[:, [action]]], axis=1) for action in range(count)]
        asked = np.stack([dreams.actions(frames, recorded)[:, -1] for frames in tries], axis=1)
    dreamed = dreams.branch(given.seen, given.actions[:, : given.context], asked)
    found = control.action_swap(dreamed, true, given.truth[:, 0])
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
    named = {
        "truth": truth, "reconstruction": views["floor"], "dream": views["dream"],
        "random actions": views.get("random"), "copy of the last": views["copy_last"],
    }  # fmt: skip
    shown = np.unique(np.linspace(0, len(truth) - 1, min(SHOWN_CLIPS, len(truth))).astype(int))
    size = _scale(truth)
    present = {name: frames for name, frames in named.items() if frames is not None}
    rows = [(f"{row + 1}  {name}", frames[clip]) for row, clip in enumerate(shown) for name, frames in present.items()]
    beside = [(name, rearrange(named[name][shown], "b t h w c -> (b t) h w c")) for name in list(named)[:3]]
    return {
        "sheet": contact_sheet(rows, columns=min(truth.shape[1], SHOWN_FRAMES), scale=size),
        "dream": side_by_side(beside, scale=2 * size),
    }


def _held(dreams: Dreams, given: Clips, space: ActionSpace, exact: _Exact | None, start: int) -> np.ndarray:
    """One row per action: the dream from one start that holds it, under it the simulator's truth where it exists."""
    horizon, count = given.truth.shape[1], min(space.count, SHOWN_ACTIONS)
    actions = space.nth(range(count))
    seen = np.broadcast_to(given.seen[start], (count, *given.seen.shape[1:]))
    before = np.broadcast_to(given.actions[start, : given.context], (count, given.context, *space.shape))
    after = np.broadcast_to(actions[:, None], (count, horizon, *space.shape))
    dreamed = dreams.dream(seen, np.concatenate([before, after], axis=1))
    rows = []
    for action in range(count):
        name = space.label(action)
        rows.append((f"{name}: dream", dreamed[action]))
        if exact and space.kind != "latent":
            held = control.held(exact.simulator, exact.states[start], actions[action], horizon)
            rows.append((f"{name}: truth", held))
    return contact_sheet(rows, columns=min(horizon, SHOWN_FRAMES), scale=_scale(given.truth))


def _scale(frames: np.ndarray) -> int:
    return max(1, round(64 / frames.shape[-3]))


def speed_of(world: WorldModel, seen_THWC: np.ndarray, recorded_T: np.ndarray, seed: int = 0) -> Numbers:
    """Return frames a second of one player who begins with these frames, with memory and without, and the latency."""
    seconds = played(world, seen_THWC, recorded_T, seed=seed)
    numbers: Numbers = {
        "frames_per_second": float(1 / np.median(seconds)),
        "latency_p95_ms": float(np.quantile(seconds, 0.95) * 1e3),
    }
    if hasattr(world.dynamics, "imagine_uncached"):  # there for comparison; a family need not have it
        seconds = played_uncached(world, seen_THWC, recorded_T, seed=seed)
        numbers["frames_per_second_uncached"] = float(1 / np.median(seconds))
    return numbers
