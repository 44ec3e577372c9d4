"""Downloads of one file over https: bounded, checked where its checksum is known, and resumed after an interruption.

The server is not trusted: its claims are limits for what it sends, and what it sends is counted.
"""

import http.client
import ipaddress
import json
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from reverie.bounded import read_json
from reverie.checksums import sha256
from reverie.errors import Damaged, ReverieError, first_line

SILENCE = 30.0  # seconds without a byte after which a connection counts as lost
SLOW = 60.0, 2**16  # seconds, and bytes that must arrive in them
BLOCK = 2**16


class Lost(Exception):
    """The connection broke; what has arrived is kept, and the next request continues there."""


class Refused(ReverieError):
    """The server answered with an error. code: that of HTTP."""

    def __init__(self, text: str, code: int):
        super().__init__(text)
        self.code = code


def is_address(text: str) -> bool:
    """Whether a text is the address of something on the web, not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def checked_address(address: str) -> str:
    """Return an address; ReverieError unless it is https, or http on this machine."""
    parts = urlsplit(address)
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and _is_here(parts.hostname))):
        raise ReverieError(f"'{address[:200]}' is not an https address: files are fetched over https only.")
    return address


def download(address: str, out: Path, limit: int) -> Path:
    """Fetch the file at ``address``, of at most ``limit`` bytes, to ``out``; return ``out``.

    ``#sha256=HEX`` at the end of the address is the checksum that the file must have. What has arrived before an
    interruption is in ``out.part`` and is continued from there if the server still has the same file. Raises
    ReverieError.
    """
    address, _, fragment = checked_address(address).partition("#")
    part, note = out.with_name(f"{out.name}.part"), out.with_name(f"{out.name}.part.json")
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            _receive(address, part, note, limit)
            break
        except Lost as error:
            arrived = part.stat().st_size if part.is_file() else 0
            if arrived <= before or not note.is_file():  # nothing new, or nothing that could be continued
                kept = f" {arrived / 1e6:.1f} MB are kept." if arrived and note.is_file() else ""
                raise ReverieError(f"the connection to '{address}' broke ({error}).{kept} Try again.") from None
    wanted = fragment.removeprefix("sha256=").lower() if fragment.startswith("sha256=") else ""
    found = sha256(part)
    note.unlink(missing_ok=True)
    if wanted and found != wanted:
        part.unlink()
        raise ReverieError(f"'{address}' is another file than its address says: its SHA-256 is {found}.")
    part.replace(out)
    return out


def _receive(address: str, part: Path, note: Path, limit: int) -> None:
    """Receive the rest of a file into ``part``; ``Lost`` if the connection breaks before its end."""
    noted = _noted(note, address)
    start = part.stat().st_size if noted and part.is_file() else 0
    headers = {"User-Agent": "reverie", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": noted["tag"]}
    try:
        with _opener(address).open(urllib.request.Request(address, headers=headers), timeout=SILENCE) as response:
            start, length = _extent(response, start)
            if length is not None and length > limit:
                raise ReverieError(f"'{address}' is {length / 1e6:.0f} MB: more than the {limit / 1e6:.0f} MB allowed.")
            if length is not None and shutil.disk_usage(part.parent).free < length - start:
                raise ReverieError(f"'{address}' is {length / 1e6:.0f} MB, and the disk of '{part.parent}' has less.")
            tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
            note.unlink(missing_ok=True)
            if tag and not tag.startswith("W/"):
                note.write_text(json.dumps({"address": address, "tag": tag}), encoding="utf-8")
            if not start:
                print(f"fetching {address}" + (f" ({length / 1e6:.1f} MB)" if length else ""), file=sys.stderr)
            _write(response, part, start, length, limit)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # the file has become shorter
            part.unlink()
            raise Lost("it changed meanwhile") from None
        text = f"'{address}' cannot be fetched: the server answers {error.code} {error.reason}."
        raise Refused(text, error.code) from None
    except (http.client.HTTPException, urllib.error.URLError, ConnectionError, TimeoutError) as error:
        raise Lost(first_line(getattr(error, "reason", error)) if str(error) else type(error).__name__) from None


def _extent(response: Any, start: int) -> tuple[int, int | None]:
    """Return where a response begins in its file, and the length of that file if it is known."""
    with suppress(ValueError):
        claimed = response.headers.get("Content-Length")
        sent = int(claimed) if claimed is not None else None
        if response.status == 200:
            return 0, sent
        match = re.fullmatch(r"bytes (\d{1,15})-\d{1,15}/(\d{1,15})", response.headers.get("Content-Range") or "")
        if response.status == 206 and match and int(match[1]) == start:
            return start, int(match[2])
    raise Lost(f"the server's answer {response.status} makes no sense")


def _write(response: Any, part: Path, start: int, length: int | None, limit: int) -> None:
    most = limit if length is None else length
    with part.open("r+b" if start else "wb") as file:
        file.seek(start)
        file.truncate()
        total, since, counted = start, time.monotonic(), start
        while block := response.read1(BLOCK):
            total += len(block)
            if total > most:
                file.truncate(0)
                raise ReverieError(f"the server sends more than the {most} bytes that are allowed: nothing was kept.")
            file.write(block)
            if (now := time.monotonic()) - since > SLOW[0]:
                if total - counted < SLOW[1]:
                    raise Lost(f"it sent {total - counted} bytes in {now - since:.0f} seconds")
                since, counted = now, total
    if length is not None and total < length:
        raise Lost(f"it ended after {total} of {length} bytes")


def _noted(note: Path, address: str) -> dict[str, str]:
    """Return what is known about an unfinished download of this address; empty if it cannot be continued."""
    try:
        found = read_json(note, 4096)
    except (OSError, Damaged):
        return {}
    texts = isinstance(found, dict) and all(isinstance(found.get(name), str) for name in ("address", "tag"))
    return found if texts and found["address"] == address and found["tag"].isprintable() else {}


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https addresses; to this machine only from this machine."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        checked_address(newurl)
        if urlsplit(newurl).scheme == "http" and urlsplit(req.full_url).scheme != "http":
            raise ReverieError(f"'{req.full_url}' leads to '{newurl[:200]}', which is not https.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(address: str) -> urllib.request.OpenerDirector:
    proxies = urllib.request.ProxyHandler({} if _is_here(urlsplit(address).hostname or "") else None)
    return urllib.request.build_opener(proxies, _Redirects)


def _is_here(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
