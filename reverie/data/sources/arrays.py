"""Episodes in NumPy's files: .npz with named arrays, or folders of .npy files, of one episode or of many.

Which array is what follows from its name (``roles``) and shape, where episodes end from flags ("done", "is_first") or
"lengths"; ``bundles`` says which step an entry belongs to.
"""

import math
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from reverie import bounded
from reverie.data.sources import bundles, files, roles
from reverie.data.sources.boundaries import NUMBERS
from reverie.data.sources.bundles import Bundle, BundleSource, Column
from reverie.data.sources.dreamerv3 import CHUNK, array_of
from reverie.data.sources.pictures import is_encoded
from reverie.data.sources.recognise import beside, outnumber, recognise
from reverie.data.sources.recordings import UNREADABLE, Found
from reverie.errors import Damaged

BOUNDS = tuple(f"{of}{word}" for of in ("", "episode_", "traj_", "ep_") for word in ("lengths", "ends", "starts"))
OURS = {"frames", "lengths"}  # what an .npz that is a dataset of Reverie's own has
ROLES = (*roles.FRAMES, *roles.KNOWN, *NUMBERS, *BOUNDS)


@dataclass(frozen=True, kw_only=True)
class ArraysConfig(BundleSource):
    """Episodes in .npz or .npy files: frames, actions, rewards, ends by name."""

    @classmethod
    def of(cls, path: Path, inside: list[Path]) -> Self | None:
        """Return this source of ``path`` if it holds NumPy arrays."""
        found = [file for file in files.ending(inside, (".npz", ".npy")) if not CHUNK.fullmatch(file.name)]
        found = [file for file in found if file not in beside(inside, inside)]
        others = [file for file in inside if file.suffix != ".lmp"]  # what ViZDoom's engine notes beside its pictures
        if not found or not outnumber(inside, found) or recognise(path, others, found) is not None:
            return None
        return None if path.is_file() and is_dataset(path) else cls(path=str(path))

    def look(self, inside: list[Path]) -> Found:
        """Return the recordings of all files, in the order of their names."""
        found, root = Found(), Path(self.path)
        packed, groups = files.ending(inside, (".npz",)), _groups(files.ending(inside, (".npy",)), root)
        named = [(files.name_of(file, root), file) for file in sorted(packed, key=files.natural)]
        made = found.made((name, partial(_npz, name, file, found)) for name, file in named)
        made += found.made((name, partial(_npy, name, group)) for name, group in groups.items())
        bundles.add(found, made, camera=self.camera, actions=self.actions, alignment=self.alignment)
        return found


def is_dataset(path: Path) -> bool:
    """Return whether an .npz file is a dataset in Reverie's own layout, which ``open_dataset`` reads."""
    try:
        names = set(bounded.npz_headers(path)[0]) if path.suffix == ".npz" else set()
    except UNREADABLE:
        return True  # damaged: what reads datasets says so
    return "reverie" in names or names >= OURS


def _npy(name: str, group: dict[str, Path]) -> Bundle:
    return Bundle(name, {key: Column.of(bounded.map_npy(file)) for key, file in group.items()})


def _npz(name: str, file: Path, found: Found) -> Bundle:
    headers, others = bounded.npz_headers(file)
    if others and not headers:
        raise Damaged(
            f"it holds only pickled objects ({', '.join(others)[:60]}), which are not loaded as they can run code; "
            "save arrays by name: np.savez(file, frames=..., action=...)"
        )
    if others:
        found.say(f"{name}: {', '.join(others)[:200]} {'are' if len(others) > 1 else 'is'} not numbers: not read")
    stamp = file.stat().st_mtime_ns

    def column(key: str) -> Column:
        kind, shape = headers[key]
        encoded = kind.kind == "S" and len(shape) == 1 and shape[0] and is_encoded(array_of(file, key, stamp)[0])
        form = "encoded" if encoded else "numbers"
        return Column(shape, kind.str[1:], lambda a, b: array_of(file, key, stamp)[a:b], form)

    single = {key: array_of(file, key, stamp).item() for key, (_, shape) in headers.items() if math.prod(shape) == 1}
    found.fps = found.fps or roles.rate(single.get("fps"))
    texts = (single[key] for key in roles.TASKS if isinstance(single.get(key), str))
    return Bundle(name, {key: column(key) for key in headers}, task=next(texts, ""))


def _groups(found: list[Path], root: Path) -> dict[str, dict[str, Path]]:
    """Return .npy files by episode and role: frames.npy, actions.npy of a folder, or ep1_frames.npy, ep1_actions.npy.

    A file whose name has no role is an episode's frames.
    """
    groups: dict[str, dict[str, Path]] = {}
    for file in sorted(found, key=files.natural):
        folder = files.name_of(file.parent, root) if file.parent != root else root.name
        stem = file.stem.lower()
        role = max((word for word in ROLES if re.search(rf"(^|[_.-]){word}$", stem)), key=len, default="")
        front = max((word for word in ROLES if re.search(rf"^{word}([_.-]|$)", stem)), key=len, default="")
        if role:
            rest, key = stem[: len(stem) - len(role)].rstrip("_.-"), role
            if rest == "next" or rest.endswith("_next"):
                rest, key = rest.removesuffix("next").rstrip("_"), f"next_{role}"
        elif front:
            rest, key = stem[len(front) :].lstrip("_.-"), front
        elif file.parent != root and file.parent.name.lower() in ROLES:  # actions/0.npy beside frames/0.npy
            folder, rest, key = files.name_of(file.parent.parent, root), stem, file.parent.name.lower()
        else:
            rest, key = stem, "frames"
        groups.setdefault(f"{folder}/{rest}" if rest else folder, {})[key] = file
    return groups
