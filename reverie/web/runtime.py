"""onnxruntime-web: the two files that run a model in a browser. They come from a folder, the user's cache or npm."""

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from reverie.cache import cache
from reverie.errors import ReverieError, first_line

VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{VERSION}"
FILES = {  # with their SHA-256
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
INSIDE = ("", "dist", "package/dist", "node_modules/onnxruntime-web/dist")  # where a folder may have them
LONGEST = 300  # seconds for npm: the package is 33 MB
LICENCE = Path(__file__).with_name("LICENSE-onnxruntime.txt")


class Runtime(NamedTuple):
    """The JavaScript module and the WebAssembly of onnxruntime-web."""

    script: bytes
    wasm: bytes


def runtime(folder: Path | None = None) -> Runtime:
    """Return the runtime from a folder, or else from the cache, which npm fills; ReverieError if there is none."""
    if folder is not None:
        return _read(folder)
    kept = cache(f"onnxruntime-web-{VERSION}")
    if not all((kept / name).is_file() for name in FILES):
        _fetch(kept)
    return _read(kept)


def _read(folder: Path) -> Runtime:
    place = next((folder / inside for inside in INSIDE if (folder / inside / next(iter(FILES))).is_file()), None)
    if place is None:
        raise ReverieError(f"'{folder}' has no {' and '.join(FILES)}: give the folder of {PACKAGE} from npm.")
    found = []
    for name, expected in FILES.items():
        data = (place / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != expected:
            raise ReverieError(f"'{place / name}' is not that of {PACKAGE}: delete it, or give another --runtime.")
        found.append(data)
    return Runtime(*found)


def _fetch(kept: Path) -> None:
    """Let npm fetch the package from the registry it is configured with, and keep the two files."""
    npm = shutil.which("npm")
    if npm is None:
        raise ReverieError(
            f"the page needs {PACKAGE}, and there is no npm to fetch it: install Node.js, or give --runtime DIR."
        )
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=f".{kept.name}.") as place:
        command = [npm, "pack", PACKAGE, "--silent", "--pack-destination", place]
        try:
            done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=LONGEST)
        except subprocess.TimeoutExpired:
            raise ReverieError(
                f"npm did not fetch {PACKAGE} in {LONGEST} s: try again, or give --runtime DIR."
            ) from None
        archive = next(Path(place).glob("*.tgz"), None)
        if done.returncode or archive is None:
            why = first_line(RuntimeError(done.stderr or done.stdout))
            raise ReverieError(f"npm could not fetch {PACKAGE} ({why}): mend that, or give --runtime DIR.")
        found = Path(place) / "found"
        found.mkdir()
        with tarfile.open(archive) as package:
            for name in FILES:
                with package.extractfile(f"package/dist/{name}") as source:  # type: ignore[union-attr]
                    (found / name).write_bytes(source.read())
        _read(found)
        shutil.rmtree(kept, ignore_errors=True)
        os.replace(found, kept)
