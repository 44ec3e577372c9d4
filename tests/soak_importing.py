"""An import that is killed a dozen times at random instants writes the store of one without a kill.

``make soak TEST_ARGS="-k soak_importing"``.
"""

import random

import numpy as np
import pytest
from filming import coded, write
from test_importing import files, killed_until_done

from reverie.data.sources.square import SquareConfig
from reverie.data.sources.videos import VideosConfig
from reverie.data.writing import write_source

KILLS = 12


@pytest.mark.soak
@pytest.mark.parametrize("name", ["square", "videos"])
def test_soak_importing(tmp_path, monkeypatch, name):
    source = SquareConfig(count=100, frames=8)
    if name == "videos":
        (tmp_path / "clips").mkdir()
        for number in range(12):
            write(tmp_path / "clips" / f"{number}.mp4", [coded(t) for t in range(60)], 20)
            np.save(tmp_path / "clips" / f"{number}.npy", np.arange(60) % 5)
        (tmp_path / "clips" / "5.mp4").write_bytes(b"no video")
        source = VideosConfig(path="clips", frames=32, size=(32, 32), cuts=0.0)
    said = killed_until_done(tmp_path, random.Random(0), KILLS, source)
    monkeypatch.chdir(tmp_path)
    write_source("whole", source)
    assert files(tmp_path / "out") == files(tmp_path / "whole") and "continues from episode" in said
