"""Five thousand damaged files of other programs: each is read in part, or refused in one line, soon and cheaply.

``make soak TEST_ARGS="tests/soak_sources.py"``; SOAK_SOURCES=50 takes fewer of each format than 500.
"""

import os
import resource
import shutil
import time

import h5py
import numpy as np
import pytest
from filming import coded, write
from foreign import frames, taken
from test_sources import chunks, pictures, replay
from test_sources_records import chunk, episode, lerobot, npy, records, shard, tfrecord
from test_sources_vpt import line

from reverie.data.sources import sources
from reverie.errors import ReverieError

COUNT = int(os.environ.get("SOAK_SOURCES", "500"))
SECONDS, MEGABYTES = 5.0, 1500


def made(name, root):
    """Write a small dataset of a format."""
    root.mkdir()
    if name.startswith("lerobot"):
        lerobot(root / "set", [7, 12, 5], name.partition(" ")[2])
    elif name == "dreamerv3":
        chunks(root, replay([9, 8]), [7, 7, 3])
    elif name == "images":
        pictures(root / "ep", frames(6))
        (root / "ep" / "actions.csv").write_text("action\n" + "\n".join(map(str, taken(6))))
    elif name == "arrays":
        np.savez(root / "a.npz", image=frames(6), action=taken(5))
        np.save(root / "b.npy", frames(6))
    elif name == "hdf5":
        with h5py.File(root / "a.h5", "w") as file:
            for number in range(3):
                file[f"data/demo_{number}/actions"] = taken(5) / 20
                file.create_dataset(f"data/demo_{number}/obs/image", data=frames(5, number), compression="gzip")
    elif name == "rlds":
        (root / "p-train.tfrecord-00000-of-00001").write_bytes(tfrecord([episode(6, 0), episode(5, 1)]))
    elif name == "jasmine":
        records(root / "a.array_record", [chunk(6, i, 4) for i in range(3)])
    elif name == "webdataset":
        shard(root / "a.tar", {f"ep{i}.{end}": npy(array) for i in range(3) for end, array in
                               (("frames.npy", frames(6)), ("actions.npy", taken(5)))})  # fmt: skip
    else:
        write(root / "a.mp4", [coded(t) for t in range(12)], 20)
        (root / "a.jsonl").write_text("\n".join(line(keys=["w"]) for _ in range(12)))


NAMES = [
    "lerobot v2.1",
    "lerobot v3.0",
    "dreamerv3",
    "images",
    "arrays",
    "hdf5",
    "rlds",
    "jasmine",
    "webdataset",
    "vpt",
]


def damage(file, rng):
    data = bytearray(file.read_bytes())
    at = int(rng.integers(len(data)))
    kind = rng.integers(5)
    if kind == 0:
        del data[at:]
    elif kind == 1:
        for place in rng.integers(len(data), size=int(rng.choice([1, 3, 20]))):
            data[place] = rng.integers(256)
    elif kind == 2:
        data[at : at + int(rng.integers(1, 64))] = rng.bytes(int(rng.integers(64)))
    elif kind == 3:
        data[at:at] = data[at : at + 100]
    else:
        data[at : at + 8] = (b"\xff" * 8, bytes(8), b"\xff\xff\xff\x7f" + bytes(4))[rng.integers(3)]
    file.write_bytes(bytes(data))


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_damage_costs_no_more_than_what_is_damaged(tmp_path, name):
    made(name, tmp_path / "whole")
    rng, read = np.random.default_rng(0), 0
    for number in range(COUNT):
        place = tmp_path / "broken"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", place)
        found = sorted(path for path in place.rglob("*") if path.is_file())
        damage(found[rng.integers(len(found))], rng)
        began = time.process_time()
        try:
            source = sources()[name.partition(" ")[0]](path=str(place))
            for one in source.episodes():
                one.validate(source.spec())
            read += 1
        except ReverieError as error:
            assert "\n" not in str(error), (number, error)
        assert time.process_time() - began < SECONDS, number
    assert read, "none could be read at all"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 < MEGABYTES
