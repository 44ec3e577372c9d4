"""``reverie data browse``: a page on this machine that lists a store's episodes and plays them. It writes nothing.

The page asks for JSON about a few episodes at a time, and for frames as they are: uint8 (T, H, W, C).
"""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from reverie.data.copying import Store, opened, packing_of
from reverie.errors import ReverieError
from reverie.play.host import file_response, listen, page_files, run_server, server_of

ROWS = 20  # episodes of a page of the list
LONGEST = 20_000  # frames of an episode that are described
SENT = 4 << 20  # bytes of frames of one answer, or a single frame
SHARED = ("icon.svg", "style.css", "picture.js")  # of the page of ``reverie play``
KEPT = 500  # descriptions of episodes


class Browsed:
    """What the page may ask about a store; LookupError for what is not there, ReverieError for damaged records."""

    def __init__(self, store: Store):
        self.store = store
        self.episode = lru_cache(KEPT)(self._episode)

    def about(self) -> dict[str, Any]:
        """Return what all episodes have in common, and how many there are."""
        spec = self.store.any.spec
        return {
            "name": self.store.path.resolve().name,
            "frame": list(spec.frame),
            "fps": spec.fps,
            "source": spec.source,
            "packing": packing_of(self.store),
            "splits": {
                name: {"episodes": len(part.lengths), "frames": int(part.lengths.sum())}
                for name, part in self.store.splits.items()
            },
            "rows": ROWS,
            "notes": list(getattr(self.store.any, "notes", ()))[:ROWS],
        }

    def rows(self, split: str, first: int) -> list[dict[str, Any]]:
        """Return what the list shows of ``ROWS`` episodes from number ``first``, without reading them."""
        part = self.store.splits[split]
        self._inside(first, len(part.lengths))
        return [
            {"number": n, "length": int(part.lengths[n]), "source": part.sources[n], "task": part.tasks[n]}
            for n in range(first, min(first + ROWS, len(part.lengths)))
        ]

    def _episode(self, split: str, number: int) -> dict[str, Any]:
        """Return the actions, rewards and ends of an episode, or of its first ``LONGEST`` frames.

        names: the different actions. actions: for each frame, which of them led to it.
        """
        part = self.store.splits[split]
        self._inside(number, len(part.lengths))
        length = min(int(part.lengths[number]), LONGEST)
        read = part.read(number, 0, length, ("actions", "rewards", "ends"))
        different, which = np.unique(read["actions"], axis=0, return_inverse=True)
        rewards = np.nan_to_num(read["rewards"].astype(float), posinf=0.0, neginf=0.0)
        return {
            "names": [part.spec.actions.name_of(action) for action in different],
            "actions": which.ravel().tolist(),
            "rewards": np.round(rewards, 5).tolist(),
            "ends": np.flatnonzero(read["ends"]).tolist(),
            "return": round(float(rewards.sum()), 4),
            "whole": length == int(part.lengths[number]),
        }

    def frames(self, split: str, number: int, start: int) -> bytes:
        """Return frames of an episode from frame ``start``, as many as one answer may hold."""
        part = self.store.splits[split]
        self._inside(number, len(part.lengths))
        self._inside(start, int(part.lengths[number]))
        count = max(1, SENT // int(np.prod(part.spec.frame)))
        return part.read(number, start, min(count, int(part.lengths[number]) - start), ("frames",))["frames"].tobytes()

    @staticmethod
    def _inside(number: int, count: int) -> None:
        if not 0 <= number < count:
            raise IndexError(number)


def browse(path: Path, port: int, open_browser: bool, allow_hosts: Sequence[str] = ()) -> None:
    """Serve the page of a store until Ctrl-C."""
    run_server(*prepare(path, port, allow_hosts), f"Browsing {path}", open_browser)


def prepare(path: Path, port: int, allow_hosts: Sequence[str] = ()) -> tuple[uvicorn.Server, Any, str]:
    """Return (server, listening socket, address) of the page of a store, ready to run."""
    app, host = application(Browsed(opened(path))), "127.0.0.1"
    listening = listen(host, port, expose=False)
    try:
        server, address = server_of(app, listening, host, allow_hosts, longest=1024)
    except BaseException:
        listening.close()
        raise
    return server, listening, address


def application(browsed: Browsed) -> Starlette:
    """Return the page and what it asks for: /about, /rows, /episode and /frames."""
    shared = page_files("reverie.play")
    files = {name: shared[name] for name in SHARED} | page_files("reverie.play", "browse")

    def page(request: Request) -> Response:
        return file_response(files, request.path_params.get("name", ""))

    def answer(asked: Callable[..., Any], names: Sequence[str], request: Request) -> Response:
        query = request.query_params
        try:  # a number of a thousand digits is refused by int
            found = asked(*(query[name] if name == "split" else int(query[name]) for name in names))
        except (LookupError, ValueError):
            return _said("There is no such episode, or no such frame of it.", 404)
        except ReverieError as error:
            return _said(str(error), 500)
        if isinstance(found, bytes):
            return Response(found, media_type="application/octet-stream")
        return Response(json.dumps(found), media_type="application/json")

    asked = {
        "about": (browsed.about, ()),
        "rows": (browsed.rows, ("split", "first")),
        "episode": (browsed.episode, ("split", "number")),
        "frames": (browsed.frames, ("split", "number", "start")),
    }
    routes = [Route(f"/{name}", partial(answer, *how)) for name, how in asked.items()]
    return Starlette(routes=[*routes, Route("/", page), Route("/{name}", page)])


def _said(text: str, status: int) -> Response:
    return Response(json.dumps({"error": text}), status, media_type="application/json")
