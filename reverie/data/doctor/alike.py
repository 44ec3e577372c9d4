"""Episodes that are copies of others, exactly or nearly: another encoding, noise, brightness, a later start.

Thumbnails of one moment are no proof: many games begin alike, and a camera that stands still shows one room for ever.
Two episodes are nearly alike if their thumbnails *change* alike over time.

Legend: P probes, F thumbnails of all episodes.
"""

from collections.abc import Sequence

import numpy as np

from reverie.data.doctor.look import Looked

PROBES, NEAREST = 3, 4  # moments of an episode that are looked for elsewhere, and the places that are compared
MOST = 3000  # probes in all
ALIKE = 0.95  # correlation of two episodes' changes over time, and of their mean pictures
LEAST = 6  # thumbnails that two episodes must share
MOVING = 0.5  # of 255: thumbnails that change less over time prove nothing


def copies(seen: Sequence[Looked]) -> list[list[int]]:
    """Return groups of episodes, by their places in ``seen``, with the same frames."""
    found: dict[bytes, list[int]] = {}
    for place, one in enumerate(seen):
        if not one.damage:
            found.setdefault(one.digest, []).append(place)
    return [group for group in found.values() if len(group) > 1]


def near_copies(seen: Sequence[Looked]) -> list[tuple[int, int]]:
    """Return pairs of episodes, by their places in ``seen``, that are nearly alike but no exact copies."""
    whose = np.concatenate([np.full(len(one.thumbs), place) for place, one in enumerate(seen)] or [np.zeros(0, int)])
    if not len(whose):
        return []
    thumbs = _standard(np.concatenate([one.thumbs for one in seen]))
    first = np.searchsorted(whose, np.arange(len(seen)))
    long = [place for place, one in enumerate(seen) if len(one.thumbs) >= LEAST]
    every = -(-len(long) * PROBES // MOST)
    probes = [
        (place, len(seen[place].thumbs) * part // (PROBES + 1))
        for place in long[::every]
        for part in range(1, PROBES + 1)
    ]
    found: set[tuple[int, int]] = set()
    for start in range(0, len(probes), 64):
        group = probes[start : start + 64]
        likeness = thumbs[[first[place] + at for place, at in group]] @ thumbs.T
        for (place, at), row in zip(group, likeness, strict=True):
            row[whose == place] = -1
            for other_at in np.argpartition(-row, min(NEAREST, len(row) - 1))[:NEAREST]:
                other = int(whose[other_at])
                pair = (min(place, other), max(place, other))
                if other == place or pair in found or seen[place].digest == seen[other].digest:
                    continue
                if _alike(seen[place].thumbs, seen[other].thumbs, int(other_at - first[other]) - at):
                    found.add(pair)
    return sorted(found)


def _standard(thumbs: np.ndarray) -> np.ndarray:
    """Return thumbnails without their brightness and contrast, so that a product is a correlation."""
    centred = thumbs.astype(np.float32) - thumbs.mean(1, dtype=np.float32, keepdims=True)
    return centred / (np.linalg.norm(centred, axis=1, keepdims=True) + 1e-3)


def _alike(one: np.ndarray, other: np.ndarray, shift: int) -> bool:
    """Whether thumbnail t of one shows what t + shift of the other shows, over at least half of the shorter one."""
    start, stop = max(0, -shift), min(len(one), len(other) - shift)
    if stop - start < max(LEAST, min(len(one), len(other)) / 2):
        return False
    a, b = one[start:stop].astype(np.float32), other[start + shift : stop + shift].astype(np.float32)
    means = a.mean(0), b.mean(0)
    a, b = a - means[0], b - means[1]
    if min(np.abs(a).mean(), np.abs(b).mean()) < MOVING / 10:
        return False
    return _correlation(a, b) > ALIKE and _correlation(*(mean - mean.mean() for mean in means)) > ALIKE


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / (np.sqrt((a**2).sum() * (b**2).sum()) + 1e-9))
