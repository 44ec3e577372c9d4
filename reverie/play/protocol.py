"""The protocol between page and server.

The page sends JSON objects, as text (see ``COMMANDS``), and one kind of binary message: the raw bytes of a picture of
exactly the world's frame size, H*W*C uint8, which becomes start ``PICTURE``. The server answers with JSON objects
(type "world", "picture", "agent", "busy", "error", "bye") and with binary messages: a header of 20 bytes (``pack``),
then raw frame bytes or a finished GIF or mp4. Where the real game runs beside the world, its frame follows. Every frame
carries the id of the command it answers. If steps come faster than frames can be generated, only the newest is played.

Every message is checked against a table here before it is used.
"""

import json
import math
import struct
from typing import Any

from reverie.errors import ReverieError, did_you_mean

VERSION = 1
PICTURE = -1  # the start that is the player's own picture
SEEDS = range(2**31)
TEMPERATURES = range(201)  # hundredths, so that a link holds exact values
IDS = range(2**31)
LONGEST = 512  # characters of a command; the longest valid one has about 80

FRAME, GIF, MP4, REAL = 0, 1, 2, 3  # kinds of binary messages
# Little-endian: kind, step since the start, action that led here, id of the command, uncertainty of the frame or NaN.
_HEADER = struct.Struct("<IIiIf")


def commands(actions: int, starts: int) -> dict[str, dict[str, range | tuple]]:
    """Return the commands of a world with this many actions and starts: type -> field -> allowed values.

    An action is sent as its number (``ActionSpace.nth``). Of continuous actions, those with each component at an end or
    in the middle have numbers. Raises ReverieError if there are more actions than numbers.
    """
    if actions > 2**31:
        raise ReverieError(f"the page supports at most 2^31 actions, and this world has {actions}: use Session.")
    return {
        "reset": {"id": IDS, "seed": SEEDS, "start": range(PICTURE, starts)},
        "step": {"id": IDS, "action": range(actions), "temperature": TEMPERATURES},
        "record": {"id": IDS, "format": ("gif", "mp4")},
    }


def parse(text: str, known: dict[str, dict[str, range | tuple]]) -> dict[str, Any]:
    """Return the command in ``text`` with every field checked; ReverieError for anything else."""
    if len(text) > LONGEST:
        raise ReverieError(f"A command has at most {LONGEST} characters, not {len(text)}.")
    try:
        command = json.loads(text)
    except (ValueError, RecursionError):
        raise ReverieError("A command is one JSON object.") from None
    if not isinstance(command, dict) or not isinstance(command.get("type"), str):
        raise ReverieError("A command is one JSON object with a type.")
    if command["type"] not in known:
        asked = ascii(command["type"][:20])  # quoted, so that it stays one line of text
        raise ReverieError(f"There is no command {asked}.{did_you_mean(command['type'], known)}")
    fields = known[command["type"]]
    if set(command) != {"type", *fields}:
        raise ReverieError(f"A {command['type']} has these fields and no others: {', '.join(fields)}.")
    for name, values in fields.items():
        kind = int if isinstance(values, range) else str
        if type(command[name]) is not kind or command[name] not in values:  # isinstance would accept True as 1
            allowed = f"{values[0]} to {values[-1]}" if isinstance(values, range) else " or ".join(values)
            raise ReverieError(f"{name} of a {command['type']} is {allowed}.")
    return command


def pack(kind: int, step: int, action: int, id: int, payload: bytes, uncertainty: float | None = None) -> bytes:
    """Return a binary message of the server; ``uncertainty``: of a generated frame, if its world says so."""
    return _HEADER.pack(kind, step, action, id, math.nan if uncertainty is None else uncertainty) + payload


def unpack(message: bytes) -> tuple[int, int, int, int, float, bytes]:
    """Return (kind, step, action, id, uncertainty, payload) of a binary message of the server."""
    return *_HEADER.unpack_from(message), message[_HEADER.size :]
