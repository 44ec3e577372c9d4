"""What is held out comes from other sources than what is trained on, and numbers say of which split they are."""

import json
from dataclasses import replace

import numpy as np
import pytest

from reverie import cli
from reverie.actions import START, UNLABELLED, ActionSpace
from reverie.data.episode import Episode, Spec
from reverie.data.held_out import held_out, leak
from reverie.data.splits import BLOCK, FEW, divided
from reverie.data.store import MANIFEST, open_dataset, write_store
from reverie.errors import ReverieError

SPEC = Spec((16, 16, 3), ActionSpace(), 15.0, "videos")
PIECE = 62


def film(seed: int, frames: int) -> list[Episode]:
    """Pieces of one film: a camera moves slowly over a landscape of its own."""
    land = np.random.default_rng(seed).integers(0, 256, (16, 16 + frames // 8, 3), np.uint8)
    pictures = [land[:, step // 8 : step // 8 + 16] for step in range(frames)]
    shown = np.stack(pictures)
    return [
        Episode(
            part, np.array([START] + [UNLABELLED] * (len(part) - 1), np.int32), none, none > 0, source=f"{seed}.mp4"
        )
        for start in range(0, frames, PIECE)
        for part in [shown[start : start + PIECE]]
        for none in [np.zeros(len(part), np.float32)]
    ]


@pytest.mark.parametrize("films", [1, 2, FEW - 1, FEW, 6, 30])
@pytest.mark.parametrize("name", ["d", "d.npz"])
def test_no_held_out_frame_is_nearly_one_of_training(tmp_path, films, name):
    length = 400 if films < 6 else 70
    episodes = [piece for seed in range(films) for piece in film(seed, length)]
    write_store(tmp_path / name, SPEC, episodes)
    train, val = open_dataset(tmp_path / name, "train"), held_out(tmp_path / name)
    assert (train.split, val.split) == ("train", "val")
    assert leak(train, val) <= 0.02 and leak(train, train) == 1
    shares = int(val.lengths.sum()) / (films * length)
    assert 0.05 < shares <= 0.25 and int(train.lengths.sum()) >= 0.7 * films * length - 2
    assert val.lengths.max() >= BLOCK * 3 // 4
    if films >= FEW:
        assert not set(train.sources) & set(val.sources)  # pyright: ignore[reportAttributeAccessIssue]
    elif name == "d":
        first = np.array([val.read(i, 0, 1)["actions"][0] for i in range(len(val.lengths))])
        assert (first == START).all()


@pytest.mark.parametrize("name", ["d", "d.npz"])
@pytest.mark.parametrize("named", [True, False])
def test_copies_of_an_episode_are_on_one_side(tmp_path, name, named):
    """Whatever they are called: the same film under another name is not unseen."""
    for copies in (1, 2):  # of each of the last
        kinds = [0, 1, 2, 3, *[kind for kind in (4, 5, 6, 7, 8, 9) for _ in range(copies + 1)]]
        order = np.random.default_rng(copies).permutation(len(kinds))
        made = [replace(film(kinds[i], 60)[0], source=f"{i}.mp4" if named else "") for i in order]
        path = write_store(tmp_path / f"{copies}{name}", SPEC, made)
        train, val = open_dataset(path, "train"), open_dataset(path, "val")
        assert leak(train, val) == 0 and len(train.lengths) + len(val.lengths) == len(kinds)


def test_where_all_are_copies_there_is_a_division_all_the_same(tmp_path, caplog):
    path = write_store(tmp_path / "d", SPEC, [replace(film(0, 60)[0], source=f"{i}") for i in range(6)])
    assert leak(open_dataset(path), open_dataset(path, "val")) == 1
    assert "all episodes are copies of one" in caplog.text


@pytest.mark.parametrize("val", [0.1, 0.3])
def test_sources_stay_whole_and_shares_are_about_right(val):
    rng = np.random.default_rng(0)
    for _ in range(300):
        count = int(rng.integers(FEW, 40))
        sources = [f"{i}" for i in range(count) for _ in range(rng.integers(1, 6))]
        lengths = rng.integers(2, 200, len(sources)).tolist()
        pieces = divided(sources, lengths, val)
        assert [(p.episode, p.start, p.stop) for p in pieces] == [(i, 0, n) for i, n in enumerate(lengths)]
        held = {sources[p.episode] for p in pieces if p.split == "val"}
        assert held and held.isdisjoint(sources[p.episode] for p in pieces if p.split == "train")
        largest = max(sum(n for s, n in zip(sources, lengths, strict=True) if s == name) for name in set(sources))
        share = sum(p.stop - p.start for p in pieces if p.split == "val")
        assert share <= val * sum(lengths) + largest


def test_long_and_short_episodes_are_held_out_alike():
    """Where success ends an episode, a split by length would keep the successful ones from training."""
    lengths = np.random.default_rng(0).integers(2, 18, 4000)
    held = np.array([piece.split == "val" for piece in divided([""] * len(lengths), lengths, 0.1)])
    assert abs(held.mean() - 0.1) < 0.01 and abs(lengths[held].sum() / lengths.sum() - 0.1) < 0.005
    assert abs(lengths[held].mean() - lengths.mean()) < 3 * lengths.std() / held.sum() ** 0.5


def test_ends_of_few_sources_are_held_out_with_a_gap():
    rng = np.random.default_rng(1)
    for _ in range(300):
        sources = sorted(f"{s}" for s in rng.integers(0, FEW - 1, int(rng.integers(1, 30))))
        lengths = rng.integers(16, 144, len(sources)).tolist()
        pieces, at = divided(sources, lengths, 0.1), np.cumsum([0, *lengths])
        for name in set(sources):
            mine = [
                (p.split, at[p.episode] + p.start, at[p.episode] + p.stop) for p in pieces if sources[p.episode] == name
            ]
            assert [m[0] for m in mine] == sorted(m[0] for m in mine)  # train, then val
            train, val = ([m for m in mine if m[0] == split] for split in ("train", "val"))
            if train and val and len(set(sources)) < FEW and sum(m[2] - m[1] for m in mine) > 3 * BLOCK:
                assert val[0][1] - train[-1][2] >= BLOCK // 4


def test_episodes_whose_source_is_not_known_are_never_cut():
    for count in (1, 2, 4, 9, 12, 256):
        pieces = divided([""] * count, [300] * count, 0.1)
        expected = [i for i in range(count) if i == 1 or (i >= 20 and i % 10 == 0)]
        assert [p.episode for p in pieces if p.split == "val"] == expected  # as stores of earlier versions have it
        assert all((p.start, p.stop) == (0, 300) for p in pieces)


def test_damage_is_an_error_and_only_a_missing_split_is_replaced(tmp_path, capsys):
    path = write_store(tmp_path / "d", SPEC, [piece for seed in range(6) for piece in film(seed, 70)])
    assert held_out(path, 62).split == "val" and not capsys.readouterr().err
    assert held_out(path, 63).split == "train"
    assert "no episode in the split 'val'" in (said := capsys.readouterr().err) and "'train'" in said
    file = path / "val-00000.array_record"
    good = file.read_bytes()
    for damage in (lambda: file.write_bytes(good[:-50]), file.unlink, lambda: (path / MANIFEST).write_text("{")):
        damage()
        with pytest.raises(ReverieError):
            held_out(path)
    bare = write_store(tmp_path / "bare", SPEC, film(0, 70), val=0)
    assert held_out(bare).split == "train" and "has no split 'val'" in capsys.readouterr().err


def test_show_tells_the_leak_and_takes_a_store_without_held_out_episodes(tmp_path, capsys):
    for val, says in ((0.1, "val: 1 episodes"), (0.0, "train: 6 episodes")):
        path = write_store(tmp_path / f"{val}", SPEC, [film(seed, 60)[0] for seed in range(6)], val=val)
        assert cli.main(["data", "show", str(path)]) == 0
        out = capsys.readouterr().out
        assert says in out and ("leak: 0.0%" in out) == (val > 0)


def test_half_of_a_film_held_out_from_the_other_half_leaks(tmp_path):
    """The measure sees what a split by pieces lets through."""
    pieces = film(0, 400)
    path = write_store(tmp_path / "d", SPEC, {"train": pieces[::2], "val": pieces[1::2]})
    train, val = open_dataset(path), open_dataset(path, "val")
    assert leak(train, val) > 0.05
    assert leak(train, val, among=10) < leak(train, val), "of a large store, only some frames are read"
    manifest = json.loads((path / MANIFEST).read_text("utf-8"))
    assert set(manifest["splits"]) == {"train", "val"}
