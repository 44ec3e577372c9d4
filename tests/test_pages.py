"""The pages of ``reverie eval`` and ``reverie show``: all is on them, nothing leaves them, and text stays text."""

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import golden
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from test_verdict import GOOD, SHIPPED, verdict

from reverie import cli
from reverie.checksums import write_json
from reverie.errors import ReverieError
from reverie.evaluation.meaning import HEADLINES, MEANING
from reverie.evaluation.page import picture
from reverie.evaluation.report import PICTURES, write_report
from reverie.training import sharding
from reverie.training.checkpoint import load
from reverie.training.log import si
from reverie.training.record import read_record, write_record

EVIL = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script>&amp;"


class Seen(HTMLParser):
    """What a browser makes of a page: its elements, what they refer to, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.refers, self.alts, self.texts, self.text = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        named = dict(attrs)
        self.refers += [
            value for name, value in attrs if name in ("src", "href", "srcset", "xlink:href", "data", "action")
        ]
        if tag == "img" or named.get("role") in ("img", "region"):
            self.alts.append(named.get("alt") or named.get("aria-label"))
        assert not any(name.startswith("on") for name in named), named

    def handle_data(self, data):
        self.text += data
        self.texts.append(data)


def read(page: Path) -> Seen:
    text = page.read_text("utf-8")
    seen = Seen(text)
    assert "script" not in seen.tags and "link" not in seen.tags and "@import" not in text and "url(http" not in text
    assert all(refers.startswith(("data:image/", "#")) or refers == "eval/index.html" for refers in seen.refers)
    assert "default-src 'none'" in text and seen.tags.count("h1") == seen.tags.count("title") == 1
    assert seen.alts and all(seen.alts), "a picture without a text"
    return seen


def pictures() -> dict[str, np.ndarray]:
    shapes = {name: (3, 20, 30, 3) if name == "dream" else (20, 300, 3) for name in PICTURES}
    return {name: np.random.default_rng(0).integers(0, 255, shape, np.uint8) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    """The folder of the shipped world's numbers, with pictures of noise."""
    out = tmp_path_factory.mktemp("evaluated") / "world"
    record = read_record(SHIPPED / "dynamics")
    write_report(GOOD, pictures(), out, {"config": record.run, "data": record.spec})
    return out


def test_an_evaluation_is_one_page(evaluated):
    seen = read(evaluated / "eval" / "index.html")
    assert all(sentence in seen.text for sentence in verdict(GOOD))
    shown = [name for name in HEADLINES if GOOD[name] is not None]
    assert len(shown) == 12 and all(MEANING[name] in seen.text for name in shown)
    assert "30.2 .. 33.5" in seen.text, "the interval of the last frame's PSNR"
    assert sum(refers.startswith("data:image/png") for refers in seen.refers) == 3
    assert sum(refers.startswith("data:image/gif") for refers in seen.refers) == 1
    assert seen.tags.count("svg") == 3 and "generated frame" in seen.text
    assert "split val" in seen.text and GOOD["fingerprint"] in seen.text and "optimizer.rate" in seen.text
    assert "1, 4, 16, 64, 128, 256, 400, 600, 800, 1000 generated frames" in seen.text
    assert json.loads((evaluated / "eval.json").read_text("utf-8"))["psnr"] == GOOD["psnr"]


def test_an_evaluation_that_has_little_has_a_page(tmp_path):
    """No actions, no long play, one frame, one episode: as of a short video."""
    curves = {name: value[:1] for name, value in GOOD.items() if isinstance(value, list) and len(value) == 16}
    bare = {"action_source": "none", "episodes": 1, "psnr_ci": [[float("nan")] * 2], "horizon": 1}
    gone = dict.fromkeys(name for name in MEANING if re.match("swap|delta|random|idm|lam|drift|long|ssim", name))
    write_report(GOOD | curves | bare | gone, {"dream": pictures()["dream"]}, tmp_path / "world")
    seen = read(tmp_path / "world" / "eval" / "index.html")
    assert "Long play" not in seen.text and "nothing to control" in seen.text and seen.tags.count("svg") == 1


def test_text_from_elsewhere_stays_text(tmp_path):
    record = read_record(SHIPPED / "dynamics")
    about = {"config": dataclasses.replace(record.run, data=EVIL), EVIL: {EVIL: EVIL}}
    out = tmp_path / EVIL.replace("/", "")
    write_report(GOOD | {"dataset": EVIL, "split": EVIL, "device": EVIL}, {}, out, about)
    seen = read(out / "eval" / "index.html")
    assert "img" not in seen.tags and seen.text.count(EVIL) >= 6
    world = golden.unpack(tmp_path / f"{EVIL.replace('/', '')}2")
    record = read_record(world / "dynamics")
    write_record(world / "dynamics", dataclasses.replace(record, run=dataclasses.replace(record.run, data=EVIL)))
    with (world / "dynamics" / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"step": 5, EVIL: 1e29, "$\\frac{": -1e29, "huge": 1e308}) + "\n")
    assert cli.main(["show", str(world)]) == 0
    seen = read(world / "report.html")
    assert "img" not in seen.tags and seen.text.count(EVIL) >= 2 and "$\\frac{" in seen.text


