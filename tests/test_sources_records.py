"""LeRobot, RLDS, Jasmine and WebDataset as a store; what is damaged, hostile or unlike the rest.

See ``foreign.py`` for what frames and actions say of themselves. Videos hold their frames' numbers as ``filming`` does.
"""

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filming import coded, number, write
from foreign import check, encoded, frames, taken

from reverie.cli import main
from reverie.data.records import array_record
from reverie.data.sources.unpickled import unpickled
from reverie.errors import Damaged


def numbers(dataset):
    """The numbers in the frames of each episode of a dataset of videos."""
    windows = (dataset.read(i, 0, int(length), ("frames",)) for i, length in enumerate(dataset.lengths))
    return [[number(frame) for frame in window["frames"]] for window in windows]


def actions(dataset, episode):
    return dataset.read(episode, 0, int(dataset.lengths[episode]), ("actions",))["actions"][1:]


# -- LeRobot ---------------------------------------------------------------------------------------------------------

FPS = 10


def lerobot(root, lengths, version, kind="video", size=(64, 64)):
    """Write a dataset with its frames numbered through all episodes; one video per episode (v2), or for all (v3)."""
    camera, feature = "observation.images.top", {"dtype": "float32", "shape": [2], "names": {"motors": ["a", "b"]}}
    features = {camera: {"dtype": kind, "shape": [*size, 3]}, "action": feature}
    features |= {"next.reward": {"dtype": "float32", "shape": [1]}, "next.done": {"dtype": "bool", "shape": [1]}}
    info = {"codebase_version": version, "fps": FPS, "features": features, "chunks_size": 1000}
    new = version.startswith("v3")
    info["video_path"] = (
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        if new
        else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    )
    (root / "meta").mkdir(parents=True)
    (root / "data" / "chunk-000").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(info))
    tables, about, at = [], [], 0
    for episode, length in enumerate(lengths):
        columns = {"action": np.stack([taken(length) / 20, -taken(length) / 20], 1).astype(np.float32).tolist()}
        columns |= {"timestamp": (np.arange(length) / FPS).astype(np.float32), "episode_index": [episode] * length}
        columns |= {"next.reward": np.eye(length)[2], "next.done": np.eye(length)[-1] > 0, "task_index": [0] * length}
        if kind == "image":
            columns[camera] = [{"bytes": encoded(frame), "path": "x"} for frame in frames(length, episode)]
        tables.append(pa.table({name: pa.array(value) for name, value in columns.items()}))
        place = {f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": 0}
        place |= {f"videos/{camera}/from_timestamp": at / FPS, f"videos/{camera}/to_timestamp": (at + length) / FPS}
        about.append({"episode_index": episode, "tasks": ["push"], "length": length} | (place if new else {}))
        if kind == "video" and not new:
            video = root / "videos" / "chunk-000" / camera / f"episode_{episode:06d}.mp4"
            video.parent.mkdir(parents=True, exist_ok=True)
            write(video, [coded(at + t, size) for t in range(length)], FPS)
        at += length
    if new:
        pq.write_table(pa.concat_tables(tables), root / "data" / "chunk-000" / "file-000.parquet")
        (root / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(about), root / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
        words = pa.table({"task_index": [0], "__index_level_0__": ["push it"]})
        pq.write_table(words, root / "meta" / "tasks.parquet")
        if kind == "video":
            video = root / "videos" / camera / "chunk-000" / "file-000.mp4"
            video.parent.mkdir(parents=True)
            write(video, [coded(t, size) for t in range(at)], FPS)
    else:
        for episode, table in enumerate(tables):
            pq.write_table(table, root / "data" / "chunk-000" / f"episode_{episode:06d}.parquet")
        (root / "meta" / "episodes.jsonl").write_text("\n".join(map(json.dumps, about)))
        (root / "meta" / "tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "push it"}))
    return root


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobot_cuts_videos_where_the_metadata_say(tmp_path, store, caplog, capsys, version):
    root = lerobot(tmp_path / "arm", [7, 12, 5], version)
    found = store("lerobot", root)
    assert numbers(found) == [list(range(7)), list(range(7, 19)), list(range(19, 24))]
    assert found.tasks == ["push it"] * 3 and found.spec.fps == FPS
    for episode, length in enumerate([7, 12, 5]):
        want = np.stack([taken(length - 1), -taken(length - 1)], 1) / 20
        assert np.allclose(actions(found, episode), want)
        window = found.read(episode, 0, length)
        assert np.flatnonzero(window["rewards"]).tolist() == [3] and not window["ends"].any()
    assert found.spec.actions.names == ("a -", "a +", "b -", "b +")
    assert "the last reward or end of 3 recordings" in caplog.text
    place = {"v2.1": "data/chunk-000/episode_000001.parquet", "v3.0": "meta/episodes/chunk-000/file-000.parquet"}
    (root / place[version]).write_bytes(b"PAR1 no PAR1")
    if version == "v2.1":
        assert numbers(store("lerobot", root)) == [list(range(7)), list(range(19, 24))]
        assert "skipped episode_000001.parquet" in caplog.text
    else:
        store("lerobot", root, status=2)  # nothing says where in the video an episode lies
    text = (root / "meta" / "info.json").read_text()
    (root / "meta" / "info.json").write_text(text.replace('"videos/', '"../videos/'))
    store("lerobot", root, status=2)
    assert "would be outside the dataset" in capsys.readouterr().err or version == "v3.0"


def test_lerobot_pictures_in_the_table_and_a_video_that_is_too_short(tmp_path, store, caplog):
    root = lerobot(tmp_path / "images", [6, 4], "v3.0", kind="image", size=(16, 24))
    vectors = [np.stack([taken(n), -taken(n)], 1) / 20 for n in (5, 3)]
    check(store("lerobot", root), [6, 4], vectors, [[3], [3]])
    file, camera = root / "data" / "chunk-000" / "file-000.parquet", "observation.images.top"
    rows = sorted(pq.read_table(file).to_pylist(), key=lambda row: (-row["episode_index"], row["timestamp"]))
    for row in rows:
        at = root / "images" / camera / f"episode_{row['episode_index']:06d}" / f"frame_{row['timestamp']:.1f}.png"
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_bytes(row[camera]["bytes"])
        own = at.relative_to(root) if row["episode_index"] else Path("/home/them") / at.name
        row[camera] = {"bytes": None, "path": str(own)}
    pq.write_table(pa.Table.from_pylist(rows), file)
    check(store("lerobot", root), [6, 4], vectors, [[3], [3]])
    root = lerobot(tmp_path / "short", [6, 8], "v2.1")
    video = root / "videos" / "chunk-000" / camera / "episode_000001.mp4"
    write(video, [coded(6 + t) for t in range(11)], FPS)
    assert numbers(store("lerobot", root)) == [list(range(6)), list(range(6, 14))]
    assert "episode 1: its video has 11 frames for 8 rows" in caplog.text
    write(video, [coded(6 + t) for t in range(5)], FPS)
    assert numbers(store("lerobot", root)) == [list(range(6)), list(range(6, 11))]
    assert "episode 1: 3 of 8 pictures damaged or missing" in caplog.text
    video.unlink()
    assert numbers(store("lerobot", root)) == [list(range(6))] and "is missing" in caplog.text


# -- RLDS ------------------------------------------------------------------------------------------------------------


def varint(value):
    out = bytearray()
    value &= 2**64 - 1
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(tag, data):
    return varint(tag << 3 | 2) + varint(len(data)) + data


def example(features):
    """A tf.train.Example: lists of bytes, of floats or of whole numbers by name."""
    entries = b""
    for name, values in features.items():
        if isinstance(values[0], bytes):
            feature = field(1, b"".join(field(1, value) for value in values))
        elif isinstance(values[0], float):
            feature = field(2, field(1, struct.pack(f"<{len(values)}f", *values)))
        else:
            feature = field(3, field(1, b"".join(map(varint, values))))
        entries += field(1, field(1, name.encode()) + field(2, feature))
    return field(1, entries)


def crc32c(data):
    """The masked checksum of TFRecord, by a table: another way than the reader's."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ 0x82F63B78 * (value & 1)
        table.append(value)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def tfrecord(records):
    heads = (struct.pack("<Q", len(record)) for record in records)
    return b"".join(head + crc32c(head) + r + crc32c(r) for head, r in zip(heads, records, strict=True))


def episode(length, number, died=True, parts=False, backwards=False):
    """An episode whose last row means nothing."""
    acts = taken(length).astype(float)
    acts[-1] = 9e9
    steps = {"observation/image": [encoded(frame) for frame in frames(length, number)]}
    steps["observation/state"] = [0.5] * (3 * length)
    rewards = [float(t == 2) for t in range(length)]
    rewards[-1] = 99.0
    steps |= {"reward": rewards, "is_terminal": [int(died and t == length - 1) for t in range(length)]}
    steps |= {
        "is_first": [int(t == 0) for t in range(length)],
        "is_last": [int(t == length - 1) for t in range(length)],
    }
    steps["language_instruction"] = [b"push"] * length
    if parts:
        steps |= {
            "action/move": [x for a in acts for x in (a / 20, -a / 20)],
            "action/grip": [float(a / 40) for a in acts],
        }
    else:
        steps["action"] = [int(a) if a < 99 else -5 for a in acts]
    steps = dict(reversed(steps.items())) if backwards else steps
    return example({f"steps/{name}": values for name, values in steps.items()})


def test_rlds_in_tfrecords(tmp_path, store, caplog):
    root = tmp_path / "proof" / "1.0.0"
    root.mkdir(parents=True)
    shard = root / "proof-train.tfrecord-00000-of-00001"
    shard.write_bytes(tfrecord([episode(6, 0), episode(5, 1, died=False)]))
    found = store("rlds", tmp_path / "proof")
    check(found, [6, 5], [taken(5), taken(4)], [[3], [3]], [[5], []])
    assert found.tasks == ["push", "push"] and found.spec.actions.kind == "discrete"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-40])
    check(store("rlds", root), [6], [taken(5)])
    assert "skipped the rest of proof-train" in caplog.text and "ends in the middle of a record" in caplog.text
    shard.write_bytes(tfrecord([episode(6, 0), b"\xff" * 90, episode(5, 1)]))
    check(store("rlds", root), [6, 5])
    assert "record 1: it is not an example of TensorFlow's" in caplog.text
    place = whole.rindex(b"steps/action") + 17  # in the actions of the second episode
    shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    check(store("rlds", root), [6], [taken(5)])
    assert "record 1: its checksum is wrong" in caplog.text


def test_rlds_in_array_records_with_an_action_of_several_parts(tmp_path, store, caplog):
    root = tmp_path / "1.0.0"
    root.mkdir(parents=True)
    both = [episode(6, 0, parts=True), episode(6, 1, parts=True, backwards=True)]  # protocol buffers keep no order
    records(root / "proof-train.array_record-00000-of-00001", both)
    (root / "features.json").write_text("{}")
    found = store("rlds", root)
    want = np.stack([taken(5) / 40, taken(5) / 20, -taken(5) / 20], 1)
    check(found, [6, 6], [want] * 2)
    assert "an action has the parts action/grip, action/move" in caplog.text
    check(store("rlds", root, "--actions", "grip"), [6, 6], [want[:, :1]] * 2)
    raw = {"steps/pixels": frames(4).reshape(-1).tolist(), "steps/action": taken(4).tolist()}
    shape = {"tensor": {"shape": {"dimensions": ["16", "24", "3"]}}}
    steps = {"sequence": {"feature": {"featuresDict": {"features": {"pixels": shape}}}}}
    for coding, pixels in {
        "": raw["steps/pixels"],
        "none": (frames(4) / 255).reshape(-1).tolist(),
        "bytes": [frame.tobytes() for frame in frames(4)],
        "zlib": [zlib.compress(frame.tobytes()) for frame in frames(4)],
    }.items():
        shape["tensor"] |= {"encoding": coding, "dtype": "uint8"}
        (root / "features.json").write_text(json.dumps({"featuresDict": {"features": {"steps": steps}}}))
        records(root / "proof-train.array_record-00000-of-00001", [example(raw | {"steps/pixels": pixels})])
        check(store("rlds", root), [4], [taken(3)])


# -- Jasmine ---------------------------------------------------------------------------------------------------------


def records(path, items):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = array_record().ArrayRecordWriter(str(path), "group_size:1")
    for item in items:
        writer.write(item)
    writer.close()


def chunk(length, number, protocol, size=(16, 24), form=np.ndarray.tobytes):
    made = {"raw_video": form(frames(length, number, size)), "sequence_length": length, "actions": taken(length)}
    return pickle.dumps(made, protocol)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_jasmines_records_of_every_protocol(tmp_path, store, protocol):
    root = tmp_path / "coinrun"
    forms = [np.ndarray.tobytes, lambda video: bytearray(video.tobytes()), np.asarray]
    made = [chunk(6 - number, number, protocol, form=form) for number, form in enumerate(forms)]
    records(root / "train" / "data_0000.array_record", made)
    (root / "metadata.json").write_text(json.dumps({"num_actions": 20}))
    found = store("jasmine", root / "train", "--frame", "16", "24")
    check(found, [6, 5, 4], [taken(5), taken(4), taken(3)])
    assert found.spec.actions.size == 20


def test_jasmines_frame_size_is_guessed_by_what_fits_and_said(tmp_path, store, caplog):
    steps = np.linspace(0, 200, 90)[:, None, None] + np.linspace(0, 50, 160)[None, :, None]
    image = np.broadcast_to(steps, (90, 160, 3)).astype(np.uint8)
    made = {"raw_video": np.stack([image] * 3).tobytes(), "sequence_length": 3}
    records(tmp_path / "a.array_record", [pickle.dumps(made)])
    found = store("jasmine", tmp_path / "a.array_record")
    assert found.spec.frame == (90, 160, 3) and "taken as 90 x 160; --frame H W if they are not" in caplog.text
    store("jasmine", tmp_path / "a.array_record", "--frame", "90", "90", status=2)
    black = pickle.dumps(made | {"raw_video": bytes(len(made["raw_video"]))})
    records(tmp_path / "b.array_record", [black, pickle.dumps(made)])
    assert store("jasmine", tmp_path / "b.array_record").spec.frame == (90, 160, 3)


class Bad:
    def __reduce__(self):
        return os.mkdir, ("pickle-was-run",)


def bombs():
    nested = b"\x80\x04" + b"]" * 1000 + b"a" * 999 + b"."
    yield pickle.dumps(Bad())
    yield pickle.dumps({"raw_video": b"x" * 768, "sequence_length": 1, "more": Bad()}, 2)
    yield b"cos\nsystem\n(S'mkdir pickle-was-run'\ntR."
    yield b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x14mkdir pickle-was-run\x85R."
    yield b"cnumpy\nload\n(S'x.npy'\ntR."
    yield nested
    yield pickle.dumps(np.array([Bad()], object))
    yield b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x."
    yield b"\x80\x02(K\x01K\x02u."


def test_a_hostile_pickle_does_nothing(tmp_path, store, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    assert unpickled(pickle.dumps({"a": [1, 2.5, (b"x", "y", None, True)], "b": np.float32(3)})) == {
        "a": [1, 2.5, (b"x", "y", None, True)],
        "b": 3,
    }
    for data in bombs():
        try:
            made = unpickled(data)
        except Damaged:
            continue
        assert isinstance(made, list), made  # lists in lists are harmless
    records(tmp_path / "bad.array_record", [chunk(6, 0, 4), *bombs(), chunk(4, 1, 4)])
    check(store("jasmine", tmp_path / "bad.array_record", "--frame", "16", "24"), [6, 4])
    assert "skipped bad.array_record, record 1: a pickle that wants to run posix.mkdir: not followed" in caplog.text
    assert not (tmp_path / "pickle-was-run").exists()


# -- WebDataset ------------------------------------------------------------------------------------------------------


def shard(path, members):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_webdataset_of_videos_pictures_and_arrays(tmp_path, store):
    root = tmp_path / "shards"
    root.mkdir()
    film = write(tmp_path / "film.mp4", [coded(t) for t in range(9)], 10).read_bytes()
    about = json.dumps({"fps": 12, "actions": 20, "task": "push"}).encode()
    shard(root / "a-000.tar", {"x/ep1.v2.mp4": film, "x/ep1.actions.npy": npy(taken(8)), "x/ep1.json": about})
    found = store("webdataset", root)
    assert numbers(found) == [list(range(9))] and (actions(found, 0) == taken(8)).all()
    assert (found.spec.fps, found.spec.actions.size, found.tasks, found.sources) == (12, 20, ["push"], ["x/ep1"])
    stills = {f"ep.{t}.png": encoded(frame) for t, frame in enumerate(frames(11))}
    rows = json.dumps({"action": taken(11).tolist(), "reward": np.eye(11)[3].tolist()}).encode()
    shard(tmp_path / "b.tar.gz", stills | {"ep.json": rows})
    check(store("webdataset", tmp_path / "b.tar.gz"), [11], [taken(10)], [[4]])
    rows = {"a.action.npy.gz": gzip.compress(npy(taken(5))), "b.actions.json": json.dumps(taken(5).tolist()).encode()}
    rows["c.steps.csv"] = ("action,done\n" + "\n".join(f"{a},0" for a in taken(5))).encode()
    shard(tmp_path / "c.tar", rows | {f"{key}.frames.npy": npy(frames(6, i)) for i, key in enumerate("abc")})
    check(store("webdataset", tmp_path / "c.tar"), [6] * 3, [taken(5)] * 3)


def test_nothing_is_taken_out_of_a_tar_and_damage_costs_its_sample(tmp_path, store, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    members = {"../../evil.npy": npy(frames(3)), "/abs.npy": npy(frames(3)), "ok.frames.npy": npy(frames(5))}
    shard(tmp_path / "a.tar", members | {"bad.mp4": b"no video", "bomb.npy": npy(frames(2))[:90]})
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        link = tarfile.TarInfo("link.frames.npy")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    found = store("webdataset", tmp_path / "a.tar")
    assert sorted(found.lengths.tolist()) == [3, 3, 5]
    assert "bad: it is not a video, or damaged" in caplog.text and "a.tar, bomb: " in caplog.text
    assert not list(tmp_path.parent.rglob("evil.npy")) and not os.path.exists("/abs.npy")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:6000])
    assert len(store("webdataset", tmp_path / "cut.tar").lengths) >= 1


def test_an_npz_of_pickled_objects_alone_says_what_to_do(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", data=np.array([{"frames": 1}], object))
    assert main(["data", "arrays", "out", "--path", str(tmp_path / "a.npz")]) == 2
    said = capsys.readouterr().err
    assert "pickled objects (data)" in said and "np.savez(file, frames=" in said
