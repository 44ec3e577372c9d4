"""Pickled records of numbers, texts, bytes, lists, dicts and arrays, read without running anything.

A pickle is a program. This reader interprets its instructions as ``pickletools`` lists them and imports nothing. It
replaces the names of NumPy's array constructors by its own functions, and rejects every other name.
"""

import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

from reverie.errors import Damaged, first_line

ITEMS = 2**20  # instructions of one record
KINDS = "biufSU"  # of arrays
_MARK = object()


class _Dtype:
    """A type of numbers, whose byte order comes after it."""

    def __init__(self, name: Any, *_: Any):
        kind = np.dtype(name) if isinstance(name, str) and len(name) <= 8 else None
        if kind is None or kind.kind not in KINDS or kind.hasobject:
            raise Damaged(f"an array of type {str(name)[:20]!r}")
        self.kind = kind

    def build(self, state: Any) -> "_Dtype":
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.kind = self.kind.newbyteorder(state[1])
        return self


class _Array:
    """An array that is still to be filled."""

    def build(self, state: Any) -> np.ndarray:
        _, shape, kind, fortran, data = state
        return _filled(data, kind, shape, "F" if fortran else "C")


def _filled(data: Any, kind: Any, shape: Any, order: Any = "C") -> np.ndarray:
    if not isinstance(kind, _Dtype) or not isinstance(data, bytes | bytearray) or order not in ("C", "F"):
        raise Damaged("an array that does not hold numbers")
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    if any(not isinstance(size, int) or size < 0 for size in sizes):
        raise Damaged("an array without a shape")
    return np.frombuffer(data, kind.kind).reshape(sizes, order=order)  # ValueError unless the bytes fit the shape


def _plain(data: Any = b"", *coding: Any) -> bytes:
    if not coding and not isinstance(data, bytes):
        raise Damaged("bytes made of something else")
    return _latin(data, *coding) if coding else data


def _latin(text: Any, coding: Any) -> bytes:
    if not isinstance(text, str) or coding not in ("latin1", "latin-1"):
        raise Damaged("bytes in another coding")
    return text.encode("latin-1")


NAMES: dict[str, Callable[..., Any]] = {
    "numpy dtype": _Dtype,
    "numpy ndarray": lambda *_: _Array(),
    "_codecs encode": _latin,
    "__builtin__ bytes": lambda: b"",
    **{f"{module} bytearray": _plain for module in ("builtins", "__builtin__")},
    **{f"numpy.{core}.multiarray _reconstruct": lambda *_: _Array() for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray scalar": lambda kind, data: _filled(data, kind, ())[()] for core in ("core", "_core")},
    **{f"numpy.{core}.numeric _frombuffer": _filled for core in ("core", "_core")},
}
PLAIN = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}
VALUES = {  # instructions that put what follows them onto the stack
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


def unpickled(data: bytes) -> Any:
    """Return what a pickle holds; Damaged if it is broken or names anything but NumPy's arrays."""
    reader = _Reader()
    try:
        for count, (code, argument, _) in enumerate(pickletools.genops(data)):
            if count == ITEMS:
                raise Damaged("a record of too many parts")
            if code.name == "STOP":
                return reader.stack.pop()
            reader.follow(code.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, EOFError) as error:
        raise Damaged(f"a pickle that is broken ({first_line(error)})") from None
    raise Damaged("a pickle that ends too early")


class _Reader:
    """The stack and the notes of the machine that pickles are written for."""

    def __init__(self):
        self.stack: list[Any] = []
        self.notes: dict[int, Any] = {}

    def follow(self, name: str, argument: Any) -> None:
        """Execute one instruction."""
        if name in VALUES:
            self.stack.append(argument)
        elif name in PLAIN:
            self.stack.append(PLAIN[name])
        elif name in EMPTY:
            self.stack.append(EMPTY[name]())
        elif name == "MARK":
            self.stack.append(_MARK)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.notes[len(self.notes) if name == "MEMOIZE" else argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.notes[argument])
        elif name not in ("PROTO", "FRAME", "READONLY_BUFFER"):
            self._collect(name, argument)

    def _collect(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in ("TUPLE", "LIST", "DICT", "APPENDS", "SETITEMS", "ADDITEMS"):
            items = self._since_mark()
            if name in ("TUPLE", "LIST"):
                stack.append(tuple(items) if name == "TUPLE" else items)
            elif name == "DICT":
                stack.append(dict(zip(items[::2], items[1::2], strict=True)))
            elif name == "APPENDS":
                self._top(list).extend(items)
            elif name == "SETITEMS":
                self._top(dict).update(zip(items[::2], items[1::2], strict=True))
            else:
                self._top(set).update(items)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "APPEND":
            item = stack.pop()
            self._top(list).append(item)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            self._top(dict)[key] = value
        elif name == "POP":
            stack.pop()
        else:
            self._make(name, argument)

    def _make(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                argument = f"{module} {attribute}"
            if argument not in NAMES:
                raise Damaged(f"a pickle that wants to run {str(argument)[:60].replace(' ', '.')}: not followed")
            stack.append(NAMES[argument])
        elif name == "REDUCE":
            given, function = stack.pop(), stack.pop()
            if function not in NAMES.values():
                raise Damaged("a pickle that calls what is not a function")
            stack.append(function(*given))
        elif name == "BUILD":
            state, made = stack.pop(), stack.pop()
            if not isinstance(made, _Dtype | _Array):
                raise Damaged("a pickle that changes what it may not")
            built = made.build(state)
            stack.append(built)
            for key in [key for key, note in self.notes.items() if note is made]:
                self.notes[key] = built
        else:
            raise Damaged(f"a pickle with the instruction {name}: not followed")

    def _since_mark(self) -> list[Any]:
        place = max(index for index, item in enumerate(self.stack) if item is _MARK)
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def _top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise Damaged(f"a pickle that fills what is not a {kind.__name__}")
        return self.stack[-1]
