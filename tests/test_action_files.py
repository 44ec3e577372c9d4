"""Action files beside videos: which action led to which frame, at any rate, in every form; and bad ones."""

import json
import logging
from itertools import pairwise

import numpy as np
import pytest
from filming import coded, config, expected, write

from reverie.actions import START, UNLABELLED, ActionSpace


def led_to(rows, shown):
    """The convention: of the actions taken at the frames in between, the most frequent, of equals the latest."""
    actions = [START]
    for before, now in pairwise(shown):
        between = rows[before : max(now, before + 1)]
        count = {action: between.count(action) for action in between}
        actions.append(max(reversed(between), key=count.__getitem__))
    return actions


@pytest.mark.parametrize(("rate", "fps"), [(30, 30), (30, 15), (60, 15), (24, 10), (8, 12), (30, 8)])
@pytest.mark.parametrize(
    "form", ["npy", "csv", "csv header", "csv frame", "csv time", "jsonl", "jsonl action", "jsonl time"]
)
def test_actions_follow_their_frames(tmp_path, rate, fps, form):
    rng = np.random.default_rng(3)
    rows = np.repeat(rng.integers(0, 7, 40), 3)[:70].tolist()
    path = write(tmp_path / "a.mp4", [coded(i) for i in range(70)], rate)
    if form == "npy":
        np.save(tmp_path / "a.npy", np.array(rows, np.int16))
    elif form == "csv":
        (tmp_path / "a.csv").write_text("\n".join(map(str, rows)) + "\n")
    elif form == "csv header":
        (tmp_path / "a.csv").write_text("action\n" + "\n".join(map(str, rows[:-1])))  # nothing follows the last frame
    elif form.startswith("csv"):
        head = form.split()[1]
        places = [i if head == "frame" else round(i / rate, 4) for i in range(70)]
        (tmp_path / "a.csv").write_text(
            f"{head}, action\n" + "\n".join(f"{p},{a}" for p, a in zip(places, rows, strict=True))
        )
    else:
        keys = form.split()[1:]
        lines = [
            a if not keys else {"action": a} | ({"time": i / rate, "other": "x"} if keys == ["time"] else {})
            for i, a in enumerate(rows)
        ]
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = config(path, fps=fps, frames=40)
    assert source.spec().actions == ActionSpace("discrete", max(rows) + 1)
    shown = expected(np.arange(70) / rate, rate, fps)
    wanted, found = led_to(rows, shown), []
    for episode in source.episodes():
        episode.validate(source.spec())
        assert episode.actions[0] == START
        assert episode.actions[1:].tolist() == wanted[len(found) + 1 : len(found) + len(episode.frames)]
        found += episode.actions.tolist()
    assert len(found) == len(wanted)


def test_actions_given_only_where_they_change_hold_until_the_next(tmp_path):
    path = write(tmp_path / "a.mp4", [coded(i) for i in range(30)], 10)
    (tmp_path / "a.csv").write_text("time,action\n0.5,2\n1.2,0\n")
    (episode,) = config(path).episodes()
    assert episode.actions.tolist() == [START] + [UNLABELLED] * 5 + [2] * 7 + [0] * 17


