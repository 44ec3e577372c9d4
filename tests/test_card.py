"""Cards and pages of several worlds: every fact is the folder's, and what is not there is not made up."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from golden import unpack
from PIL import Image

from reverie import cli
from reverie.card import UNKNOWN, write_card
from reverie.catalogue import shipped
from reverie.checksums import read_signed, write_json
from reverie.errors import ReverieError
from reverie.evaluation.meaning import HEADLINES, rows
from reverie.side_by_side import side_by_side
from reverie.training.export import export
from reverie.training.record import read_record, versions, write_record

SHIPPED = shipped()["platformer"]
EVIL = "a | <script>alert(1)</script> [x](http://example.com) `b`\n# c"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny world with an evaluation."""
    world = unpack(tmp_path_factory.mktemp("card") / "tiny")
    numbers = read_signed(SHIPPED / "eval.json")
    write_json(world / "eval.json", numbers | {"dataset": "tiny", "fingerprint": "0", "delta_psnr": [0.25] * 16})
    return world


def facts(text: str) -> dict[str, str]:
    rows = re.findall(r"^\| ([^|]+) \| (.+) \|$", text, re.MULTILINE)
    return {name: re.sub(r"\\(.)", r"\1", value) for name, value in rows}


def test_the_card_of_a_world_that_ships(tmp_path, capsys):
    assert cli.main(["card", "platformer", "--out", "out"]) == 0
    assert "card.html" in capsys.readouterr().out
    text = Path("out/card.md").read_text("utf8")
    found, record = facts(text), read_record(SHIPPED / "dynamics")
    assert text.startswith("---\nlicense: apache-2.0\n")
    assert (
        found["licence of the data"] == "Apache-2.0"
        and found["fingerprint"] == read_record(SHIPPED / "tokenizer").fingerprint
    )
    assert found["hash of its source"] == record.versions["code"] and found["JAX"] == record.versions["jax"]
    assert found["trained on"] == UNKNOWN and found["amount"] == UNKNOWN, "it was made before this was recorded"
    assert found["dynamics"] == "338 k trained weights, 8000 steps of 8 x 4 frames, 30.5 TFLOP, time not recorded"
    numbers = read_signed(SHIPPED / "eval.json")
    low, high = numbers["psnr_ci"][-1]
    assert f"{numbers['psnr'][-1]:.1f} | {low:.1f} .. {high:.1f}" in found["psnr"]
    assert "Stays whole for 1000 frames" in text
    with Image.open("out/card/starts.png") as starts:
        assert starts.size[0] > 300 and "](card/starts.png)" in text
    assert not list(SHIPPED.glob("card*"))


def test_texts_of_a_run_are_no_markup(tmp_path):
    tiny = Path(shutil.copytree(SHIPPED, tmp_path / "world"))
    noted = read_signed(tiny / "world.json")
    write_json(tiny / "world.json", noted | {"licence": EVIL, "data_licence": EVIL})
    (tiny / "eval.json").unlink()
    text = write_card(tiny).read_text("utf8")
    assert "license:" not in text and "not measured" in text
    for line in text.splitlines():
        if "script" in line:
            assert r"a \| \<script\>alert(1)\</script\> \[x\](http://example.com) \`b\` \# c" in line
    page = (tiny / "card.html").read_text("utf8")
    assert "<script>" not in page and "&lt;script&gt;" in page and 'src="data:image/' in page
    with pytest.raises(ReverieError, match="nothing at"):
        write_card(tiny / "no")


def test_a_run_says_what_trained_it_also_when_exported(tiny, tmp_path):
    record = read_record(tiny / "dynamics")
    assert set(versions()) == {"reverie", "code", "jax", "hardware"} and "cores" in versions()["hardware"]
    write_record(tmp_path, replace(record, versions={}))
    assert read_record(tmp_path).versions == versions()
    out = export(tiny, tmp_path / "out")
    assert read_record(out / "dynamics").versions == record.versions != versions()


def test_worlds_side_by_side(tiny, tmp_path, capsys):
    assert cli.main(["compare", "platformer", str(tiny), "--out", "both.html"]) == 0
    text = Path("both.html").read_text("utf8")
    assert "platformer and tiny, side by side" in text and "not measured alike" in text
    ours = {name: value for name, value, *_ in rows(read_signed(SHIPPED / "eval.json"), HEADLINES)}["delta_psnr"]
    assert text.index(f">{ours} (") < text.index(">0.250 .. 0.250 ("), "a column for each, in their order"
    assert "dynamics.objective.dynamics.transformer.width" in text and "<svg" in text
    assert cli.main(["compare", str(tiny), "--out", "one.html"]) == 2
    assert "two worlds or more" in capsys.readouterr().err
    assert cli.main(["compare", "toy", str(tiny)]) == 2
    assert "is a comparison, which takes no runs" in capsys.readouterr().err
    assert cli.main(["compare", str(tiny), "no/such"]) == 2
    assert "no/such" in capsys.readouterr().err
    assert not Path("one.html").exists()


def test_two_worlds_of_one_name_and_one_that_was_not_measured(tiny, tmp_path):
    other = export(tiny, tmp_path / "tiny")
    page = side_by_side([tiny, other], tmp_path).read_text("utf8")
    assert str(other) in page and "not measured alike" not in page
    write_json(other / "eval.json", {"psnr": 10.0, "clips": []})
    with pytest.raises(ReverieError, match="no evaluation that can be read: 'reverie eval"):
        side_by_side([tiny, other], tmp_path)
