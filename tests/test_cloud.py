"""Stores in the cloud, with fsspec's file systems in memory and on this disk in place of a service."""

import json
import sys

import fsspec
import numpy as np
import pytest
from test_combining import episode_of, files, stored

from reverie import cli
from reverie.checksums import read_signed, signed
from reverie.data import cloud
from reverie.data.cloud import is_cloud, local_copy
from reverie.data.filling import MANIFEST
from reverie.data.sources.square import SquareConfig
from reverie.data.store import open_dataset
from reverie.data.writing import write_source
from reverie.errors import ReverieError


@pytest.fixture
def memory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


def held(system, root):
    return {path.rpartition("/")[2]: system.cat_file(path) for path in system.find(root)}


def test_an_import_is_uploaded_and_read_again(memory, tmp_path, capsys):
    flags = ["--count", "4", "--frames", "6"]
    assert cli.main(["data", "square", str(tmp_path / "here"), *flags]) == 0
    assert cli.main(["data", "square", "memory://bucket/there", *flags]) == 0
    assert held(memory, "/bucket/there") == files(tmp_path / "here")
    assert not list((tmp_path / "cache/reverie/outgoing").iterdir())
    assert cli.main(["data", "square", "memory://bucket/there", *flags]) == 2
    assert "'memory:///bucket/there' exists already" in capsys.readouterr().err
    assert cli.main(["data", "show", "memory://bucket/there"]) == 0
    said = capsys.readouterr()
    assert "train: 3 episodes" in said.out and said.err.count("fetching 2 files") == 1
    copy = local_copy("memory://bucket/there")
    assert files(copy) == files(tmp_path / "here") and "fetching" not in capsys.readouterr().err
    assert open_dataset(copy, "val").fingerprint == open_dataset(tmp_path / "here", "val").fingerprint


def test_stores_are_made_of_those_in_the_cloud_which_stay_as_they_are(memory, tmp_path, capsys):
    for name, seeds in (("a", [0, 1]), ("b", [2])):
        store = stored(tmp_path / name, [episode_of(seed) for seed in seeds])
        memory.put(str(store), f"/bucket/{name}", recursive=True)
    assert cli.main(["data", "merge", "memory://bucket/ab", "memory://bucket/a", str(tmp_path / "b")]) == 0
    assert cli.main(["data", "subset", "memory://bucket/ab", str(tmp_path / "part"), "--episodes", "1:3"]) == 0
    assert open_dataset(tmp_path / "part").sources == ["clip 1", "clip 2"]  # pyright: ignore
    assert cli.main(["data", "append", str(tmp_path / "part"), "memory://bucket/a"]) == 0
    assert open_dataset(tmp_path / "part").lengths.tolist() == [20, 20, 20]
    capsys.readouterr()
    for words in (
        ["append", "memory://bucket/a", str(tmp_path / "b")],
        ["doctor", "memory://bucket/a", "--quarantine"],
    ):
        assert cli.main(["data", *words]) == 2
        assert "is in the cloud, where nothing is changed" in capsys.readouterr().err
    address = f"file://{tmp_path}/part"
    assert np.array_equal(open_dataset(local_copy(address)).read(0, 0, 4)["frames"], episode_of(1).frames[:4])


def test_a_killed_upload_goes_on_and_nothing_half_is_seen(memory, tmp_path, monkeypatch, capsys):
    put, calls = type(memory).put_file, []

    def stopping(self, local, there, *rest, **more):
        calls.append(there)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return put(self, local, there, *rest, **more)

    monkeypatch.setattr(type(memory), "put_file", stopping)
    words = ["data", "square", "memory://bucket/there", "--count", "4", "--frames", "6"]
    source = SquareConfig(count=4, frames=6)
    with pytest.raises(KeyboardInterrupt):
        cloud.written("memory://bucket/there", "work", lambda path: write_source(path, source))
    with pytest.raises(ReverieError, match="there is no dataset at"):
        local_copy("memory://bucket/there")
    assert cli.main(["learn", "memory://bucket/there"]) == 2
    assert "there is no dataset at" in capsys.readouterr().err
    cloud.written("memory://bucket/there", "work", None)  # pyright: ignore  it is made already
    assert len(open_dataset(local_copy("memory://bucket/there")).lengths) == 3
    assert cli.main(words) == 2


def test_what_the_cloud_holds_is_not_trusted(memory, tmp_path, monkeypatch):
    store = stored(tmp_path / "a", [episode_of(0)])
    memory.put(str(store), "/bucket/a", recursive=True)
    manifest = read_signed(store / MANIFEST)
    name = "train-00000.array_record"
    good = {file: memory.cat_file(f"/bucket/a/{file}") for file in (name, MANIFEST)}

    def with_split(split):
        return json.dumps(signed(manifest | {"splits": {split: manifest["splits"]["train"]}})).encode()

    cases = [
        (MANIFEST, b"{}", "manifest of 'memory:///bucket/a' is damaged"),
        (MANIFEST, with_split("../../evil"), "is damaged"),
        (name, good[name][:-1], "size or checksum differs"),
        (name, good[name][:-1] + b"x", "size or checksum differs"),
        (name, good[name] + bytes(2**23), None),  # no more is fetched than the manifest says
    ]
    for file, content, message in cases:
        memory.pipe_file(f"/bucket/a/{file}", content)
        if message:
            with pytest.raises(ReverieError, match=message) as error:
                local_copy("memory://bucket/a")
            assert "\n" not in str(error.value)
        else:
            assert files(local_copy("memory://bucket/a")) == files(store)
        memory.pipe_file(f"/bucket/a/{file}", good[file])
    monkeypatch.setattr(cloud, "MANIFEST_BYTES", 100)
    with pytest.raises(ReverieError, match="damaged"):
        local_copy("memory://bucket/a")


def test_addresses(monkeypatch):
    assert is_cloud("gs://a/b") and is_cloud("s3:/a/b") and not is_cloud("data/a") and not is_cloud("C:/data")
    assert not is_cloud("https://a/b") and local_copy("data/a").parts == ("data", "a")
    for address, package in (("gs://bucket/a", "gcsfs"), ("s3://bucket/a", "s3fs")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ReverieError, match=r"package that is missing.*pip install 'reverie-worlds\[cloud\]'"):
            local_copy(address)