def test_videos_without_actions_beside_others_with_them_are_unlabelled(tmp_path, caplog):
    for name in "abcd":
        write(tmp_path / f"{name}.mp4", [coded(i) for i in range(30)], 10)
    np.save(tmp_path / "a.npy", np.full(30, 3))
    np.save(tmp_path / "c.npy", np.full(12, 5))  # wrong length
    (tmp_path / "d.csv").write_text("1\n2\nleft\n")
    source = config(tmp_path)
    with caplog.at_level(logging.WARNING):
        episodes = list(source.episodes())
    assert source.spec().actions.size == 4
    assert [set(episode.actions[1:].tolist()) for episode in episodes] == [
        {3},
        {UNLABELLED},
        {UNLABELLED},
        {UNLABELLED},
    ]
    assert "c.mp4 is used without actions: c.npy has 12 actions for 30 frames" in caplog.text
    assert "d.mp4 is used without actions: d.csv, row 2: 'left' is not a number" in caplog.text
    assert config(tmp_path, actions=False).spec().actions == ActionSpace()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b""),
        ("a.csv", b"\xff\xfe\x00garbage\x00"),
        ("a.csv", b"frame,action\n3,1\n2,1\n"),
        ("a.csv", b"frame,action\n" + b"x,1\n" * 30),
        ("a.jsonl", b'{"time": 0, "action": 1}\n' * 29 + b'{"time": "x", "action": 1}\n'),
        ("a.csv", b"time,action\nnan,1\n"),
        ("a.csv", b"0,1\n1,2\n"),
        ("a.csv", b"\n".join([b"1"] * 29 + [b"5000"])),
        ("a.csv", b"\n".join([b"1"] * 29 + [b"-1"])),
        ("a.csv", b"\n".join([b"1"] * 29 + [b"0.5"])),
        ("a.jsonl", b'{"action": 1}\n{"act": 2}\n'),
        ("a.jsonl", b'{"action": [1]}\n'),
        ("a.jsonl", b'{"time": {"s": 0}, "action": 1}\n{"time": {"s": 1}, "action": 1}\n' * 15),
        ("a.jsonl", b"{not json}\n"),
        ("a.jsonl", b"null\n" * 30),
        ("a.jsonl", b"1" * 400),
        ("a.npy", b"no array"),
        ("a.npy", b"PK\x03\x04 no archive"),
        (
            "a.npy",
            b"\x93NUMPY\x01\x00\x76\x00{'descr': '|O', 'fortran_order': False, 'shape': (30,), }".ljust(127) + b"\n",
        ),
    ],
)
def test_a_bad_action_file_costs_the_actions_not_the_video(tmp_path, caplog, name, content):
    write(tmp_path / "a.mp4", [coded(i) for i in range(30)], 10)
    (tmp_path / name).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        (episode,) = config(tmp_path).episodes()
    assert (episode.actions[1:] == UNLABELLED).all()
    assert f"a.mp4 is used without actions: {name}" in caplog.text


def test_floats_and_several_files_are_refused(tmp_path, caplog):
    write(tmp_path / "a.mp4", [coded(i) for i in range(10)], 10)
    np.save(tmp_path / "a.npy", np.full(10, 0.5))
    assert config(tmp_path).spec().actions.kind == "none" and list(config(tmp_path).episodes())
    (tmp_path / "a.csv").write_text("1\n" * 10)
    assert config(tmp_path).spec().actions.kind == "none" and list(config(tmp_path).episodes())
    assert "a.npy, row 0: 0.5 is not an action" in caplog.text and "has a.npy and a.csv beside it" in caplog.text
    (tmp_path / "a.npy").unlink()
    assert config(tmp_path).spec().actions.size == 2  # the second look sees that the folder changed


@pytest.mark.parametrize("text", [
    "frame;action\n{};{}", "frame\tactions\n{}\t{}", "act\n{1}", '{{"actions": {1}}}',
    '{{"action": {1}, "reward": NaN, "keys": []}}',
])  # fmt: skip
def test_columns_have_any_separator_and_the_usual_names(tmp_path, text):
    write(tmp_path / "a.mp4", [coded(i) for i in range(12)], 10)
    head, _, row = text.rpartition("\n")
    lines = [head] * bool(head) + [row.format(t, t % 5) for t in range(12)]
    (tmp_path / ("a.csv" if head else "a.jsonl")).write_text("\n".join(lines))
    (episode,) = config(tmp_path, fps=10.0, shortest=2).episodes()
    assert episode.actions[1:].tolist() == [t % 5 for t in range(11)]


