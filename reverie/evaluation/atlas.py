"""``reverie atlas``: what each action of a world does, on one page; and names for latent actions.

For each action: how often it occurs in held-out clips, the recorded actions it goes with, and moments before and after
it. Names that a person gives are kept beside the world, and its buttons bear them.

Legend: B clips, T frames, H W C image, N moments.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

import numpy as np

from reverie.actions import ActionSpace
from reverie.data.held_out import held_out
from reverie.errors import ReverieError
from reverie.evaluation import control, page
from reverie.evaluation.keys import LABELS, Keys
from reverie.evaluation.video import contact_sheet, png, scale_of
from reverie.nn.compiled import cache_compilations, compiled
from reverie.training.checkpoint import load
from reverie.training.folder import named
from reverie.training.record import find_run, read_record
from reverie.world import WorldModel
from reverie.world_folder import initial_frames, name_actions, named_actions, spread

PAGE = "atlas.html"
SHOWN = 8  # moments of an action
FIRST = 3  # recorded actions that an action goes with, the most frequent first


class Moments(NamedTuple):
    """Moments of held-out clips: frames before and after (N, H, W, C) uint8, the action between, the recorded one.

    ``clips``: the number of the clip that each moment is of.
    """

    before: np.ndarray
    after: np.ndarray
    codes: np.ndarray
    recorded: np.ndarray
    clips: np.ndarray


def write_atlas(run: Path, count: int = 64, names: Mapping[int, str] | None = None, out: Path | None = None) -> Path:
    """Write ``atlas.html`` into a world's folder or ``out``, from up to ``count`` held-out clips; return its path.

    ``names``: of latent actions by number, kept in the world's folder from now on; "" takes one away. Raises
    ReverieError for a world without actions that can be listed, and for names that do not fit.
    """
    cache_compilations()
    folder, world = find_run(run), load(run)
    space = world.config.actions if isinstance(world, WorldModel) else ActionSpace()
    if space.kind not in ("latent", "discrete"):
        raise ReverieError(f"'{run}' has no list of actions to show: an atlas is of latent or discrete actions.")
    if names:
        name_actions(space, run, names)
    moments = _moments(world, run, count)
    if not len(moments.codes):
        raise ReverieError(f"'{run}' has no held-out clips and no initial frames to see its actions in.")
    out = (folder.parent if out is None else out) / PAGE
    spec = read_record(folder).spec
    page.write_page(
        out, f"Actions of {named(folder.parent).name}", _parts(named_actions(space, run), spec.actions, moments)
    )
    return out


def _moments(world: WorldModel, run: Path, count: int) -> Moments:
    """Return the moments of a world's held-out clips, or of its initial frames where its data is gone."""
    folder = find_run(run)
    place = folder.parent / read_record(folder).run.data
    pairs = spread(held_out(place), count) if place.exists() else initial_frames(run, count)
    infer = compiled(world, lambda world, frames, actions: world.actions_of(frames, actions))
    empty = np.zeros((0, *world.config.frame), np.uint8)
    parts = [Moments(empty, empty, *[np.zeros(0, int)] * 3)]
    for clip, (frames, actions) in enumerate(pairs):
        actions = np.asarray(actions)
        codes = np.asarray(infer(frames[None], actions[None]))[0]
        recorded = actions[1:] if actions.ndim == 1 else np.full(len(actions) - 1, -1)
        parts.append(Moments(frames[:-1], frames[1:], codes[1:], recorded, np.full(len(recorded), clip)))
    return Moments(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def mapped(moments: Moments, labels: int = LABELS, seed: int = 0) -> tuple[float, np.ndarray] | None:
    """Return how often a map from latent to recorded actions is right, and its 95 % interval over clips.

    The map is made of ``labels`` moments drawn at random, and tried on the others. None if there are too few of these.
    """
    if len(moments.codes) < 2 * labels:
        return None
    order = np.random.default_rng(seed).permutation(len(moments.codes))
    known, rest = order[:labels], order[labels:]
    keys = Keys(moments.codes[known], moments.before[known], moments.recorded[known], moments.codes.max() + 1)
    right = keys(moments.codes[rest], moments.before[rest]) == moments.recorded[rest]
    return float(right.mean()), control.interval(right.astype(float), groups=moments.clips[rest]).clip(0, 1)


def _parts(space: ActionSpace, recorded: ActionSpace, moments: Moments) -> Iterator[Element]:
    node = page.node
    latent = space.kind == "latent" and recorded.kind == "discrete"
    known = moments.recorded >= 0 if latent else np.zeros(len(moments.codes), bool)
    said = f"{len(moments.codes)} moments of held-out clips."
    if known.any():
        labelled = Moments(*(array[known] for array in moments))
        found = control.agreement(labelled.codes, labelled.recorded)
        said += (
            f" The recorded action follows from the latent one in {found['accuracy']:.0%} of them; the most frequent "
            f"action alone would be right in {found['chance']:.0%}."
        )
        if tried := mapped(labelled):
            right, (low, high) = tried
            said += f" A map made of {LABELS} labelled moments is right in {right:.0%} of the others"
            said += f" ({low:.0%} .. {high:.0%})."
    yield node("p", said, class_="dim")
    shares = np.bincount(moments.codes[moments.codes >= 0], minlength=space.size) / max(len(moments.codes), 1)
    for code in np.argsort(-shares, kind="stable").tolist():
        of = moments.codes == code
        yield page.section(
            f"{code + 1}: {space.label(code)}", *_action(code, float(shares[code]), moments, of, known, recorded)
        )


def _action(
    code: int, share: float, moments: Moments, of: np.ndarray, known: np.ndarray, recorded: ActionSpace
) -> Iterator[Element]:
    """What is known about one action: its share, the recorded actions it goes with, moments before and after it."""
    if not of.any():
        yield page.node("p", "Does not occur in these clips.", class_="dim")
        return
    facts: dict[str, Any] = {"share of moments": f"{share:.1%}"}
    if (of & known).any():
        counts = np.bincount(moments.recorded[of & known], minlength=recorded.size)
        first = [action for action in np.argsort(-counts, kind="stable")[:FIRST].tolist() if counts[action]]
        facts["recorded actions"] = ", ".join(
            f"{recorded.label(action)} {counts[action] / counts.sum():.0%}" for action in first
        )
    yield page.pairs(facts)
    at = np.flatnonzero(of)
    at = at[np.unique(np.linspace(0, len(at) - 1, min(SHOWN, len(at))).astype(int))]
    before, after = moments.before[at], moments.after[at]
    change = np.abs(after.astype(int) - before).astype(np.uint8)
    rows = [("before", before), ("after", after), ("difference", change)]
    sheet = contact_sheet(rows, columns=len(at), scale=2 * scale_of(before))
    alt = f"Frames before and after action {code + 1}, and their difference"
    yield page.picture(png(sheet), alt, "Each column is a moment, drawn evenly from the clips.", wide=True)
