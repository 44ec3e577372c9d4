"""Files from outside: limits hold before memory is taken, and whatever is wrong is one line."""

import io
import json
import re
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from reverie.bounded import DEPTH, ROOM, map_npy, parse_json, read_bytes, read_json, read_npz
from reverie.checksums import check_manifest, checked, read_signed, signed, write_json, write_manifest
from reverie.data.arrays import ArrayDataset
from reverie.data.sources.square import SquareConfig
from reverie.data.store import MANIFEST, open_dataset, write_store
from reverie.errors import Damaged, ReverieError

ARRAYS = {
    "a": np.arange(24, dtype=np.int32).reshape(2, 3, 4),
    "b": np.asfortranarray(np.linspace(0, 1, 6).reshape(2, 3)),
    "c": np.array("text"),
    "d": np.zeros((0, 5), bool),
    "e": np.array([1.5], ">f4"),
}


def npy(descr="'<i4'", order="False", shape="(6,)", data=bytes(24), version=b"\x01\x00", extra="") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, {extra}}}\n".encode("latin-1")
    return b"\x93NUMPY" + version + struct.pack("<H" if version == b"\x01\x00" else "<I", len(header)) + header + data


def zipped(path: Path, members: dict[str, bytes], kind=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def one_line(error) -> None:
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(tmp_path, save):
    save(tmp_path / "some.npz", **ARRAYS)
    found = read_npz(tmp_path / "some.npz")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
        np.save(tmp_path / "one.npy", array)
        np.testing.assert_array_equal(map_npy(tmp_path / "one.npy"), array)
    found["a"][0] = 1  # it is ours


def test_headers_of_other_writers_are_read(tmp_path):
    file = tmp_path / "one.npy"
    for raw in (
        npy(version=b"\x02\x00"),
        npy().replace(b"'", b'"'),
        npy(shape="(2,3)"),
        b"\x93NUMPY\x01\x00\x3b\x00"
        + b"{'shape': (6,), 'fortran_order': False, 'descr': '<i4'}".ljust(0x3B)
        + bytes(24),
    ):
        file.write_bytes(raw)
        assert map_npy(file).size == 6


MUTATED = {
    "claims a petabyte": npy(shape="(1000000000000000,)"),
    "claims an exabyte and wraps": npy(shape="(4611686018427387904, 4)"),
    "too many digits": npy(shape=f"({'9' * 200},)"),
    "negative": npy(shape="(-6,)"),
    "fractional": npy(shape="(6.0,)"),
    "an expression": npy(shape="(3+3,)"),
    "a call": npy(shape="(__import__('os').getpid(),)"),
    "objects": npy(descr="'|O'"),
    "records": npy(descr="[('a', '<i4')]"),
    "no type": npy(descr="'<i3'"),
    "huge text": npy(descr="'<U9999999'"),
    "truncated": npy()[:-1],
    "more than it claims": npy() + b"1",
    "another key": npy(extra="'x': 1"),
    "twice the same key": npy().replace(b"'shape'", b"'descr'"),
    "nested": npy(shape="(" * 3000),
    "a long header": npy(shape="(" + " " * 60_000 + "6,)"),
    "version 9": npy(version=b"\x09\x00"),
    "empty": b"",
    "short": b"\x93NUMPY",
    "no end": b"\x93NUMPY\x01\x00\xff\xff{",
    "other bytes": b"GIF89a" + bytes(100),
}


@pytest.mark.parametrize("what", MUTATED)
def test_a_mutated_header_is_one_line(tmp_path, what):
    (tmp_path / "one.npy").write_bytes(MUTATED[what])
    with pytest.raises(Damaged) as error:
        map_npy(tmp_path / "one.npy")
    one_line(error)
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with pytest.raises(Damaged) as error:
            read_npz(zipped(tmp_path / "some.npz", {"a.npy": MUTATED[what]}, kind))
        one_line(error)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    size = ROOM + 1
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w") as out,
    ):
        out.write(npy("'|u1'", shape=f"({size},)", data=b""))
        for _ in range(0, size, 2**20):
            out.write(bytes(min(2**20, size)))
    assert (tmp_path / "bomb.npz").stat().st_size < 1e6
    tracemalloc.start()
    try:
        with pytest.raises(Damaged, match="would unpack to 26. MB: more than"):
            read_npz(tmp_path / "bomb.npz")
        with pytest.raises(ReverieError, match="would unpack to"):
            ArrayDataset.load(tmp_path / "bomb.npz")
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_archives_that_numpy_does_not_write_are_refused(tmp_path):
    plain = zipped(tmp_path / "plain.npz", {"a.npy": npy(), "b.npy": npy()}).read_bytes()
    (tmp_path / "alike.npz").write_bytes(plain.replace(b"b.npy", b"a.npy"))
    locked = bytearray(plain)
    locked[plain.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "locked.npz").write_bytes(locked)
    zipped(tmp_path / "many.npz", {f"{i}.npy": npy() for i in range(101)})
    zipped(tmp_path / "other.npz", {"a.npy": npy()}, zipfile.ZIP_BZIP2)
    says = {
        "alike": "have the same name",
        "locked": "is encrypted",
        "many": "101 members",
        "other": "compressed in a way",
    }
    for name, words in says.items():
        with pytest.raises(Damaged, match=words) as error:
            read_npz(tmp_path / f"{name}.npz")
        one_line(error)


