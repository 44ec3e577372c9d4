"""Small datasets that the formats' own packages wrote, where a checkout lies beside them: all comes out as they say.

Each folder has an expected.json. Frames of lossy formats bear their number in the 8 blocks of their first row.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from reverie.data.sources import source_at, sources
from reverie.data.sources.vpt import KEYS, camera_bins
from reverie.data.store import open_dataset
from reverie.data.writing import write_source

PLACES = [folder / "shared" / "cases" / "formats" for folder in Path(__file__).resolve().parents]
CASES = next((place for place in PLACES if place.is_dir()), None)
NAMES = {
    "lerobot": "lerobot",
    "minari": "minari",
    "robomimic": "hdf5",
    "d4rl": "hdf5",
    "dreamerv3": "dreamerv3",
    "jasmine": "jasmine",
    "rlds": "rlds",
    "vpt": "vpt",
    "webdataset": "webdataset",
    "vizdoom": "arrays",
    "crafter": "arrays",
    "npz": "arrays",
    "atari": "images",
}
FOLDERS = (
    [] if CASES is None else sorted(path.parent.relative_to(CASES).as_posix() for path in CASES.rglob("expected.json"))
)


def number(frame):
    """The number that a frame bears."""
    scale = frame.shape[0] // 64 if frame.shape[0] > 100 else 1
    scale = 4 if frame.shape[:2] == (360, 640) else scale
    bits = frame[4 * scale, 4 * scale : 68 * scale : 8 * scale].mean(-1) > 120
    return int("".join("1" if bit else "0" for bit in bits), 2)


@pytest.mark.skipif(CASES is None, reason="no datasets of other programs beside this checkout")
@pytest.mark.parametrize("folder", FOLDERS or ["-"])
def test_what_others_wrote_comes_out_as_they_say(tmp_path, folder):
    place = CASES / folder
    expected = json.loads((place / "expected.json").read_text())
    source = source_at(place)
    assert source == sources()[NAMES[folder.partition("/")[0]]](path=str(place))
    dataset = open_dataset(write_source(tmp_path / "store", source, val=0))
    space, actions = dataset.spec.actions, expected["actions"]
    assert list(dataset.spec.frame) == expected["frame_HWC"] and space.kind == actions["kind"]
    assert dataset.spec.fps == (expected["fps"] or 15)
    if "low" in actions:
        assert (list(space.low), list(space.high)) == (actions["low"], actions["high"])
    assert dataset.lengths.tolist() == [episode["length"] for episode in expected["episodes"]]
    for index, episode in enumerate(expected["episodes"]):
        window = dataset.read(index, 0, episode["length"])
        frames, found = window["frames"], window["actions"]
        if "frames_sha256" in episode:
            assert hashlib.sha256(np.ascontiguousarray(frames)).hexdigest() == episode["frames_sha256"]
        else:
            assert [number(frame) for frame in frames] == list(range(len(frames)))
        if actions["kind"] == "multi":
            for action, want in zip(found[1:], episode["actions"][1:], strict=True):
                assert sorted(key for key, held in zip(KEYS, action, strict=False) if held) == want["held"]
                assert action[-1] == camera_bins(*want["camera_deg"])
        else:
            wanted = zip(found[1:5], episode["actions_first5"][1:], strict=True)
            assert all(np.allclose(action, want, atol=1e-4) for action, want in wanted)
            assert np.allclose(found[-1], episode["action_last"], atol=1e-4)
        rewards = {str(t): round(float(reward), 4) for t, reward in enumerate(window["rewards"]) if reward}
        assert rewards == {t: round(reward, 4) for t, reward in episode["rewards_nonzero"].items()}
        assert np.flatnonzero(window["ends"]).tolist() == episode["ends"]
        assert "task" not in episode or dataset.tasks[index] == episode["task"]
