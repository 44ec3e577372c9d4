"""VPT's recordings of Minecraft as a store: keys, the camera's bins, and lines that cannot be read."""

import json

from filming import coded, write
from test_sources_records import actions, numbers

from reverie.data.sources import recordings
from reverie.data.sources.vpt import KEYS, camera_bins
from reverie.play.buttons import rest


def line(**more):
    keys = [f"key.keyboard.{key}" for key in more.pop("keys", ())]
    mouse = {"dx": 0.0, "dy": 0.0, "buttons": [], "newButtons": []} | more.pop("mouse", {})
    return json.dumps({"mouse": mouse, "keyboard": {"keys": keys}, "hotbar": 0, "isGuiOpen": False} | more)


def test_vpts_keys_and_camera(tmp_path, store, caplog):
    root = tmp_path / "data" / "10.0"
    root.mkdir(parents=True)
    (tmp_path / "index.json").write_text(json.dumps({"basedir": "x", "relpaths": ["data/10.0/a.mp4"]}))
    name = "cheeky-setter-0001-20220420-092639"
    write(root / f"{name}.mp4", [coded(t) for t in range(8)], 20)
    (root / f"{name}-options.json").write_text("{}")
    lines = [
        line(keys=["w", "f3"], mouse={"buttons": [0], "newButtons": [0]}),  # attack hangs from the start
        line(keys=["w"], mouse={"dx": 10.0, "dy": -4.0, "buttons": [0]}),
        line(mouse={"buttons": [0], "newButtons": [0]}),
        json.dumps({"mouse": None, "keyboard": None, "hotbar": 3}),
        "{ broken",
        line(keys=["left.shift", "1"], hotbar=3),
    ]
    (root / f"{name}.jsonl").write_text("\n".join(lines))
    write(root / "b.mp4", [coded(t) for t in range(4)], 20)
    found = store("vpt", tmp_path)
    assert numbers(found) == [list(range(4)), list(range(8))] and found.spec.fps == 20
    assert found.sources == ["b", "cheeky-setter-0001"]
    rows, space = actions(found, 1), found.spec.actions
    held = [sorted(key for key, on in zip(KEYS, row, strict=False) if on == 1) for row in rows]
    assert held[:4] == [["forward"], ["forward"], ["attack"], ["hotbar.4"]] and held[5] == ["hotbar.1", "sneak"]
    assert rows[:3, -1].tolist() == [60, camera_bins(-0.6, 1.5), 60]
    assert space.is_unlabelled(rows).tolist() == [False] * 4 + [True, False, True]
    assert space.is_unlabelled(actions(found, 0)).all()
    assert rest(space)[-1] == 60 and space.sizes == (2,) * 23 + (121,)
    assert "1 of 6 lines cannot be read" in caplog.text and "6 lines for 8 frames" in caplog.text


def test_lines_missing_in_the_middle_leave_the_others_at_their_frames(tmp_path, store, caplog):
    write(tmp_path / "a.mp4", [coded(t) for t in range(8)], 20)
    lines = [line(keys=["w"] if tick % 3 == 0 else [], tick=tick + 100, chat="\u2028") for tick in (0, 1, 2, 4, 6, 7)]
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines).replace("\\u2028", "\u2028") + "\n\n", "utf-8")
    found = store("vpt", tmp_path)
    forward = actions(found, 0)[:, KEYS.index("forward")]
    assert forward.tolist() == [1, 0, 0, -2, 0, -2, 1] and "6 lines for 8 frames, placed by their ticks" in caplog.text


def test_a_long_recording_lies_in_a_file_and_reads_the_same(tmp_path, store, monkeypatch):
    write(tmp_path / "a.mp4", [coded(t) for t in range(8)], 20)
    (tmp_path / "a.jsonl").write_text("\n".join(line() for _ in range(8)))
    memory = store("vpt", tmp_path / "a.mp4")
    monkeypatch.setattr(recordings, "LARGE", 1)
    file = store("vpt", tmp_path / "a.mp4")
    assert memory.lengths.tolist() == file.lengths.tolist() == [8]
    assert (memory.read(0, 0, 8)["frames"] == file.read(0, 0, 8)["frames"]).all()


def test_the_cameras_bins_are_those_of_a_mu_law():
    assert [camera_bins(0, yaw) - 55 for yaw in (-90, -10, -1, -0.2, 0, 0.2, 0.5, 1.0, 3.2, 10, 90)] == [
        *(0, 0, 4, 5, 5, 5, 6, 6, 8, 10, 10)
    ]
    assert camera_bins(-10, -10) == 0 and camera_bins(10, 10) == 120 and camera_bins(0, 0) == 60
