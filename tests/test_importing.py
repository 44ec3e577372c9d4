"""A killed import goes on from where it was, and its store is that of one without a kill, to the byte."""

import random
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from foreign import frames, taken

from reverie import cli
from reverie.data import importing, writing
from reverie.data.combining import merge
from reverie.data.sources.arrays import ArraysConfig
from reverie.data.sources.square import SquareConfig
from reverie.data.writing import write_source
from reverie.errors import ReverieError

SQUARE = SquareConfig(count=7, frames=4)


def files(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture
def recordings(tmp_path):
    """Ten recordings of one to three episodes each; the third and the eighth are damaged."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for number in range(10):
        lengths = [5, 4, 6][: number % 3 + 1]
        ends = np.zeros(sum(lengths), bool)
        ends[np.cumsum(lengths) - 1] = True
        image = np.concatenate([frames(length, number) for length in lengths])
        np.savez(folder / f"{number}.npz", image=image, action=taken(len(image)), terminal=ends)
    for number in (2, 7):
        file = folder / f"{number}.npz"
        np.savez(file, image=np.zeros((6, 16, 24, 3), np.uint8), action=taken(6))
        data = bytearray(file.read_bytes())
        data[data.index(b"\x93NUMPY") + 3000] ^= 1  # of a picture: the header is sound, the checksum is not
        file.write_bytes(data)
    return folder


@dataclass(frozen=True)
class Foreign:
    """A source of another package, which cannot be divided."""

    def spec(self):
        return SQUARE.spec()

    def episodes(self):
        yield from SQUARE.episodes()


@pytest.fixture
def interrupted(monkeypatch):
    """Write a source to a store, and stop after each episode once; return how often each thing was begun."""

    def write(out, source, **flags):
        monkeypatch.setattr(importing, "SECONDS", 0.0)
        monkeypatch.setattr(importing, "SHARE", 0.0)
        fill, begun = importing.fill, []

        class Share(importing.Share):
            def of(self, count):
                for index in super().of(count):
                    begun.append(index)
                    yield index

        def stopping(folder, *rest, **more):
            fill(folder, *rest, **more)
            if folder.name not in seen:
                seen.add(folder.name)
                if random.Random(folder.name).random() < 0.5:  # else the piece is complete, and noted
                    raise KeyboardInterrupt
                stop.append(folder)

        def noted(path, data):
            note(path, data)
            if stop:
                stop.clear()
                raise KeyboardInterrupt

        note, seen, stop = importing.write_json, set(), []
        for name, value in (("Share", Share), ("fill", stopping), ("write_json", noted)):
            monkeypatch.setattr(importing, name, value)
        for _ in range(100):
            try:
                write_source(out, source, **flags)
            except KeyboardInterrupt:
                assert not out.exists()
                continue
            monkeypatch.undo()
            return begun
        raise AssertionError("it never ends")

    return write


@pytest.mark.parametrize("flags", [{}, {"val": 0.0}, {"shard": (1, 2)}])
def test_an_import_that_is_stopped_after_every_episode_writes_the_same_bytes(
    tmp_path, recordings, interrupted, flags, capsys
):
    for name, source in (("files", ArraysConfig(path=str(recordings))), ("square", SQUARE)):
        whole = write_source(tmp_path / name, source, **flags)
        capsys.readouterr()
        begun = interrupted(tmp_path / f"{name}-again", source, **flags)
        assert files(tmp_path / f"{name}-again") == files(whole)
        # at most a piece is lost: a recording, and a damaged one before it
        assert len(begun) > 7 and all(later >= sooner - 2 for sooner, later in pairwise(begun))
        said = capsys.readouterr().err
        if name == "square":
            assert f"continues from episode 3 of {4 if 'shard' in flags else 7}\n" in said
        elif not flags:
            assert "continues from episode 10\n" in said
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_source_that_cannot_be_divided_goes_on_too(tmp_path, interrupted, monkeypatch):
    monkeypatch.setattr(writing, "config", SimpleNamespace(to_json=str))  # its class is not one of ours
    whole = write_source(tmp_path / "whole", Foreign())
    interrupted(tmp_path / "again", Foreign())
    assert files(tmp_path / "again") == files(whole)
    with pytest.raises(ReverieError, match="Foreign cannot be divided"):
        write_source(tmp_path / "no", Foreign(), shard=(0, 2))
    assert cli.main(["data", "mixture", str(tmp_path / "no"), "--stores", str(whole), "--shard", "0/2"]) == 2


def test_what_another_import_left_is_not_gone_on_with(tmp_path, recordings, monkeypatch, capsys):
    monkeypatch.setattr(importing, "SECONDS", 0.0)
    monkeypatch.setattr(importing, "SHARE", 0.0)
    out, source = tmp_path / "out", ArraysConfig(path=str(recordings))
    expected = files(write_source(tmp_path / "expected", SQUARE))

    def stopped(source, pieces=3):
        fill = importing.fill

        def stopping(folder, *rest, **more):
            if folder.name == f"{pieces:05d}":
                raise KeyboardInterrupt
            fill(folder, *rest, **more)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(importing, "fill", stopping)
            write_source(out, source)
        capsys.readouterr()

    anew = f"'{tmp_path / '.out.import'}' {{}}: this one starts over\n"
    stopped(SquareConfig(count=8, frames=4))
    write_source(out, SQUARE)
    assert files(out) == expected and anew.format("is of other flags or files") in capsys.readouterr().err
    for file in out.iterdir():
        file.unlink()
    stopped(source)
    (recordings / "9.npz").touch()
    stopped(source)  # of other files, so it begins again ...
    (tmp_path / ".out.import" / "progress.json").write_text("{}")
    stopped(source)  # ... and here as well
    piece = next((tmp_path / ".out.import" / "00001").glob("*.array_record"))
    piece.write_bytes(piece.read_bytes()[::-1])
    write_source(out, source)
    assert anew.format("is damaged") in capsys.readouterr().err
    for file in out.iterdir():
        file.unlink()
    expected = files(write_source(tmp_path / "again", source))
    write_source(out, source)
    assert files(out) == expected
    assert not (tmp_path / ".out.import").exists()


def test_an_import_that_is_stopped_after_its_last_episode_reads_nothing_again(tmp_path, recordings, monkeypatch):
    source = ArraysConfig(path=str(recordings / "4.npz"))  # of one recording: what has gone before does not count
    expected = files(write_source(tmp_path / "expected", source))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writing, "fill", Mock(side_effect=KeyboardInterrupt))
        write_source(tmp_path / "out", source)
    with monkeypatch.context() as patch:
        patch.setattr(importing, "fill", None)
        assert files(write_source(tmp_path / "out", source, val=0.0)) != expected
    with pytest.raises(ReverieError, match="holds no named splits"):
        write_source(tmp_path / "one.npz", SQUARE, shard=(0, 2))


KILLED = """
import sys, time
from reverie.data import importing, records
from reverie.data.writing import write_source
importing.SECONDS = importing.SHARE = 0.0
records.LARGE = 0  # every file is packed by a process of its own
piece = importing._piece
def slow(*rest):
    time.sleep(0.02)
    return piece(*rest)
importing._piece = slow
exec(f"from {sys.argv[1]} import *")
write_source("out", eval(sys.argv[2]))
"""


def killed_until_done(folder, rng, kills, source):
    """Run an import, and kill it so often at random instants; return what its last process said."""
    command = [sys.executable, "-c", KILLED, type(source).__module__, repr(source)]
    for left in range(kills, -1, -1):
        process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        if left:
            start = len(list(folder.glob(".out.import/0*")))
            while len(list(folder.glob(".out.import/0*"))) <= start + 1 and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            time.sleep(rng.random() * 0.3)
            process.kill()
        said = process.communicate()[1]
        if (folder / "out").exists():
            return said
    raise AssertionError(f"it did not end: {said}")


def test_an_import_that_is_killed_at_random_writes_the_same_bytes(tmp_path):
    said = killed_until_done(tmp_path, random.Random(0), 1, SquareConfig(count=30, frames=6))
    whole = write_source(tmp_path / "whole", SquareConfig(count=30, frames=6))
    assert files(tmp_path / "out") == files(whole) and "continues from episode" in said and "of 30\n" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_parts_and_the_whole_of_an_array_job_may_be_interrupted(tmp_path, interrupted):
    whole = write_source(tmp_path / "whole", SQUARE)
    for part in range(2):
        interrupted(tmp_path / f"part{part}", SQUARE, shard=(part, 2))
    merge(tmp_path / "merged", [tmp_path / "part0", tmp_path / "part1"])
    assert files(tmp_path / "merged") == files(whole)
