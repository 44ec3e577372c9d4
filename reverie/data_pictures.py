"""Pictures of a store's episodes: contact sheets and GIFs with the actions drawn in."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reverie.data.copying import Store
from reverie.evaluation.video import captioned, contact_sheet, png, scale_of, write_gif, write_png

COLUMNS = 8  # moments of an episode on a sheet
LONGEST = 256  # frames of a GIF
WIDTH = 2000  # pixels of a row of moments, about


def moments(dataset: Any, episode: int, count: int = COLUMNS) -> tuple[np.ndarray, list[str]]:
    """Return frames (count, H, W, C) spread over an episode and the actions that led to them, read one by one."""
    times = np.round(np.linspace(0, int(dataset.lengths[episode]) - 1, count)).astype(int)
    read = [dataset.read(episode, int(time), 1, ("frames", "actions")) for time in times]
    step = max(1, dataset.spec.frame[1] * count // WIDTH)
    frames = np.stack([arrays["frames"][0] for arrays in read])[:, ::step, ::step]
    return frames, [dataset.spec.actions.name_of(arrays["actions"][0]) for arrays in read]


def sheet(clips: Sequence[tuple[str, np.ndarray]]) -> bytes:
    """Return a PNG of clips in rows."""
    return png(contact_sheet(clips, columns=len(clips[0][1]), scale=scale_of(clips[0][1])))


def draw(store: Store, folder: Path, count: int) -> list[Path]:
    """Write, for each split, a sheet of ``count`` episodes spread over it, and a GIF of each; return the files."""
    written = []
    for split, dataset in store.splits.items():
        chosen = np.unique(np.linspace(0, len(dataset.lengths) - 1, count).astype(int)).tolist()
        scale, rows = max(2, scale_of(np.zeros((1, *dataset.spec.frame)))), []
        for episode in chosen:
            rows.append((f"{split} {episode}", captioned(*moments(dataset, episode), scale=scale)))
            length = min(LONGEST, int(dataset.lengths[episode]))
            window = dataset.read(episode, 0, length, ("frames", "actions"))
            names = [dataset.spec.actions.name_of(action) for action in window["actions"]]
            written.append(folder / f"{split}-{episode:05d}.gif")
            write_gif(written[-1], captioned(window["frames"], names, scale), dataset.spec.fps)
        written.append(folder / f"{split}.png")
        write_png(written[-1], contact_sheet(rows, columns=COLUMNS, scale=1))
    return written
