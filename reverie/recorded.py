"""The data of a world: recording them, and checking that a source still matches them."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reverie import config
from reverie.checksums import read_signed, write_json
from reverie.data.episode import Spec
from reverie.data.sources import source_at, sources
from reverie.data.sources.arrays import is_dataset
from reverie.data.sources.mixture import MixtureConfig
from reverie.data.store import is_store, open_dataset
from reverie.data.writing import write_source
from reverie.errors import Damaged, ReverieError, did_you_mean
from reverie.presets.recipe import Recipe
from reverie.training import checkpoint
from reverie.training.folder import link
from reverie.training.record import read_record
from reverie.world_folder import WORLD

SIDE, PATCH = 64, 8  # pixels: frames that `learn` trains on are at most so high and wide, in whole patches


def source_of(source: str, out: Path) -> Any:
    """Return the config of a source, or None if ``source`` is a dataset already.

    ``out``: a world's folder. If its data are complete, the files that they were made from may be gone.
    """
    path = Path(source)
    if _ours(path) if path.suffix == ".npz" else is_store(path):
        return None
    if path.exists():
        return _small(source_at(path.resolve()))
    of_files = "of", "write"  # methods of sources that need files or stores
    known = {name: cls for name, cls in sources().items() if not any(hasattr(cls, each) for each in of_files)}
    if source in known:
        return known[source]()
    noted = note(out)
    if noted and (out / "data").exists():
        print(f"'{source}' does not exist any more: '{out}' uses its recorded data.", file=sys.stderr)
        return noted["source"] if isinstance(noted["source"], str) else config.from_json(noted["source"])
    raise ReverieError(f"there is no folder, video or source '{source}'.{did_you_mean(source, known)}")


def stored(stores: Sequence[str], weights: Sequence[float] = ()) -> Any:
    """Return the source of a recipe that reads stores: the path of the one, or a mixture of several."""
    places = tuple(str(Path(store).resolve()) for store in stores)
    return places[0] if len(places) == 1 and not weights else MixtureConfig(stores=places, weights=tuple(weights))


def spec_of(recipe: Recipe) -> Spec:
    """Return the spec of a recipe's data, recorded or not."""
    return open_dataset(recipe.source).spec if isinstance(recipe.source, str) else recipe.source.spec()


def _ours(path: Path) -> bool:
    return not path.exists() or is_dataset(path)


def _small(source: Any) -> Any:
    """Return a source whose frames are small enough to learn from in minutes, as those of videos are by default."""
    if source.size is None and (max(frame := source.spec().frame[:2]) > SIDE or any(side % PATCH for side in frame)):
        print(f"frames of {frame[0]} x {frame[1]} are brought to {SIDE} x {SIDE}", file=sys.stderr)
        return replace(source, size=(SIDE, SIDE))
    return source


def note(out: Path) -> dict[str, Any] | None:
    """Return the content of ``world.json``; None if there is none; ReverieError if it is damaged."""
    if not (out / WORLD).is_file():
        return None
    try:
        found = read_signed(out / WORLD)
    except Damaged:
        found = {}
    if "source" not in found:
        raise ReverieError(f"'{out / WORLD}' is damaged: remove it to use the data beside it.")
    return found


def minutes_of(noted: dict[str, Any] | None) -> float | None:
    """Return the training minutes that a world's note states; None if it was trained for a number of steps."""
    if noted is None:
        return None
    match = re.fullmatch(r"([\d.e+]+) minutes", str(noted.get("takes")))  # all that earlier versions wrote
    learned = match and str(noted.get("about")).startswith("made for")
    return noted.get("minutes", float(match[1]) if match and learned else None)


def write_note(place: Path, recipe: Recipe, **more: Any) -> None:
    """Write ``world.json`` with the recipe and the entries of ``more`` that are not None."""
    write_json(place / WORLD, config.to_json(recipe) | {key: value for key, value in more.items() if value is not None})


def record(recipe: Recipe, out: Path, check: Callable[[Any], object], say: Callable[[str], object]) -> None:
    """Record the data in a world's folder, unless they exist and match the source; ``check`` validates a store."""
    source, noted = recipe.source, note(out)
    if noted and (out / "data").exists():
        _check_source(source, noted, out)
    elif isinstance(source, str):
        check(open_dataset(source))
        if (out / "data").is_symlink():
            (out / "data").unlink()  # to the old place of the data
        link(out / "data", Path(source))
    elif not (out / "data").exists():
        say("data: recording" if source.spec().simulator else "data: reading")
        write_source(out / "data", source)
    if noted is None:
        write_note(out, recipe, contents=_contents(source))


def _check_source(source: Any, noted: dict[str, Any], out: Path) -> None:
    """Raise ReverieError if the data in a world's folder are not of ``source``; report videos that are new in it."""
    made, now = noted["source"], config.to_json(source)
    if config.from_json(made) == source and not hasattr(source, "contents"):  # fields may have been added since
        return
    if isinstance(made, str) and isinstance(now, str):
        if open_dataset(now).fingerprint == _fingerprint(out):
            return
    elif isinstance(made, dict) and hasattr(source, "contents") and {**made, "path": ""} == {**now, "path": ""}:
        contents, known = _contents(source), noted.get("contents")
        if contents is None:
            return  # its files are gone
        if known is None:  # written by an earlier version, which stored names only
            names = set(getattr(open_dataset(out / "data"), "sources", ()))
            known = {name: key for name, key in contents.items() if name in names}
        new = sorted(name for name, key in contents.items() if key not in known.values())
        if len(new) < len(contents):
            if new:
                some = ", ".join(new[:3]) + (", ..." if len(new) > 3 else "")
                what = f"{len(new)} new video{'s are' if len(new) > 1 else ' is'} not in this world ({some})"
                print(f"{what}: choose another --out to learn from all.", file=sys.stderr)
            return
    raise ReverieError(f"'{out}' was made from other data, or with other settings: choose another --out.")


def _contents(source: Any) -> dict[str, str] | None:
    """Return a hash of each file of a source, by name; None if it has no files, or they are gone."""
    if not hasattr(source, "contents") or not os.path.exists(source.path):
        return None
    return source.contents()


def _fingerprint(out: Path) -> str:
    """The fingerprint of the data that a world was trained on."""
    if checkpoint.steps(out / "tokenizer"):
        return read_record(out / "tokenizer").fingerprint.partition("-shifted")[0]
    return open_dataset(out / "data").fingerprint
