"""Apache Beam writes the store that one process would have written.

Needs the extra ``beam``, in its own environment."""

import importlib.util

import pytest

from reverie.cli import main
from reverie.data.beam import write_by_beam
from reverie.data.sources.square import SquareConfig
from reverie.data.writing import write_source
from reverie.errors import ReverieError

SQUARE = SquareConfig(count=6, frames=18)


def test_parts_of_beams_workers_become_the_store_of_one_process(tmp_path):
    pytest.importorskip("apache_beam", reason="needs the extra 'beam'")
    one = write_source(tmp_path / "one", SQUARE, val=0.3)
    many = write_by_beam(tmp_path / "many", SQUARE, "3 --runner=DirectRunner", val=0.3)
    names = sorted(file.name for file in one.iterdir())
    assert names == sorted(file.name for file in many.iterdir()) and len(list(tmp_path.iterdir())) == 2
    assert all((one / name).read_bytes() == (many / name).read_bytes() for name in names)
    with pytest.raises(ReverieError, match="there are no episodes to write"):
        write_by_beam(tmp_path / "few", SquareConfig(count=1, frames=18), "3 --runner=DirectRunner")


@pytest.mark.parametrize(
    "flags, said",
    [(["--beam", "1"], "a number of parts of 2 or more"), (["--beam", "3", "--shard", "0/2"], "it takes no --shard")],
)
def test_what_beam_cannot_do_is_one_line(tmp_path, capsys, flags, said):
    assert main(["data", "square", str(tmp_path / "out"), *flags]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is not None, reason="it is installed")
def test_without_beam_the_extra_is_named(tmp_path, capsys):
    assert main(["data", "square", str(tmp_path / "out"), "--beam", "2"]) == 2
    assert "pip install 'reverie-worlds[beam]'" in capsys.readouterr().err
