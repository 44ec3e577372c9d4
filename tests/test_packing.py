"""Records are packed behind the source: in another thread, and large files by processes of their own."""

import json
import resource
import signal
import threading
import time

import numpy as np
import pytest

from reverie import cli
from reverie.data import filling, records
from reverie.data.behind import Behind
from reverie.data.episode import Episode, Spec
from reverie.data.sources.square import SquareConfig
from reverie.data.store import open_dataset, write_store
from reverie.data.writing import write_source
from reverie.errors import ReverieError

SQUARE = SquareConfig(count=7, frames=40)


@pytest.fixture(autouse=True)
def processes(monkeypatch):
    """Return the processes that pack; no thread and no process may outlive a write."""
    started, popen = [], records.subprocess.Popen

    def start(*rest, **more):
        started.append(popen(*rest, **more))
        return started[-1]

    monkeypatch.setattr(records.subprocess, "Popen", start)
    yield started
    assert not [thread for thread in threading.enumerate() if thread.name == "behind"]
    assert all(process.returncode is not None for process in started), "it was not waited for"


@pytest.fixture
def by_processes(monkeypatch, processes):
    """Have even the smallest file packed by a process; return the processes."""
    monkeypatch.setattr(records, "LARGE", 0)
    return processes


def files(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_processes_write_the_bytes_that_this_one_does(tmp_path, monkeypatch, by_processes):
    whole = write_source(tmp_path / "whole", SQUARE)
    assert len(by_processes) >= 3  # a piece, and the files of two splits
    with monkeypatch.context() as patch:
        patch.setattr(records.subprocess, "Popen", None)
        patch.setattr(records, "LARGE", 2**22)
        assert files(write_source(tmp_path / "again", SQUARE)) == files(whole)
    assert cli.main(["data", "subset", str(whole), str(tmp_path / "part"), "--episodes", "1:3"]) == 0
    part, source = open_dataset(tmp_path / "part"), open_dataset(whole)
    for own, episode in enumerate((1, 2)):
        found, expected = part.read(own, 0, 40), source.read(episode, 0, 40)
        assert found.keys() == expected.keys() and all((found[name] == expected[name]).all() for name in found)


def test_files_are_packed_side_by_side_and_grow(tmp_path, monkeypatch, by_processes):
    monkeypatch.setattr(filling, "SMALL", 40 * 32 * 32 * 3)  # of an episode or two
    folders, together = [], []
    for most in (1, 3):
        monkeypatch.setattr(filling, "SIDE_BY_SIDE", most)
        list_, ended = filling._SplitWriter._list, []

        def listed(self, list_=list_, ended=ended):
            ended.append(len(self.ending))
            list_(self)

        with monkeypatch.context() as patch:
            patch.setattr(filling._SplitWriter, "_list", listed)
            folders.append(write_source(tmp_path / str(most), SquareConfig(count=24, frames=40), val=0))
        together.append(max(ended))
    assert files(folders[0]) == files(folders[1])
    assert together == [1, 3]
    sizes = [
        file["records"] for file in json.loads((folders[0] / "manifest.json").read_text())["splits"]["train"]["files"]
    ]
    assert len(set(sizes[:4])) == 1 and sizes[4] > sizes[3]  # the fifth file is larger
    assert len(open_dataset(folders[0], checksums=True).lengths) == 24


def test_the_process_of_a_killed_writer_cannot_write_into_a_new_file(tmp_path):
    spec, episodes = SQUARE.spec(), list(SQUARE.episodes())
    (tmp_path / "part").mkdir()
    with (tmp_path / "part" / filling.file_name("train", 0)).open("wb") as left:
        filling.fill(
            tmp_path / "part", spec, (filling.entry_of("train", one, spec) for one in episodes), filling.About()
        )
        left.write(b"late" * 1000)
    assert (open_dataset(tmp_path / "part", checksums=True).read(3, 0, 40)["frames"] == episodes[3].frames).all()


@pytest.mark.parametrize("large", [0, 2**22])
def test_a_damaged_record_is_not_copied(tmp_path, monkeypatch, capsys, large):
    whole = write_source(tmp_path / "whole", SQUARE)
    file = whole / "train-00000.array_record"
    data = bytearray(file.read_bytes())
    data[2000] ^= 1
    file.write_bytes(data)
    monkeypatch.setattr(records, "LARGE", large)
    assert cli.main(["data", "subset", str(whole), str(tmp_path / "part")]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"of '{file}' cannot be read (" in said and not (tmp_path / "part").exists()


def test_a_full_disk_is_one_line(tmp_path, by_processes):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # no file may grow larger, as on a full disk
    try:
        with pytest.raises(ReverieError, match="is the disk full"):
            write_source(tmp_path / "out", SquareConfig(count=100, frames=20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert by_processes and not (tmp_path / "out").exists()


def test_a_process_that_is_killed_is_one_line(tmp_path, monkeypatch, by_processes):
    square = SquareConfig.episodes

    def killing(self, **rest):
        for number, episode in enumerate(square(self, **rest)):
            if number == 4:
                by_processes[-1].kill()
                by_processes[-1].wait()
            yield episode
            time.sleep(0.05 * (number < 4))  # so that the process has been started

    monkeypatch.setattr(SquareConfig, "episodes", killing)
    with pytest.raises(ReverieError, match=rf"ended with status -{signal.SIGKILL.value}\)"):
        write_source(tmp_path / "out", SQUARE)


def test_an_error_of_the_source_is_its_own(tmp_path, monkeypatch, by_processes):
    square = SquareConfig.episodes

    def failing(self, **rest):
        yield from list(square(self, **rest))[:3]
        raise ReverieError("the game has crashed.")

    with monkeypatch.context() as patch, pytest.raises(ReverieError, match=r"^the game has crashed.$"):
        patch.setattr(SquareConfig, "episodes", failing)
        write_source(tmp_path / "out", SQUARE)
    assert not (tmp_path / "out").exists()
    assert files(write_source(tmp_path / "out", SQUARE)) == files(write_source(tmp_path / "whole", SQUARE))


def test_calls_are_made_in_order_and_none_after_an_error():
    made = []
    with Behind(2) as behind:
        for number in range(20):
            behind.call(made.append, number)
    assert made == list(range(20))

    def fail():
        time.sleep(0.01)
        raise ValueError("one")

    for calls in (1, 3, 50):  # it is raised at the end, or by a call that would have waited
        with pytest.raises(ValueError, match="one"), Behind(2) as behind:
            for _ in range(calls):
                behind.call(fail)
                behind.call(made.append, -1)
    held = threading.Event()
    with pytest.raises(KeyError), Behind(5) as behind:
        behind.call(held.wait, 5)
        behind.call(made.append, -1)
        threading.Timer(0.05, held.set).start()
        raise KeyError
    assert made == list(range(20))


def test_rows_that_do_not_lie_in_order_are_written_as_they_are(tmp_path):
    frames = np.arange(20 * 8 * 8 * 3, dtype=np.uint8).reshape(20, 8, 8, 3)[:, ::-1, :, ::-1]
    episode = Episode(frames, SQUARE.spec().actions.unlabelled((20,)), np.zeros(20, np.float32), np.zeros(20, bool))
    episode.actions[0] = -1
    spec = Spec((8, 8, 3), SQUARE.spec().actions, 15.0, "rows")
    write_store(tmp_path / "out", spec, {"train": [episode]})
    assert (open_dataset(tmp_path / "out").read(0, 0, 20)["frames"] == frames).all()
