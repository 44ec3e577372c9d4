"""What a folder is, if not a folder of videos: data of robots and games in layouts that others have defined.

Read as loose videos such data would be wrong without a word: cameras mixed, episodes run together, actions lost.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from reverie.errors import ReverieError

NOT_YET = (
    "Reverie does not read that format yet: write every episode as one video with an action file of the same name "
    "beside it, or a store with write_store (docs/data.md)"
)
MARKS = {  # a file that only such data have, by the end of its path
    "meta/info.json": "LeRobot",
    "main_data.hdf5": "Minari",
    "features.json": "RLDS (TensorFlow Datasets)",
}
ENDINGS = {  # what a folder without videos holds
    ".parquet": "Parquet (LeRobot?)",
    ".tfrecord": "RLDS (TensorFlow Datasets)",
    ".hdf5": "HDF5 (robomimic, D4RL, Minari)",
    ".h5": "HDF5 (robomimic, D4RL, Minari)",
    ".tar": "webdataset",
    ".array_record": "ArrayRecord (Jasmine?)",
    ".lmp": "ViZDoom",
    ".npz": "episodes in .npz (DreamerV2, DreamerV3, Crafter?)",
    ".npy": "arrays in .npy",
}
BESIDE = {"LeRobot": "data", "RLDS (TensorFlow Datasets)": "dataset_info.json"}  # what lies beside a mark as well


def refuse_formats(path: Path, files: Iterable[Path], videos: Iterable[Path]) -> None:
    """ReverieError in one line that names the format, if ``path``, with ``files`` in it, is data in one known."""
    if name := recognise(path, list(files), list(videos)):
        raise ReverieError(f"'{path}' holds data in the format {name}, not loose videos. {NOT_YET}.")


def recognise(path: Path, files: list[Path], videos: list[Path]) -> str | None:
    """Return the name of the format that ``files`` at ``path`` are in, or None where ``videos`` are what they seem."""
    above = path.resolve()
    for mark, name in MARKS.items():
        roots = {file.parents[mark.count("/")] for file in files if file.as_posix().endswith(f"/{mark}")}
        roots |= {folder for folder in (above, *above.parents[:4]) if (folder / mark).is_file()}
        if any((root / BESIDE.get(name, mark)).exists() for root in roots):
            return name
    if any(_is_vpt(video.with_suffix(".jsonl")) for video in videos[:20]):
        return "VPT (Minecraft)"
    if videos or any(file.name == "manifest.json" for file in files):  # a store of our own
        return None
    return next((name for ending, name in ENDINGS.items() if any(ending in file.name for file in files)), None)


def _is_vpt(path: Path) -> bool:
    """Whether each line tells of mouse and keyboard."""
    try:
        with path.open(encoding="utf-8") as file:
            row = json.loads(file.readline(1 << 20))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(row, dict) and {"mouse", "keyboard"} <= row.keys() and "action" not in row
