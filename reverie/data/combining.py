"""Stores out of stores: merged, appended to, or a part of one. Episodes are copied by windows of one record.

What a store promises of its splits holds for the result: no episode, and no recording, is in training and held out.
Identical episodes are kept once. A command that was killed goes on from its last complete file when it is repeated, and
one that is repeated after its end changes nothing.

The parts of an array job (``--shard i/n``) become exactly the store that one job would have written.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from reverie.actions import ActionSpace
from reverie.data.codecs import AUTO
from reverie.data.copying import (
    Concatenated,
    Recorded,
    Store,
    about_of,
    chosen_for,
    codec_for,
    key_of,
    made_of,
    notes_of,
    opened,
    workplace,
    write_new,
)
from reverie.data.episode import Spec, game_of
from reverie.data.filling import MANIFEST, About, Entry, Kinds, fill
from reverie.data.splits import contents_of
from reverie.data.store import divided_entries
from reverie.errors import ReverieError

NAMED = 3  # recordings that a note names


def merge(out: Path, paths: Sequence[Path], licence: str = "", codec: str = AUTO) -> str:
    """Write all episodes of several stores to a new one; return a line that says what was done.

    codec: "auto" keeps that of the stores, or takes zstd if they differ. Raises ReverieError, which says what to do, if
    frames, rates or actions differ.
    """
    if len(paths) < 2:
        raise ReverieError("merge needs two stores or more: 'reverie data merge OUT A B'.")
    stores = [opened(path) for path in paths]
    if any(store.any.shard for store in stores):
        return _join(out, stores, codec)
    spec, kinds, notes = _common(stores)
    chosen, said = _settled([one for whose, store in enumerate(stores) for one in store.episodes(whose)])
    licences = dict.fromkeys(store.any.licence for store in stores if store.any.licence)
    about = About(licence or "; ".join(licences), made_of("merge", stores), [*notes, *notes_of(stores), *said],
                  codec=codec_for(codec, stores))  # fmt: skip
    return write_new(out, spec, [_with(one.entry, kinds) for one in chosen], about)


def append(path: Path, other: Store, codec: str = AUTO) -> str:
    """Add the episodes of another store to the one at ``path``, whose own files stay as they are."""
    store = opened(path)
    if not (path / MANIFEST).is_file() or store.any.shard:
        what = "one file, a mixture or part of an array job"
        raise ReverieError(f"'{path}' is {what}, which is not added to; use 'data merge'.")
    if codec not in (AUTO, store.codec):
        raise ReverieError(f"all frames of '{path}' are packed with {store.codec}; 'data merge' can write others.")
    spec, kinds, _ = _common([store, other])
    if kinds != store.any.kinds or spec.simulator != store.any.spec.simulator:
        raise ReverieError(f"'{other.path}' lacks what '{path}' has of a simulator's states; use 'data merge'.")
    chosen, said = _settled(list(other.episodes(1)), fixed=list(store.episodes(0)))
    if not chosen:
        return f"{path}: every episode of '{other.path}' is there already"
    manifest, key = store.any.manifest, key_of(made_of("append", [store, other]), "")
    about = About(manifest["licence"], manifest["provenance"], [*manifest["notes"], *notes_of([other]), *said],
                  manifest["chunk"], store.codec,
                  more={"appended": [*manifest.get("appended", ()), about_of(other)]})  # fmt: skip
    with workplace(path, f"{key}.part") as part:
        fill(part, store.any.spec, [_with(one.entry, kinds) for one in chosen], about,
             parts=manifest["splits"], journal=True)  # fmt: skip
        for file in sorted(part.glob("*.array_record")):
            file.replace(path / file.name)
        (part / MANIFEST).replace(path / MANIFEST)  # until now the store is what it was
    return f"{path}: {len(chosen)} episodes added"


def _common(stores: Sequence[Store]) -> tuple[Spec, Kinds, list[str]]:
    """Return the spec and arrays of all stores together, and notes; ReverieError if they differ in what matters."""
    first, specs, notes = stores[0], [store.any.spec for store in stores], []
    for store in stores[1:]:
        ours, theirs = specs[0], store.any.spec
        height, width, _ = ours.frame
        differ, way = "", _again(store, "size", f"{height} {width}")
        if theirs.frame != ours.frame:
            differ = f"frames {theirs.frame}, not {ours.frame}"
        elif theirs.fps != ours.fps:
            differ = f"{theirs.fps:g} frames per second, not {ours.fps:g}"
            way = _again(store, "fps", f"{ours.fps:g}")
        elif _values(theirs.actions) != _values(ours.actions):
            differ = f"{_words(theirs.actions)}, not {_words(ours.actions)}"
            way = "import both from one folder, so that they share one action space"
        elif theirs.actions.names and ours.actions.names and theirs.actions.names != ours.actions.names:
            differ, way = "other names of actions", "check that the same number means the same action"
        if differ:
            raise ReverieError(f"'{store.path}' has {differ} as '{first.path}' has; {way}.")
    spec = replace(specs[0], source=" + ".join(dict.fromkeys(spec.source for spec in specs)))
    named = next((one.actions for one in specs if one.actions.names), specs[0].actions)
    kinds = [kind for kind in first.any.kinds if all(kind in store.any.kinds for store in stores)]
    if len({game_of(one.simulator) for one in specs}) > 1:
        spec, kinds = replace(spec, simulator=None), [kind for kind in kinds if kind[0] != "states"]
        notes.append("the stores come from different simulators, or from none: states are left out")
    return replace(spec, actions=named), kinds, notes


def _again(store: Store, field: str, value: str) -> str:
    """Return how to write a store again with another value of a field; a simulator may not have this field."""
    simulator = store.any.spec.simulator
    if simulator is None or hasattr(simulator, field):
        return f"write '{store.path}' again with --{field} {value}"
    return f"its game has no --{field}, so only stores of the same game can be merged with it"


def _values(space: ActionSpace) -> tuple:
    return space.kind, space.size, space.sizes, space.low, space.high


def _words(space: ActionSpace) -> str:
    return "no actions" if space.kind == "none" else f"{space.kind} actions ({space.choices})"


def _settled(held: list[Recorded], fixed: Collection[Recorded] = ()) -> tuple[list[Recorded], list[str]]:
    """Return the episodes to write, each once and all on one side, and notes. ``fixed`` ones stay where they are.

    Of identical episodes a fixed one is kept, else a held-out one. A recording that another store holds out is held out
    as a whole; one that is in the fixed store joins it on its side.
    """
    kept, copies = _once(held, fixed)
    sides: dict[tuple, set[tuple[int, str]]] = {}
    for one in fixed or [one for one in kept if one.entry.split != "train"]:
        if one.entry.source:
            sides.setdefault(one.origin, set()).add((one.whose, one.entry.split))
    settled, moved = [], []
    for one in kept:
        others = {split for whose, split in sides.get(one.origin, ()) if whose != one.whose}
        if (fixed or one.entry.split == "train") and others and one.entry.split not in others:
            moved.append(one.entry.source)
            one = one._replace(entry=replace(one.entry, split=min(others)))
        settled.append(one)
    notes = [f"{copies} episodes were copies of others: each is kept once"] if copies else []
    if moved:
        names = ", ".join(list(dict.fromkeys(moved))[:NAMED]) + (", ..." if len(set(moved)) > NAMED else "")
        notes.append(f"{len(moved)} episodes joined another split, where their recordings are already ({names})")
    if not fixed and moved and all(one.entry.split != "train" for one in settled):
        raise ReverieError("every recording is held out in one of the stores, so nothing is left to train on.")
    return settled, notes


def _once(held: list[Recorded], fixed: Collection[Recorded]) -> tuple[list[Recorded], int]:
    """Return the episodes without copies, and the number of copies."""
    every = [*fixed, *held]
    contents = contents_of([(one.dataset, one.episode, one.entry.length) for one in every], ("frames", "actions"))
    rank = {index: (index >= len(fixed), one.entry.split == "train", index) for index, one in enumerate(every)}
    best: dict[object, int] = {}
    for index in sorted(rank, key=rank.__getitem__):
        best.setdefault(contents[index], index)
    kept = [one for index, one in enumerate(held, start=len(fixed)) if best[contents[index]] == index]
    return kept, len(held) - len(kept)


def _join(out: Path, stores: Sequence[Store], codec: str) -> str:
    """Write the parts of an array job as the one job would have written all of them."""
    parts = sorted((store.any for store in stores), key=lambda part: part.shard or ())
    first = parts[0]
    if len({(*(part.shard or ())[1:], part.provenance) for part in parts}) > 1:
        raise ReverieError("these are not the parts of one array job: some differ in source, flags or number of parts.")
    _, number, val, *chosen = first.shard  # earlier versions chose no codec
    if [part.shard[0] for part in parts] != list(range(number)):
        missing = sorted(set(range(number)) - {part.shard[0] for part in parts})
        what = f"part {missing[0]} is missing" if missing else "some are given twice"
        raise ReverieError(f"of the {number} parts of this array job, {what}.")
    whole = Concatenated(parts)
    about = About(first.licence, first.provenance, list(dict.fromkeys(note for part in parts for note in part.notes)),
                  codec=chosen_for(codec if codec != AUTO or not chosen else chosen[0], whole))  # fmt: skip
    return write_new(out, first.spec, list(divided_entries(whole, val) if val else whole.entries("train")), about)


def _with(entry: Entry, kinds: Kinds) -> Entry:
    """Return an entry with these arrays only."""
    if entry.kinds == kinds:
        return entry

    def window(start: int, stop: int) -> dict[str, np.ndarray]:
        arrays = entry.window(start, stop)
        return {name: arrays[name] for name, *_ in kinds}

    return replace(entry, kinds=kinds, window=window, stored=Entry.stored)
