"""``python -m benchmarks.codecs STORE ...``: the size of each codec of frames, and how fast it writes and reads."""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from reverie.data.codecs import CODECS
from reverie.data.copying import opened, write_new
from reverie.data.filling import About
from reverie.data.store import StoreDataset, open_dataset

FRAMES, CLIPS, LENGTH = 4000, 150, 16


def measure(path: Path) -> list[str]:
    """Return a row of a table for each codec: the first episodes of a store, packed with it."""
    entries, total = [], 0
    for one in opened(path).episodes():
        if total < FRAMES:
            entries, total = [*entries, one.entry], total + one.entry.length
    height, width, _ = open_dataset(path).spec.frame
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in CODECS:
            out, began = Path(folder) / name, time.perf_counter()
            write_new(out, open_dataset(path).spec, entries, About(codec=name))
            wrote = time.perf_counter() - began
            dataset, rng = open_dataset(out), np.random.default_rng(0)
            assert isinstance(dataset, StoreDataset)
            long = np.flatnonzero(dataset.lengths >= LENGTH)
            began = time.perf_counter()
            for _ in range(CLIPS):
                episode = int(rng.choice(long))
                dataset.read(episode, int(rng.integers(dataset.lengths[episode] - LENGTH + 1)), LENGTH)
            read = CLIPS * LENGTH / (time.perf_counter() - began)
            size = sum(file.stat().st_size for file in out.iterdir()) / total
            cells = (path.name, f"{height} x {width}", name, f"{size / 1e3:.2f}", f"{height * width * 3 / size:.1f}")
            rows.append(f"| {' | '.join(cells)} | {total / wrote:,.0f} | {read:,.0f} |")
    return rows


if __name__ == "__main__":
    print("| data | frames | codec | kB a frame | times smaller | written, frames/s | clips read, frames/s |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    for name in sys.argv[1:]:
        print("\n".join(measure(Path(name))), flush=True)
