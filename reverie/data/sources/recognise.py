"""What a folder is, if not loose videos or pictures: data of robots and games in layouts that others have defined.

Read as single videos, such data would be silently wrong: cameras mixed, episodes joined, actions lost.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from reverie.errors import ReverieError

NOT_YET = (
    "Reverie does not read that format yet: write every episode as one video with an action file of the same name "
    "beside it, or a store with write_store (docs/data.md)"
)
MARKS = {  # files that only these formats have, by the end of their path
    "meta/info.json": "LeRobot",
    "main_data.hdf5": "Minari",
    "features.json": "RLDS (TensorFlow Datasets)",
}
EPISODES = {  # endings of files that hold many episodes; a video beside one is only a preview
    ".tfrecord": "RLDS (TensorFlow Datasets)",
    ".hdf5": "HDF5 (robomimic, D4RL, Minari)",
    ".h5": "HDF5 (robomimic, D4RL, Minari)",
    ".array_record": "ArrayRecord (Jasmine?)",
    ".zarr": "Zarr",
    "zarr.json": "Zarr",
    ".lmp": "ViZDoom",
    ".mcap": "MCAP (robots, screen recordings)",
    ".bag": "rosbag",
}
TABLES = {  # endings of files that may lie beside ordinary videos, but not one for each video
    ".parquet": "Parquet (LeRobot?)",
    ".arrow": "Arrow (Minari?)",
    ".npz": "episodes in .npz (MineRL, DreamerV2, DreamerV3, Crafter?)",
    ".tar": "webdataset",
}
BESIDE = {"LeRobot": "data", "RLDS (TensorFlow Datasets)": "dataset_info.json"}  # what lies beside a mark as well
READ = {  # which source reads a format, by the first word of its name
    "LeRobot": "lerobot",
    "Minari": "minari",
    "RLDS": "rlds",
    "HDF5": "hdf5",
    "ArrayRecord": "jasmine",
    "episodes": "arrays",
    "arrays": "arrays",
    "webdataset": "webdataset",
    "VPT": "vpt",
}
LOOSE = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".png", ".jpg", ".jpeg")
CAMERA = "observation.image"  # begins the name of a folder with the videos of one of a robot's cameras


def refuse_formats(path: Path, files: Iterable[Path], videos: Iterable[Path]) -> None:
    """Raise a ReverieError that names the format if ``path``, which holds ``files``, is data in a known format."""
    files, videos = list(files), list(videos)
    if name := recognise(path, files, videos):
        alone = " To learn from the videos alone, put them into a folder of their own." if videos else ""
        source = READ.get(name.split()[0])
        way = f"Read it with 'reverie data {source} OUT --path {path}'" if source else NOT_YET
        raise ReverieError(f"'{path}' holds data in the format {name}, not loose videos. {way}.{alone}")


def beside(files: Iterable[Path], videos: Iterable[Path]) -> set[Path]:
    """Return the .npz files that are named like a video beside them: they hold its actions."""
    return {*files} & {video.with_suffix(".npz") for video in videos if video.suffix.lower() in LOOSE}


def outnumber(inside: Iterable[Path], found: Sequence[Path]) -> bool:
    """Return whether files ``found`` are what a folder is about: as many as its loose videos and pictures, or more."""
    loose = sum(file.suffix.lower() in LOOSE for file in inside)
    return len(found) >= (max(2, loose) if loose else 1)


def recognise(path: Path, files: list[Path], videos: list[Path]) -> str | None:
    """Return the name of the format of ``files`` at ``path``, or None if ``videos`` are ordinary videos."""
    above = path.resolve()
    for mark, name in MARKS.items():
        roots = {file.parents[mark.count("/")] for file in files if file.as_posix().endswith(f"/{mark}")}
        roots |= {folder for folder in (above, *above.parents[:4]) if (folder / mark).is_file()}
        if any((root / BESIDE.get(name, mark)).exists() for root in roots):
            return name
    if any(part.startswith(CAMERA) for video in videos[:20] for part in video.resolve().parts):
        return "LeRobot"
    tables = [file for file in files if file.suffix == ".jsonl"] or [video.with_suffix(".jsonl") for video in videos]
    if videos and any(is_vpt(table) for table in tables[:20]):
        return "VPT (Minecraft)"
    if any(file.name == "manifest.json" for file in files):  # a store of our own
        return None
    others = {*files}.difference(videos, beside(files, videos))
    for ending, name in (EPISODES | TABLES).items():
        found = sum(_has(file, ending) for file in others)
        if found >= (max(2, len(videos)) if videos and ending in TABLES else 1):
            return name
    return None if videos or not any(file.suffix == ".npy" for file in files) else "arrays in .npy"


def _has(file: Path, ending: str) -> bool:
    """Whether the name of a file (a.zarr.zip, a.tfrecord-00000-of-00002) or of its folder (a.zarr) has an ending."""
    if any(suffix == ending or suffix.startswith(f"{ending}-") for suffix in file.suffixes):
        return True
    return file.name == ending or (ending == ".zarr" and any(folder.suffix == ending for folder in file.parents))


def is_vpt(path: Path) -> bool:
    """Whether the first line holds mouse and keyboard, as a recording of VPT does."""
    try:
        with path.open(encoding="utf-8") as file:
            row = json.loads(file.readline(1 << 20))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(row, dict) and {"mouse", "keyboard"} <= row.keys() and "action" not in row
