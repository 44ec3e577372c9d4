"""A world as a page without a server: what is in its files, and what is refused."""

import base64
import gzip
import importlib.util
import json
import re
import shutil

import jax
import numpy as np
import pytest
from contracts import tiny
from flax import nnx

from reverie.actions import ActionSpace
from reverie.cli import main
from reverie.data.sources.square import SPACES
from reverie.errors import ReverieError
from reverie.narrow_weights import cost, rounded
from reverie.onnx.narrow import narrow
from reverie.web import runtime
from reverie.web.export import export_web, values, warn
from reverie.web.page import page
from reverie.world import Session

DATA = {"card": {"name": "</script><script>alert(1)</script>"}, "setup": {}}
PARTS = {"wasm": bytes(range(256)) * 9, "weights": b""}


def test_one_file_holds_every_module_and_part_and_asks_for_nothing():
    files = page(DATA, PARTS)
    assert list(files) == ["index.html"]
    html = files["index.html"].decode()
    assert "Copyright (c) Microsoft Corporation" in html and "connect-src 'none'" in html
    assert re.findall(r'(?:src|href)="(?!data:)', html) == [], "nothing lies beside the page"
    assert html.count("alert(1)") == 1 and "</script><script>alert" not in html
    scripts = dict(re.findall(r'<script type="[\w/]+" id=([\w-]+)>(.*?)</script>', html, re.DOTALL))
    assert json.loads(scripts["card"]) == DATA["card"]
    for name, part in PARTS.items():
        assert gzip.decompress(base64.b64decode(scripts[f"part-{name}"])) == part
    modules = json.loads(re.findall(r'<script type="importmap">(.*?)</script>', html)[0])["imports"]
    imported = {"play.js"}
    for address in modules.values():
        source = base64.b64decode(address.partition(",")[2]).decode()
        assert not re.search(r'(from|import) "\./', source)
        imported |= set(re.findall(r'from "([\w.]+)"', source))
    assert imported == set(modules) and "WebSocket(" not in base64.b64decode(modules["wire.js"][28:]).decode()


def test_a_folder_has_the_parts_beside_the_page():
    files = page(DATA, PARTS, single=False)
    assert set(files) == {"index.html", "wasm.bin", "weights.bin"}
    assert gzip.decompress(files["wasm.bin"]) == PARTS["wasm"]
    assert len(files["index.html"]) < 100_000 and b"connect-src 'self'" in files["index.html"]


@pytest.mark.parametrize("kind", [*SPACES, "latent", "none"])
def test_the_page_makes_the_actions_that_their_numbers_mean(kind):
    space = {**SPACES, "latent": ActionSpace("latent", 4), "none": ActionSpace()}[kind]
    table = values(space)
    for number in range(space.count):
        levels = np.unravel_index(number, [len(each) for each in table])
        action = [each[level] for each, level in zip(table, levels, strict=True)]
        expected = space.nth(number)
        assert np.array_equal(np.array(action, space.dtype).reshape(space.shape), expected)


def test_a_world_too_large_for_its_pace_is_said_with_an_estimate(capsys):
    warn(1e7, 10)
    assert capsys.readouterr().err == ""
    warn(4e9, 10)
    said = capsys.readouterr().err
    assert re.fullmatch(r"A frame of this world takes about \d+ ms on one core .*\n", said)


def refused(argv, capsys):
    assert main(["export", *map(str, argv)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch):
    assert "say where to export to" in refused(["platformer"], capsys)
    assert "say where to export to" in refused(["platformer", "out", "--web", "x.html"], capsys)
    (tmp_path / "x.html").write_text("mine")
    assert "exists already" in refused(["platformer", "--web", "x.html"], capsys)
    assert "has no ort.wasm" in refused(["platformer", "--web", "y.html", "--runtime", tmp_path], capsys)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'reverie-worlds[web]'" in refused(["platformer", "--web", "y.html"], capsys)
    assert (tmp_path / "x.html").read_text() == "mine" and not (tmp_path / "y.html").exists()


def test_the_runtime_is_verified_and_npm_is_asked_once(tmp_path, monkeypatch):
    """A stand-in for npm packs wrong files first, then none, then is gone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(ReverieError, match="there is no npm to fetch it: install Node.js, or give --runtime DIR"):
        runtime.runtime()
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(ReverieError, match=r"npm could not fetch onnxruntime-web@[\d.]+ \(npm error code ENOTFOUND\)"):
        runtime.runtime()
    packed = tmp_path / "package" / "dist"
    packed.mkdir(parents=True)
    for name in runtime.FILES:
        (packed / name).write_bytes(b"other")
    shutil.make_archive(str(tmp_path / "made"), "gztar", tmp_path, "package")
    npm.write_text(f'#!/bin/sh\n{shutil.which("cp", path="/bin:/usr/bin")} {tmp_path}/made.tar.gz "$5/x.tgz"\n')
    with pytest.raises(ReverieError, match="is not that of onnxruntime-web"):
        runtime.runtime()
    right = {name: runtime.hashlib.sha256(b"other").hexdigest() for name in runtime.FILES}
    monkeypatch.setattr(runtime, "FILES", right)
    assert runtime.runtime() == (b"other", b"other")
    npm.unlink()
    assert runtime.runtime() == (b"other", b"other"), "from the cache"
    assert runtime.runtime(tmp_path) == (b"other", b"other"), "from an unpacked package"


@pytest.mark.parametrize("bits", [32, 8])
def test_only_worlds_are_exported(tmp_path, bits):
    from golden import unpack

    with pytest.raises(ReverieError, match="only a world can be played"):
        export_web(unpack(tmp_path / "world") / "tokenizer", tmp_path / "x.html", bits=bits)


def test_rounding_is_of_the_dynamics_alone():
    world = tiny.world()
    small = rounded(world, 8)
    for name, array in nnx.to_flat_state(nnx.state(small.dynamics, nnx.Param)):
        assert np.ndim(array[...]) < 2 or narrow(np.asarray(array[...])) is not None, name
    for old, new in zip(*(jax.tree.leaves(nnx.state(each.tokenizer)) for each in (world, small)), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.soak
def test_what_rounding_costs_is_measured_on_the_starts():
    full, small = Session(tiny.world()), Session(rounded(tiny.world(), 8))
    frames = np.random.default_rng(0).integers(0, 256, (4, *tiny.FRAME), np.uint8)
    starts = [(frames, tiny.ACTIONS.nth([0, 1, 0, 1]))]
    said = r"PSNR over 2 frames of 1 starts: ([\d.]+) dB in full, ([\d.]+) dB rounded."
    same, other = (re.fullmatch(said, cost(full, each, starts)) for each in (full, small))
    assert same and other and same[1] == same[2] == other[1]
    assert "was not measured" in cost(full, small, [(frames, None)])