@pytest.fixture
def world(tmp_path) -> Path:
    """A world of three stages of four steps, with pictures of its reports and an evaluation."""
    world = golden.unpack(tmp_path / "made" / "world")
    write_json(world / "eval.json", GOOD)
    (world / "eval").mkdir()
    (world / "eval" / "index.html").touch()
    with (world / "tokenizer" / "metrics.jsonl").open("a") as log:
        for step, values in (2, {"loss": 0.5, "delta": 0.1}), (4, {"loss": 0.4, "delta": 0.2}):
            reported = {f"report/{name}": value for name, value in values.items()}
            log.write(json.dumps({"step": step, "split": "val", **reported}) + "\n")
    for stage in ("tokenizer", "dynamics"):
        (world / stage / "report").mkdir()
        for step in range(1, 9):
            Image.new("RGB", (40, 20), (step, 0, 0)).save(world / stage / "report" / f"{step:08d}-picture.png")
    return world


def test_show_says_what_each_stage_is(world, capfd):
    assert cli.main(["show", str(world)]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    for stage in ("tokenizer", "lam", "dynamics"):
        row = next(line for line in out.splitlines() if line.startswith(stage))
        assert re.search(rf"{stage} +4 of 4 +[\d.]+ +\d+ s +[\d.]+ k? +[\d.]+ kB", row), row
    assert "dynamics.optimizer.rate" in out and "tokenizer.objective" in out and f"{world}/report.html" in out
    assert all(sentence in out for sentence in verdict(GOOD))
    seen = read(world / "report.html")
    assert all(sentence in seen.text for sentence in verdict(GOOD))
    assert seen.tags.count("img") == 12 and "step 8" in seen.text and "step 1" in seen.text
    assert seen.tags.count("svg") > 9 and "eval/index.html" in seen.refers
    assert seen.texts.count("training") == seen.texts.count("report") == 1, (
        "one chart has both lines: the tokenizer's loss"
    )
    assert "delta (report)" in seen.text and "the same clips every time (split val)" in seen.text
    losses = [json.loads(line)["loss"] for line in (world / "lam" / "metrics.jsonl").read_text().splitlines()]
    assert f"{losses[-1]:.4g}" in seen.text


def test_show_of_one_stage(world, capfd):
    assert cli.main(["show", str(world / "tokenizer")]) == 0
    out, err = capfd.readouterr()
    assert err == "" and "tokenizer.batch" in out and "dynamics" not in out
    assert read(world / "tokenizer" / "report.html").tags.count("img") == 6 and not (world / "report.html").exists()


def test_what_is_damaged_or_missing_costs_a_line(world, capfd):
    (world / "tokenizer" / "run.json").write_text("{")
    shutil.rmtree(world / "lam")
    with (world / "dynamics" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 5, "loss"\n[1]\n{"step": "x"}\n')
    next((world / "dynamics" / "checkpoints" / "4").rglob("manifest.ocdbt")).unlink()
    (world / "dynamics" / "report" / "00000001-picture.png").write_bytes(b"\x89PNG no picture")
    (world / "dynamics" / "report" / "00000008-picture.png").unlink()
    (world / "dynamics" / "report" / "00000008-picture.png").symlink_to(world / "tokenizer/report/00000008-picture.png")
    (world / "eval.json").write_text("[]")
    assert cli.main(["show", str(world)]) == 0
    out, err = capfd.readouterr()
    lines = err.splitlines()
    for says in (
        r"eval.json' is damaged",
        r"^tokenizer: '.*run.json' cannot be read",
        r"^lam: not begun yet\.",
        r"^dynamics: .*manifest.ocdbt is missing\.",
        r"^dynamics: 3 lines of metrics.jsonl are damaged and left out\.",
    ):
        assert sum(bool(re.search(says, line)) for line in lines) == 1, (says, lines)
    assert len(lines) == 5 and all(line[-1] == "." for line in lines)
    assert "dynamics.batch" in out and "tokenizer.batch" not in out
    seen = read(world / "report.html")
    assert all(line in seen.text for line in lines)
    assert "00000001-picture.png cannot be shown (it is not a picture" in seen.text and "step 8" in seen.text
    for stage in ("dynamics", "tokenizer"):
        (world / stage / "run.json").write_text("{")
    assert cli.main(["show", str(world)]) == 2
    assert re.fullmatch("reverie: error: no stage of .*run.json' cannot be read .*\n", capfd.readouterr().err)
    assert cli.main(["show", str(world / "dynamics")]) == 2
    assert cli.main(["show", str(world.parent)]) == 2


def test_show_of_an_export_that_cannot_be_written_to(capfd, monkeypatch):
    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("reverie.evaluation.page.write_file", refused)
    assert cli.main(["show", str(SHIPPED)]) == 0
    out, err = capfd.readouterr()
    assert re.search(r"dynamics +8000 of 8000 +[\d.]+ k", out) and "Follows its keys" in out
    assert err.count("there is no metrics.jsonl") == 2 and "cannot be written to (Permission denied)" in err


def test_what_is_no_picture_is_refused(tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    assert picture(data, "alt", "caption").find("img").get("width") == "40"  # pyright: ignore
    for bad in (b"", b"GIF89a", data[:40], data[:-20], data.replace(b"IDAT", b"IDAU"), b"<svg/>"):
        with pytest.raises(ReverieError, match="not a picture"):
            picture(bad, "alt", "caption")


def test_a_stage_shows_its_speed_and_its_incidents(world):
    stage = world / "tokenizer"
    with (stage / "timing.jsonl").open("a") as timing, (stage / "metrics.jsonl").open("a") as log:
        for step in (5, 6):
            line = {"step": step, "frames_per_s": 2500, "mfu": 0.41, "goodput": 0.93, "data_wait": 0.04}
            timing.write(json.dumps(line | {"peak_bytes": 4e9 + step}) + "\n")
        timing.write(json.dumps({"step": 5, "planned_bytes": 3_100_000_000}) + "\n")
        timing.write(json.dumps({"step": 9, "incident": "stalled in phase 'data'"}) + "\n")
        log.write(json.dumps({"step": 7, "incident": f"skipped: {EVIL}"}) + "\n")
    assert cli.main(["show", str(stage)]) == 0
    seen = read(stage / "report.html")
    said = "step 9: stalled in phase 'data'", f"step 7: skipped: {EVIL}"
    for text in ("41%", "93%", "4%", "3.1 GB", "4 GB", "Incidents: 2", *said):
        assert text in seen.text, text


def test_runs_side_by_side_are_one_page(world, tmp_path, capfd):
    other = shutil.copytree(world, tmp_path / "other")
    record = read_record(other / "lam")
    write_record(other / "lam", dataclasses.replace(record, run=dataclasses.replace(record.run, batch=77)))
    with (other / "lam" / "timing.jsonl").open("a") as timing:
        timing.write(json.dumps({"step": 4, "mfu": 0.37, "incident": "stalled in phase 'data'"}) + "\n")
    both = tmp_path / "both.html"
    assert cli.main(["show", str(world), str(other), "--page", str(both)]) == 0
    seen = read(both)
    assert "2 runs side by side" in capfd.readouterr().out and "77" in seen.text and "batch" in seen.texts
    assert {"world", "other", "tokenizer", "lam", "dynamics", "loss", "MFU", "37%", "incidents"} <= {*seen.texts}
    assert cli.main(["show", str(world / "lam"), str(other / "dynamics"), "--page", str(both)]) == 0
    assert "Training" in read(both).texts and not (world / "report.html").exists()
    assert cli.main(["show", str(world), str(world), "--page", str(both)]) == 2


def test_a_tree_shows_every_weight_once(world, capfd, monkeypatch):
    """Of dynamics: its own, and those of the tokenizer, which are frozen."""
    assert cli.main(["show", str(world), "--tree"]) == 0
    out = capfd.readouterr().out
    leaves = nnx.to_flat_state(nnx.state(load(world)))
    total = si(sum(leaf[...].size for _, leaf in leaves)).strip()
    assert f"dynamics: {total} numbers" in out and "mesh data" in out
    assert out.count("replicated") == len(leaves) and "tokenizer: " in out and ", frozen" in out
    assert cli.main(["show", str(world), str(world), "--tree"]) == 2
    assert cli.main(["show", str(world), "--mesh", "tensor=2"]) == 2 and "give both" in capfd.readouterr().err
    monkeypatch.setattr(sharding, "SPREAD_FROM", 1)  # the world is small
    assert cli.main(["show", str(world), "--tree", "--mesh", "fsdp=4,tensor=2"]) == 0
    out = capfd.readouterr().out
    assert "on 8 devices, mesh fsdp=4,tensor=2" in out and " over fsdp" in out and " over tensor" in out
