"""Which stores are mixed, with which weights and at which size. They stay where they are: a small file names them."""

import math
from dataclasses import dataclass
from pathlib import Path

from reverie.data.copying import opened
from reverie.data.episode import Spec
from reverie.data.mixture import FILE, joined, write_mixture
from reverie.data.store import refuse_existing
from reverie.errors import ReverieError


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """A mixture of stores, from which clips are drawn by weight."""

    stores: tuple[str, ...]  # paths of the stores
    weights: tuple[float, ...] = ()  # of the clips from each store; none: as if all episodes were in one store
    size: tuple[int, int] | None = None  # height and width of the frames; none: those of the first store

    def __post_init__(self):
        if not self.stores:
            raise ReverieError("a mixture names one store or more.")
        if self.weights and len(self.weights) != len(self.stores):
            raise ReverieError(f"{len(self.stores)} stores need as many weights, not {len(self.weights)}.")
        if not all(0 < weight < math.inf for weight in self.weights) or (self.size and min(self.size) < 1):
            raise ReverieError(f"weights and sizes are numbers above 0, not {self.weights} and {self.size}.")

    def spec(self) -> Spec:
        """Return the spec of the mixture."""
        return joined([opened(store).any.spec for store in self.stores], self.size)[0]

    def write(self, path: Path) -> None:
        """Write the file that names the stores, in a new folder ``path``, which is opened like a store."""
        refuse_existing(path)
        places = [Path(store).resolve() for store in self.stores]
        stores = [opened(place) for place in places]
        joined([store.any.spec for store in stores], self.size)  # an error if their actions do not fit each other
        held, train = set(), set()
        for store in stores:
            if (store.path / FILE).is_file():
                raise ReverieError(f"'{store.path}' is a mixture itself: name its stores instead.")
            if "train" not in store.splits:
                raise ReverieError(f"'{store.path}' has no split 'train' to draw clips from.")
            for one in store.episodes():
                (train if one.entry.split == "train" else held).add(one.origin)
        if both := sorted(source for *_, source in held & train if source):
            raise ReverieError(
                f"{len(both)} recordings are for training in one store and held out in another ({both[0]}, ...): "
                f"join these stores with 'reverie data merge' first."
            )
        write_mixture(path, places, self.weights, self.size)
