"""The atlas of a world's actions, and names that a person gives them: they are on its buttons, and travel with it."""

from pathlib import Path

import numpy as np
import pytest
from golden import unpack

from reverie import cli
from reverie.actions import ActionSpace
from reverie.catalogue import shipped
from reverie.checksums import write_json
from reverie.errors import ReverieError
from reverie.evaluation import atlas
from reverie.training.checkpoint import load
from reverie.training.export import export
from reverie.world_folder import NAMES, initial_frames, name_actions, named_actions


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny world of latent actions, with its data."""
    return unpack(tmp_path_factory.mktemp("atlas") / "tiny")


def test_every_action_is_shown_with_what_it_goes_with(tiny, capsys, monkeypatch):
    world = load(tiny)
    space = world.config.actions
    assert space.kind == "latent"
    moments = atlas._moments(world, tiny, 6)
    monkeypatch.setattr(atlas, "_moments", lambda *_: moments)  # computed once
    assert cli.main(["atlas", str(tiny), "--name", "1=jump", "--clips", "6"]) == 0
    assert capsys.readouterr().out.strip() == str(tiny / "atlas.html")
    page = (tiny / "atlas.html").read_text("utf8")
    shares = np.bincount(moments.codes, minlength=space.size) / len(moments.codes)
    assert f"{len(moments.codes)} moments" in page and "<h2>1: jump</h2>" in page
    for code, share in enumerate(shares):
        assert f"<h2>{code + 1}: " in page and (f">{share:.1%}<" in page) == bool(share)
    assert page.count("data:image/png") == int((shares > 0).sum())
    assert page.index(f"<h2>{shares.argmax() + 1}: ") == page.index("<h2>"), "the most frequent comes first"


def test_a_world_of_recorded_actions_has_one_too(tmp_path):
    world = shipped()["platformer"]
    page = atlas.write_atlas(world, out=tmp_path).read_text("utf8")
    assert all(f": {name}</h2>" in page for name in ("stay", "left", "right", "jump"))
    assert "recorded actions" not in page and "The recorded action follows" not in page
    found, starts = atlas._moments(load(world), world, 64), initial_frames(world)
    assert (found.after == np.concatenate([frames[1:] for frames, _ in starts])).all()
    assert (found.codes == np.concatenate([np.asarray(actions)[1:] for _, actions in starts])).all(), "that led there"


def test_a_map_from_a_hundred_labels_is_as_right_as_the_codes_are(tiny):
    rng, count = np.random.default_rng(0), 4000
    recorded, frames = rng.integers(4, size=count), np.zeros((count, 1, 1, 3), np.uint8)
    noisy = np.where(rng.random(count) < 0.8, (recorded + 1) % 4, rng.integers(4, size=count))
    for codes, expected in ((noisy, 0.85), (rng.integers(4, size=count), 0.25)):
        found = atlas.mapped(atlas.Moments(frames, frames, codes, recorded, np.arange(count) // 8))
        assert found is not None
        right, (low, high) = found
        assert low <= expected + 0.01 and expected - 0.03 <= high and low < right < high and high - low < 0.06
    few = atlas.Moments(frames, frames, noisy, recorded, np.arange(count))
    assert atlas.mapped(atlas.Moments(*(array[:199] for array in few))) is None


def test_names_are_on_the_buttons_and_travel(tiny, tmp_path):
    space = load(tiny).config.actions
    name_actions(space, tiny, {0: "jump", 1: "left"})
    assert named_actions(space, tiny).names[:2] == ("jump", "left")
    name_actions(space, tiny, {0: "hop", 1: ""})
    found = named_actions(space, tiny)
    assert found.names[0] == "hop" and found.names[1] != "left" and len(found.names) == space.size
    out = export(tiny, tmp_path / "out")
    assert named_actions(space, out).names == found.names
    for names, why in [({space.size: "x"}, f"they count from 1 to {space.size}"), ({0: "x" * 41}, "up to 40 letters"),
                       ({0: "a\nb"}, "on one line")]:  # fmt: skip
        with pytest.raises(ReverieError, match=why):
            name_actions(space, tiny, names)
    with pytest.raises(ReverieError, match="its actions were recorded"):
        name_actions(ActionSpace("discrete", 4), tiny, {0: "x"})
    for damaged in ({"names": {"0": 3, "1": "x" * 99}}, {"names": [1]}, {"names": {"a": "b"}}, {}):
        write_json(tiny / NAMES, damaged)
        assert named_actions(space, tiny).names[0] != "hop"
    (tiny / NAMES).unlink()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--name", "jump"], "--name takes NUMBER=NAME, such as 3=jump, not 'jump'"),
        (["--name", "99=jump"], "has no latent action 99 to name"),
    ],
)
def test_wrong_names_are_one_line(tiny, words, why, capsys):
    assert cli.main(["atlas", str(tiny), *words]) == 2
    err = capsys.readouterr().err
    assert why in err and err.count("\n") == 1 and not Path(tiny / NAMES).exists()
