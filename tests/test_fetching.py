"""Recordings of VPT from a server that misbehaves: what is sound arrives, the rest is named, nothing is half there."""

import http.server
import json
import threading
import time

import pytest
from filming import coded, write

from reverie import cli, download
from reverie.data import fetching

TABLE = "\n".join(json.dumps({"mouse": {"dx": 0, "dy": 0}, "keyboard": {"keys": []}}) for _ in range(8)).encode()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves ``files``; a part of the path says how it misbehaves, once or always."""

    files, asked, address = {}, [], ""

    def log_message(self, *_) -> None: ...

    def do_GET(self) -> None:
        kind, name = type(self), self.path.lstrip("/")
        kind.asked.append(name)
        again, start = kind.asked.count(name) > 1, 0
        if "moved" in name and not name.startswith("elsewhere"):
            self.send_response(302)
            self.send_header("Location", f"/elsewhere/{name}")
            return self.end_headers()
        body = kind.files.get(name.removeprefix("elsewhere/"))
        if body is None or ("broken" in name and not again):
            return self.send_error(404 if body is None else 500)
        wanted, whole = self.headers.get("Range"), body
        if wanted:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        body = body[start:]
        claimed = len(body) - 30 if "short" in name and not again else len(body)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        self.send_header("Content-Length", str(claimed))
        self.send_header("ETag", '"1"')
        self.end_headers()
        if ("stalls" in name or "cut" in name) and not again:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            time.sleep(0.6 if "stalls" in name else 0)
            return self.connection.close()
        self.wfile.write(body)


@pytest.fixture
def server(tmp_path, monkeypatch):
    write(tmp_path / "a.mp4", [coded(t) for t in range(8)], 20)
    video = (tmp_path / "a.mp4").read_bytes()
    names = [f"data/{name}" for name in ("plain", "broken", "stalls", "cut", "short", "moved")]
    files = {f"{name}.mp4": video for name in names} | {f"{name}.jsonl": TABLE for name in names}
    files |= {"data/lame.mp4": video, "data/bad.mp4": video, "data/bad.jsonl": TABLE[:-9]}
    kind = type("OneServer", (Server,), {"files": files, "asked": []})
    monkeypatch.setattr(download, "SILENCE", 0.3)
    monkeypatch.setattr(fetching, "PAUSE", 0.01)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        base = f"http://127.0.0.1:{server.server_address[1]}"
        listed = [name for name in files if name.endswith(".mp4")] + ["data/none.mp4"]
        files["index.json"] = json.dumps({"basedir": base, "relpaths": listed}).encode()
        kind.address = f"{base}/index.json"
        yield kind
        server.shutdown()


def test_what_is_sound_arrives_and_the_rest_is_named(server, tmp_path, capsys):
    assert cli.main(["data", "fetch", "vpt", server.address, "--workers", "3"]) == 0
    out, err = capsys.readouterr()
    assert "6 of 9 recordings are there" in out
    for name, why in (("lame", "404"), ("none", "404"), ("bad", "line 8 of the actions is damaged")):
        assert f"data/{name}.mp4: " in err and why in err
    there = {path.relative_to(tmp_path / "vpt").as_posix() for path in (tmp_path / "vpt").rglob("*") if path.is_file()}
    wanted = {name for name in server.files if name.startswith("data/") and "lame" not in name and "bad" not in name}
    assert there == wanted
    assert all((tmp_path / "vpt" / name).read_bytes() == server.files[name] for name in wanted)
    server.asked.clear()
    assert cli.main(["data", "fetch", "vpt", server.address, "--count", "6"]) == 0  # again
    assert server.asked == ["index.json"]
    assert cli.main(["data", "vpt", "store", "--path", "vpt", "--val", "0"]) == 0


@pytest.mark.parametrize("name", ["../x.mp4", "/etc/x.mp4", "data/x.exe", "a/./b.mp4"])
def test_an_index_names_files_inside_the_folder_only(tmp_path, capsys, name):
    (tmp_path / "index.json").write_text(json.dumps({"basedir": "https://example.org/", "relpaths": [name]}))
    assert cli.main(["data", "fetch", "vpt", "index.json"]) == 2
    assert "not a video inside its folder" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", "{}", '{"basedir": "x"}', '{"basedir": "ftp://x", "relpaths": ["a.mp4"]}'])
def test_what_is_no_index_is_refused_in_one_line(tmp_path, capsys, content):
    (tmp_path / "index.json").write_text(content)
    assert cli.main(["data", "fetch", "vpt", "index.json"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
