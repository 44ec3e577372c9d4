"""Worlds by name, path and address: from archives that are as written, and from archives and servers that are not."""

import contextlib
import http.server
import io
import stat
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from golden import unpack as unpack_golden

import reverie
from reverie import cli, config, download, library
from reverie.catalogue import shipped
from reverie.checksums import read_signed, sha256, write_manifest
from reverie.errors import ReverieError
from reverie.training import archive as archives
from reverie.training.archive import unpack, write_archive
from reverie.training.record import read_record, write_record
from reverie.world import WorldModel


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The archive of a tiny world."""
    folder = tmp_path_factory.mktemp("archive")
    return write_archive(unpack_golden(folder / "tiny"), folder / "tiny.zip", "CC0-1.0")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "reverie" / "worlds"


def left(own_cache: Path) -> list[str]:
    """What a failure left in the cache."""
    return sorted(path.name for path in own_cache.rglob("*") if path.is_file())


# ---- names and archives --------------------------------------------------------------------------------------------


def test_a_world_that_ships_is_loaded_by_its_name_and_listed(capsys, monkeypatch, tmp_path):
    assert isinstance(reverie.load("platformer"), WorldModel)
    assert cli.main(["worlds"]) == 0
    out = capsys.readouterr().out
    assert all(
        text in out for text in ("platformer", "64 x 64 pixels", " MB; licence: Apache-2.0", "delta-PSNR 11.1 dB")
    )
    with pytest.raises(ReverieError, match="no folder and no world 'platfromer'. Did you mean 'platformer'"):
        library.place("platfromer")
    (tmp_path / "platformer").mkdir()
    assert library.place("platformer") == Path("platformer"), "a folder wins"


def test_the_report_on_a_world_that_ships_is_written_elsewhere(capsys, monkeypatch):
    asked = {}
    monkeypatch.setattr("reverie.evaluation.run.evaluate_run", lambda run, clips, **how: asked.update(how, run=run))
    assert cli.main(["eval", "platformer"]) == 0
    assert asked["run"] == shipped()["platformer"] and asked["out"] == Path("runs/platformer")
    assert cli.main(["show", "platformer"]) == 0
    assert Path("runs/platformer/report.html").is_file()
    Path("runs/mine").mkdir()
    assert cli.main(["eval", "runs/mine"]) == 0
    assert asked["run"] == Path("runs/mine") and asked["out"] is None


def test_an_archive_is_made_and_opened_by_the_command_line(tmp_path, capsys, own_cache):
    world = unpack_golden(tmp_path / "tiny")
    assert cli.main(["export", str(world), "again.zip", "--licence", "CC0-1.0"]) == 0
    assert f"#sha256={sha256(Path('again.zip'))}'" in capsys.readouterr().out
    assert cli.main(["export", str(world), "again.zip"]) == 2
    assert "exists already" in capsys.readouterr().err
    folder = library.place("again.zip")
    assert own_cache in folder.parents and folder.name == "again" and library.is_ours(folder)
    assert read_signed(folder / "world.json", required=True)["licence"] == "CC0-1.0"
    assert isinstance(reverie.load("again.zip"), WorldModel)
    assert library.place("again.zip") == folder
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "again.zip", "cache"}


def made(path: Path, members: dict[str, bytes], **more) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = more.get("mode", stat.S_IFREG | 0o644) << 16
            file.writestr(info, data)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "../out.json",
        "/etc/out.json",
        "C:/out.json",
        "a\\..\\..\\out.json",
        "a/./b",
        ".lock",
        "a/.git/config",
        "a//b",
        "a" * 300,
        "/".join("abcdefghij"),
    ],
)
def test_a_member_stays_in_its_folder(tmp_path, name):
    file = made(tmp_path / "x.zip", {name: b"{}"})
    with pytest.raises(ReverieError, match="a name that no world has") as error:
        unpack(file, tmp_path / "in" / "world")
    assert "\n" not in str(error.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path != file]


def test_links_many_members_bombs_and_two_of_a_name_are_refused(tmp_path, monkeypatch):
    def refused(file, why):
        with pytest.raises(ReverieError, match=why) as error:
            unpack(file, tmp_path / "world")
        assert "\n" not in str(error.value) and not (tmp_path / "world").exists()
        file.unlink()

    file = tmp_path / "x.zip"
    refused(made(file, {"tokenizer": b"/etc"}, mode=stat.S_IFLNK | 0o777), "not a plain file")
    refused(made(file, {"a/run.json": b"", "A/RUN.json": b""}), "two members in one place")
    refused(made(file, {"a": b"", "a/b": b""}), "two members in one place")
    refused(made(file, {f"a{n}": b"" for n in range(archives.MEMBERS + 1)}), f"{archives.MEMBERS + 1} entries")
    monkeypatch.setattr(archives, "UNPACKED", 2**20)
    refused(made(file, {"a": bytes(2**20), "b": b"1"}), "would unpack to 1 MB: more than the 1 MB allowed")
    made(file, {"a": bytes(2**16)})
    data = bytearray(file.read_bytes())
    for sign in (b"PK\x01\x02", b"PK\x03\x04"):  # it claims ten bytes, and holds more
        at = data.index(sign) + (24 if sign[2] == 1 else 22)
        data[at : at + 4] = (10).to_bytes(4, "little")
    file.write_bytes(data)
    refused(file, "damaged")
    file.write_bytes(b"PK" + bytes(30))
    refused(file, "not a world archive")


def test_a_flipped_bit_and_a_missing_or_foreign_member_are_found(archive, tmp_path):
    with zipfile.ZipFile(archive) as file:
        members = {info.filename: file.read(info) for info in file.infolist()}
    broken = {
        "starts.npz is not what was written": members | {"starts.npz": members["starts.npz"][:-1] + b"x"},
        "extra.bin does not belong there": members | {"extra.bin": b"x"},
        "world.json is missing": {name: data for name, data in members.items() if name != "world.json"},
        "is not a world archive": {name: data for name, data in members.items() if name != "seal.json"},
    }
    for why, content in broken.items():
        with pytest.raises(ReverieError, match=why):
            unpack(made(tmp_path / "x.zip", content), tmp_path / "world")
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(ReverieError, match="damaged"):
        unpack(tmp_path / "x.zip", tmp_path / "world")
    assert not (tmp_path / "world").exists() and not (tmp_path / "world.unpacked").exists()


def test_a_world_that_names_a_place_outside_of_its_archive_is_refused(archive, tmp_path):
    """Its runs are read together with it: one that names other folders would read those of the person who opens it."""
    for field, value in (("objective.tokenizer", "../../../other"), ("data", "/home/me/videos")):
        world = unpack(archive, tmp_path / field)
        record = read_record(world / "dynamics")
        write_record(world / "dynamics", replace(record, run=config.replace(record.run, **{field: value})))
        write_manifest(world, {"what": archives.KIND})
        members = {path.relative_to(world).as_posix(): path for path in world.rglob("*") if path.is_file()}
        file = made(tmp_path / "x.zip", {name: path.read_bytes() for name, path in members.items()})
        with pytest.raises(ReverieError, match=f"a place outside it: {field} of its dynamics"):
            unpack(file, tmp_path / "out")


# ---- addresses -----------------------------------------------------------------------------------------------------


class Server(http.server.BaseHTTPRequestHandler):
    """Serves one file, and misbehaves as ``how`` says."""

    content, how, asked, tag, address = b"", "", [], '"1"', ""

    def log_message(self, *_) -> None: ...

    def do_GET(self) -> None:
        kind, start = type(self), 0
        kind.asked.append(dict(self.headers))
        if "://" in kind.how:
            self.send_response(302)
            self.send_header("Location", kind.how)
            return self.end_headers()
        if kind.how == "breaks for good" and len(kind.asked) > 1:
            return self.connection.close()
        if kind.how == "404":
            return self.send_error(404)
        wanted = self.headers.get("Range")
        if wanted and self.headers.get("If-Range") == kind.tag and kind.how != "no ranges":
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        body, size = kind.content[start:], len(kind.content)
        claimed = {"claims much": 2**40, "claims nothing": None, "longer": len(body) - 10}.get(kind.how, len(body))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if claimed is not None:
            self.send_header("Content-Length", str(claimed))
        if kind.tag:
            self.send_header("ETag", kind.tag)
        self.end_headers()
        breaks = kind.how.startswith("breaks") and len(kind.asked) == 1
        with contextlib.suppress(OSError):
            for at in range(0, len(body), 2**14):
                self.wfile.write(body[at : at + 2**14])
                if breaks and at:
                    break
                if kind.how == "drips":
                    time.sleep(0.05)


@pytest.fixture
def server(archive):
    kind = type("OneServer", (Server,), {"content": archive.read_bytes(), "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        kind.address = f"http://127.0.0.1:{server.server_address[1]}/worlds/tiny.zip"
        yield kind
        server.shutdown()


def test_a_world_on_the_web_is_fetched_once(server, archive, own_cache, capsys):
    pinned = f"{server.address}#sha256={sha256(archive)}"
    assert isinstance(reverie.load(pinned), WorldModel)
    assert library.place(pinned).name == "tiny" and len(server.asked) == 1
    assert not [name for name in left(own_cache) if "zip" in name or "part" in name]
    assert "fetching" in capsys.readouterr().err
    with pytest.raises(ReverieError, match="another file than its address says"):
        library.place(f"{server.address}#sha256={'0' * 64}")


def test_what_has_arrived_is_continued(server, own_cache):
    server.how = "breaks for good"
    with pytest.raises(ReverieError, match=r"the connection to .* broke .* MB are kept. Try again"):
        library.place(server.address)
    kept = next(path for path in own_cache.rglob("*.part"))
    server.how, server.asked = "", []
    size = kept.stat().st_size
    assert size and library.place(server.address).is_dir()
    assert server.asked[0]["Range"] == f"bytes={size}-" and server.asked[0]["If-Range"] == server.tag
    assert len(server.asked) == 1


def test_a_break_in_the_middle_is_mended_without_a_word(server, own_cache):
    server.how = "breaks once"
    assert library.place(server.address).is_dir()
    assert [request.get("Range", "")[:6] for request in server.asked] == ["", "bytes="]


@pytest.mark.parametrize("change", ["no ranges", "another file", "no tag"])
def test_a_file_that_cannot_be_continued_is_fetched_from_its_beginning(server, own_cache, change):
    server.how = "breaks for good"
    server.tag = "" if change == "no tag" else server.tag
    with pytest.raises(ReverieError, match="broke"):
        library.place(server.address)
    server.how, server.asked = "no ranges" if change == "no ranges" else "", []
    server.tag = '"2"' if change == "another file" else server.tag
    assert library.place(server.address).is_dir() and len(server.asked) == 1


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("claims much", "1099512 MB: more than the 2147 MB allowed"),
        ("404", "the server answers 404"),
        ("longer", "is not a world that can be used"),
        ("file:///etc/passwd", "the server answers 302"),
        ("http://example.com/x.zip", "is not an https address"),
        ("ftp://example.com/x.zip", "is not an https address"),
    ],
)
def test_a_server_that_misbehaves_costs_one_line(server, own_cache, how, why, capsys):
    server.how = how
    assert cli.main(["play", server.address, "--no-browser"]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("reverie: error: ") and why in err
    assert not [name for name in left(own_cache) if not name.endswith((".part", ".part.json"))]


def test_an_endless_and_a_slow_answer_end(server, own_cache, monkeypatch):
    server.how = "claims nothing"
    monkeypatch.setattr(library, "BYTES", 2**15)
    with pytest.raises(ReverieError, match="more than the 32768 bytes that are allowed"):
        library.place(server.address)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(own_cache.parents[1]))
    monkeypatch.setattr(download, "SLOW", (0.2, 2**30))
    server.how, server.tag, server.content = "drips", "", bytes(2**21)  # without a tag it is not continued
    with pytest.raises(ReverieError, match="it sent"):
        library.place(server.address)


@pytest.mark.parametrize("address", ["http://example.com/x.zip", "ftp://x/y.zip", "file:///x.zip", "https:///x.zip"])
def test_only_https_is_fetched(address):
    with pytest.raises(ReverieError, match="is not an https address"):
        library.place(address)


def test_what_is_at_an_address_but_no_world_is_said(server, own_cache):
    server.content = b"<html>a page</html>" * 1000
    with pytest.raises(ReverieError, match="what is at '.*' is not a world that can be used"):
        library.place(server.address)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("readme.txt", "a zip of something else")
    server.content = buffer.getvalue()
    with pytest.raises(ReverieError, match="is not a world that can be used"):
        library.place(server.address)
    assert not left(own_cache)