VECTORS = {
    "csv": "key.left,key.fire\n" + "\n".join(f"{t % 2},{int(t > 4)}" for t in range(30)),
    "jsonl": "\n".join(json.dumps({"keys": ["left"] * (t % 2) + ["fire"] * (t > 4)}) for t in range(30)),
    "time": "time,key.left,key.fire\n" + "\n".join(f"{t / 10},{t % 2},{int(t > 4)}" for t in range(30)),
}


@pytest.mark.parametrize("form", VECTORS)
def test_keys_held_together(tmp_path, form):
    write(tmp_path / "a.mp4", [coded(i) for i in range(30)], 10)
    (tmp_path / f"a.{'jsonl' if form == 'jsonl' else 'csv'}").write_text(VECTORS[form])
    write(tmp_path / "b.mp4", [coded(i) for i in range(30)], 10)
    (tmp_path / "b.csv").write_text("key.jump,key.left\n" + "1,0\n" * 29)  # other keys, in another order
    source = config(tmp_path)
    first, second = source.episodes()
    names = source.spec().actions.names
    assert source.spec().actions.kind == "binary" and sorted(names) == ["fire", "jump", "left"]
    wanted = [{"left": t % 2, "fire": int(t > 4), "jump": 0} for t in range(29)]
    assert first.actions[1:].tolist() == [[held[name] for name in names] for held in wanted]
    assert second.actions[1:].tolist() == [[int(name == "jump") for name in names]] * 29


@pytest.mark.parametrize("form", ["csv", "jsonl", "npy", "npz"])
def test_vectors_of_numbers_are_averaged_where_frames_are_merged(tmp_path, form):
    write(tmp_path / "a.mp4", [coded(i) for i in range(30)], 10)
    rows = np.stack([np.arange(30) / 10, -np.arange(30) / 20], axis=1)
    if form == "csv":
        (tmp_path / "a.csv").write_text("action.a,action.b\n" + "\n".join(f"{x},{y}" for x, y in rows))
    elif form == "jsonl":
        (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"action": row.tolist()}) for row in rows))
    elif form == "npy":
        np.save(tmp_path / "a.npy", rows)
    else:
        np.savez(tmp_path / "a.npz", action=rows, frame=np.arange(30))
    (episode,) = config(tmp_path, fps=10.0).episodes()
    assert np.allclose(episode.actions[1:], rows[:-1])
    source = config(tmp_path, fps=5.0)
    (episode,) = source.episodes()
    assert source.spec().actions.kind == "continuous"
    assert np.allclose(episode.actions[1:], rows[:-2].reshape(14, 2, 2).mean(1))


def test_several_choices_at_once_and_a_wrong_table(tmp_path, caplog):
    write(tmp_path / "a.mp4", [coded(i) for i in range(30)], 10)
    rows = np.stack([np.arange(30) % 3, np.arange(30) % 5], axis=1)
    np.save(tmp_path / "a.npy", rows)
    (episode,) = config(tmp_path).episodes()
    assert config(tmp_path).spec().actions == ActionSpace("multi", 2, sizes=(3, 5))
    assert episode.actions[1:].tolist() == rows[:-1].tolist()
    (tmp_path / "a.npy").unlink()
    for text, why in [
        ("time,action.x\n1,2\n1,3\n", "row 1: 'time' is 1; it must ascend"),
        ("action.x,action.y\n1,2,3\n", "lines that are shorter or longer"),
        ("action.x,action.y\n1,2\n", "has 1 actions for 30 frames"),
        ("action.x,other\na,b\n", "holds no actions; name its columns"),
    ]:
        (tmp_path / "a.csv").write_text(text)
        with caplog.at_level(logging.WARNING):
            (episode,) = config(tmp_path).episodes()
        assert (episode.actions[1:] == UNLABELLED).all() and why in caplog.text, (why, caplog.text)
    (tmp_path / "a.csv").unlink()
    np.savez(tmp_path / "a.npz", **{"key.left": np.zeros(30), "key.fire": np.zeros(29)})
    assert config(tmp_path).spec().actions.kind == "none" and list(config(tmp_path).episodes())
    assert "the columns of its actions have different lengths: left, fire" in caplog.text
