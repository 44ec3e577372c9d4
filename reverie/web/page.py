"""The page of ``reverie play`` with the model inside: its modules, its data and the runtime in one HTML file.

A browser refuses modules and data beside a page that is opened from disk, so modules become data URLs in an import map,
and everything else is text in the page. The page's own policy forbids every request.
"""

import base64
import gzip
import json
import re
from typing import Any

from reverie.play.host import page_files
from reverie.web.runtime import LICENCE, VERSION

IMPORT = re.compile(r'(from|import) "\./([\w.]+)"')
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'wasm-unsafe-eval' data: blob:; worker-src blob:; "
    "style-src 'unsafe-inline'; img-src data: blob:; connect-src {connect}"
)


def page(data: dict[str, Any], parts: dict[str, bytes], single: bool = True) -> dict[str, bytes]:
    """Return the files of a page by name: "index.html", and if it is not a ``single`` one also its parts.

    ``data``: JSON that the page reads, by id. ``parts``: what it unpacks, by name.
    """
    files = page_files("reverie.play") | page_files("reverie.web")
    html = files.pop("index.html").decode()
    icon, style, worker = (files.pop(name) for name in ("icon.svg", "style.css", "worker.js"))
    policy = POLICY.format(connect="'none'" if single else "'self'")
    html = html.replace("<head>", f"<head>\n<!--\n{_licence()}\n-->", 1)
    html = html.replace(
        '<meta charset="utf-8">',
        f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">',
    )
    html = html.replace('"icon.svg"', f'"{url("image/svg+xml", icon)}"')
    html = html.replace('<link rel="stylesheet" href="style.css">', f"<style>\n{style.decode()}</style>")
    html = html.replace('<script type="module" src="play.js"></script>', _modules(files))
    packed = {name: gzip.compress(part, 9, mtime=0) for name, part in parts.items()}
    scripts = [
        _script("application/json", name, _json(value)) for name, value in {**data, "worker": worker.decode()}.items()
    ]
    if single:
        scripts += [
            _script("text/plain", f"part-{name}", base64.b64encode(part).decode()) for name, part in packed.items()
        ]
        beside = {}
    else:
        scripts += [f'<script type="text/plain" id="part-{name}" data-from="{name}.bin"></script>' for name in packed]
        beside = {f"{name}.bin": part for name, part in packed.items()}
    html = html.replace("</body>", "\n".join([*scripts, "</body>"]))
    return {"index.html": html.encode(), **beside}


def url(kind: str, data: bytes) -> str:
    """Return an address that is the data itself."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _modules(files: dict[str, bytes]) -> str:
    """Return an import map of the page's modules. A data URL has no neighbours: each is imported by its bare name."""
    bare = {
        name: IMPORT.sub(r'\1 "\2"', source.decode()).encode() for name, source in files.items() if name.endswith(".js")
    }
    imports = {name: url("text/javascript", source) for name, source in bare.items()}
    return f'{_script("importmap", "", _json({"imports": imports}))}\n<script type="module">import "play.js";</script>'


def _script(kind: str, name: str, text: str) -> str:
    return f'<script type="{kind}"{name and f" id={name}"}>{text}</script>'


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")  # or a name could end the script


def _licence() -> str:
    return f"This page contains ONNX Runtime Web {VERSION}.\n\n{LICENCE.read_text('utf8').strip()}"