def test_a_zip_that_lies_about_sizes_is_refused(tmp_path):
    """The size in its table of contents is small, so are the array's claims; the stream is not."""
    raw = zipped(tmp_path / "some.npz", {"a.npy": npy(), "b.npy": npy()}).read_bytes()
    size = struct.pack("<I", len(npy()))
    assert raw.count(size) == 4
    for claimed in (0, len(npy()) - 24, len(npy()) + 400_000, 2**32 - 2):
        (tmp_path / "lies.npz").write_bytes(raw.replace(size, struct.pack("<I", claimed)))
        with pytest.raises(Damaged) as error:
            read_npz(tmp_path / "lies.npz")
        one_line(error)
    broken = bytearray(zipped(tmp_path / "some.npz", {"a.npy": npy()}, zipfile.ZIP_STORED).read_bytes())
    broken[27] = 255  # the length of a name, which the library's error would print
    (tmp_path / "long.npz").write_bytes(broken + bytes(2**16))
    with pytest.raises(Damaged) as error:
        read_npz(tmp_path / "long.npz")
    one_line(error)


def test_every_flipped_byte_of_an_npz_is_found_or_harmless(tmp_path):
    np.savez_compressed(tmp_path / "good.npz", **ARRAYS)
    raw, harmless = (tmp_path / "good.npz").read_bytes(), 0
    for at in range(len(raw)):
        broken = bytearray(raw)
        broken[at] ^= 1 << at % 8
        (tmp_path / "bad.npz").write_bytes(broken)
        try:
            found = read_npz(tmp_path / "bad.npz")
        except Damaged as error:
            assert "\n" not in str(error)
            continue
        harmless += 1
        for name in found.keys() & ARRAYS.keys():
            np.testing.assert_array_equal(found[name], ARRAYS[name])
    assert harmless < len(raw) / 2  # dates, attributes, and names, which callers look at


@pytest.mark.parametrize(
    "lengths",
    [[-1, 21], [24.5, 8.0], [0, 20], [[10, 10]], 20, [10, 10, 2**40], ["10", "10"], [True, True], []],
    ids=str,
)
def test_lengths_that_are_none_are_refused(tmp_path, lengths):
    data = ArrayDataset.from_episodes(SquareConfig().spec(), SquareConfig(count=2, frames=10).episodes())
    with pytest.raises(ReverieError):
        ArrayDataset(data.spec, np.array(lengths), data.arrays)


def deep(depth: int, kind: str) -> str:
    return "[" * depth + "]" * depth if kind == "list" else '{"a":' * depth + "1" + "}" * depth


def test_json_is_bounded(tmp_path):
    assert parse_json(deep(DEPTH - 1, "dict"), "it") is not None
    file = tmp_path / "some.json"
    for text in (
        *(deep(depth, kind) for depth in (DEPTH + 1, 900, 200_000) for kind in ("list", "dict")),
        "{", "", "\0", "NaN", "[-Infinity]", "[1e999]", '{"a": "\\ud800"}', '{"\\udfff": 1}', "9" * 5000, "nul",
    ):  # fmt: skip
        file.write_text(text)
        with pytest.raises(Damaged) as error:
            read_json(file)
        one_line(error)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Damaged):
        read_json(file)
    file.write_bytes(b" " * 101)
    with pytest.raises(Damaged, match="larger than 100 bytes"):
        read_bytes(file, 100)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "nothing.json")


def test_no_flipped_bit_of_signed_json_says_anything_else(tmp_path):
    data = {"format": 2, "x": 6, "name": "é", "list": [1.5, None, True], "deep": {"a": {"b": -1}}}
    write_json(tmp_path / "good.json", data)
    assert read_signed(tmp_path / "good.json", required=True) == data
    raw = (tmp_path / "good.json").read_bytes()
    for bit in range(8 * len(raw)):
        broken = bytearray(raw)
        broken[bit // 8] ^= 1 << bit % 8
        (tmp_path / "bad.json").write_bytes(broken)
        try:
            assert read_signed(tmp_path / "bad.json", required=True) == data
        except Damaged as error:
            assert "\n" not in str(error)
    with pytest.raises(Damaged, match="checksum is missing"):
        checked(data, "it", required=True)
    assert checked(data, "it") == data == checked(signed(data), "it")
    assert {path.name for path in tmp_path.iterdir()} == {"good.json", "bad.json"}


def test_a_manifest_finds_what_is_missing_added_moved_or_changed(tmp_path):
    folder = tmp_path / "unit"
    (folder / "deep").mkdir(parents=True)
    (folder / "a").write_bytes(b"one")
    (folder / "deep" / "b").write_bytes(b"two")
    assert check_manifest(folder) is None
    write_manifest(folder, {"step": 3})
    (folder / ".DS_Store").write_bytes(b"what a system leaves behind")
    assert check_manifest(folder)["step"] == 3
    for break_it, mend in [
        (lambda: (folder / "a").write_bytes(b"onf"), lambda: (folder / "a").write_bytes(b"one")),
        (lambda: (folder / "a").write_bytes(b"on"), lambda: (folder / "a").write_bytes(b"one")),
        (lambda: (folder / "a").rename(tmp_path / "a"), lambda: (tmp_path / "a").rename(folder / "a")),
        (lambda: (folder / "deep/b").rename(folder / "c"), lambda: (folder / "c").rename(folder / "deep/b")),
        (lambda: (folder / "more").touch(), lambda: (folder / "more").unlink()),
    ]:
        break_it()
        with pytest.raises(Damaged):
            check_manifest(folder)
        mend()
        assert check_manifest(folder)
    (folder / "a").write_bytes(b"onf")
    assert check_manifest(folder, lambda name: name != "a"), "only what is asked for is read"


def test_a_changed_store_manifest_is_damage(tmp_path):
    source = SquareConfig(count=4, frames=6)
    write_store(tmp_path / "store", source.spec(), source.episodes())
    manifest = tmp_path / "store" / MANIFEST
    text = manifest.read_text()
    assert json.loads(text)["checksum"]
    for old, new in [('"fps": 10.0', '"fps": 11.0'), ('"up"', '"un"'), ('"chunk": 16', '"chunk": 65')]:
        assert text.count(old) >= 1
        manifest.write_text(text.replace(old, new))
        with pytest.raises(ReverieError, match="its checksum differs"):
            open_dataset(tmp_path / "store")
    for lengths in ("[6.5, 6.0, 6.0]", "[-6, 12, 12]", "[" * 3000):
        unsigned = re.sub(r',\s*"checksum": "[^"]*"', "", text)
        manifest.write_text(re.sub(r'"lengths": \[[^\]]*\]', f'"lengths": {lengths}', unsigned))
        with pytest.raises(ReverieError, match="damaged|at least 1 frame|whole numbers") as error:
            open_dataset(tmp_path / "store")
        one_line(error)


def test_reading_numpy_with_pickles_inside_runs_nothing(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(Damaged, match="does not write for arrays of numbers"):
        read_npz(zipped(tmp_path / "some.npz", {"a.npy": buffer.getvalue()}))
