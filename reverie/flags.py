"""Configs as flags of the command line: every nested field is one, ``--dynamics.objective.dynamics.passes 12``.

The text of a flag is the comment beside its field, or the comment lines above it, read from the source when help is
asked for.
"""

import argparse
import ast
import dataclasses
import functools
import inspect
import io
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from reverie.config import FROM_DATA
from reverie.errors import ReverieError, did_you_mean

MARK = "."  # before a dotted path where the parsed flags of a config are kept beside a command's own
IN_A_LINE = 60  # characters of a flag's choices
KINDS = {int: ("INT", "a whole number"), float: ("FLOAT", "a number"), str: ("TEXT", "a text")}


class Flag(NamedTuple):
    """A field that can be set: its dotted path, its annotation, its value now, and the class that has it."""

    path: str
    hint: Any
    value: Any
    owner: type

    @property
    def name(self) -> str:
        """As it is typed."""
        return f"--{self.path}".replace("_", "-")

    @property
    def text(self) -> str:
        """What it means, and its value; "" where the source says nothing."""
        text = texts(self.owner).get(self.path.rpartition(".")[2], "")
        shown = "" if self.value is dataclasses.MISSING or self.value in ("", ()) else f" ({written(self.value)})"
        return text and text + shown


def flags_of(value: Any, prefix: str = "") -> Iterator[Flag]:
    """Yield the flags of a config, of a dict of configs, or of a config's class, whose fields have their defaults.

    Fields that follow from the data have none (``config.FROM_DATA``). A field that may hold a config or a plain value
    has the flags of what it holds. One that may hold several kinds of config is a flag too, which takes the name of a
    class, and has the flags of all of them.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flags_of(item, f"{prefix}{key}.")
        return
    owner = _class(value)
    hints = typing.get_type_hints(owner)
    for field in dataclasses.fields(owner):
        item, path = held(value, field.name), prefix + field.name
        if field.metadata == FROM_DATA:
            continue
        if kinds := _configs(hints[field.name]):
            yield Flag(path, Literal[tuple(kinds)], type(item).__name__, owner)
            found: dict[str, Flag] = {}
            for kind in (*kinds.values(), item):  # what it holds now comes last: its values are shown
                found |= {flag.path: flag for flag in flags_of(kind, f"{path}.")}
            yield from found.values()
        elif dataclasses.is_dataclass(item) or isinstance(item, dict):
            yield from flags_of(item, f"{path}.")
        elif (hint := _plain(hints[field.name])) is not None:
            yield Flag(path, hint, item, owner)


def held(value: Any, name: str) -> Any:
    """Return what a field of a config holds, or an entry of a dict; of a class, the default, MISSING if it has none."""
    if isinstance(value, dict):
        return value[name]
    if not isinstance(value, type):
        return getattr(value, name)
    field = next(field for field in dataclasses.fields(value) if field.name == name)
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def changed(value: Any, settings: dict[str, Any]) -> Any:
    """Return a config with fields set by dotted path; of a class, one made with them. ReverieError if they misfit."""
    parts: dict[str, dict[str, Any]] = {}
    for path, new in settings.items():
        head, _, rest = path.partition(".")
        parts.setdefault(head, {})[rest] = new
    new = {head: _set(value, head, part) for head, part in parts.items()}
    if isinstance(value, dict):
        return value | new
    known = {field.name for field in dataclasses.fields(value)}
    if unknown := next((name for name in new if name not in known), ""):
        raise ReverieError(f"{_class(value).__name__} has no field '{unknown}'.{did_you_mean(unknown, known)}")
    try:
        return value(**new) if isinstance(value, type) else dataclasses.replace(value, **new)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ReverieError(f"{error}.") from None


def _set(value: Any, name: str, part: dict[str, Any]) -> Any:
    """Return what a field holds after ``part`` was set: "" is all of it, the others are fields of the config in it."""
    if "" not in part:
        return changed(held(value, name), part)
    rest = {path: new for path, new in part.items() if path}
    kinds = {} if isinstance(value, dict) else _configs(typing.get_type_hints(_class(value)).get(name))
    return changed(kinds[part[""]], rest) if part[""] in kinds else part[""]


def _class(value: Any) -> type:
    return value if isinstance(value, type) else type(value)


def _configs(hint: Any) -> dict[str, type]:
    """Return the kinds of config that an annotation allows, by name, if it allows several."""
    found = {kind.__name__: kind for kind in _kinds(hint) if isinstance(kind, type) and dataclasses.is_dataclass(kind)}
    return found if len(found) > 1 else {}


def add(parser: Any, flag: Flag, text: str | None) -> argparse.Action:
    """Add a flag to a parser or a group of one. ``text``: None hides it from the help."""
    hint, nargs = flag.hint, None
    for kind in _kinds(hint):
        if typing.get_origin(kind) is tuple:
            items = typing.get_args(kind)
            hint, nargs = items[0], "*" if items[-1] is Ellipsis else len(items)
    alone = {"nargs": "?", "const": True} if hint is bool else {"nargs": nargs}  # a switch may stand without its value
    how = of(hint)
    known = ", ".join(map(str, how.get("choices", ())))
    if text is not None and len(known) > IN_A_LINE:  # argparse does not break the list of a flag's choices
        how, text = how | {"metavar": "NAME"}, f"{text}; one of {known}"
    return parser.add_argument(
        flag.name,
        dest=MARK + flag.path,
        **alone,
        default=argparse.SUPPRESS,
        required=flag.value is dataclasses.MISSING,
        help=argparse.SUPPRESS if text is None else text.replace("%", "%%"),
        **how,
    )


def of(hint: Any) -> dict[str, Any]:
    """Return how argparse reads one word as a value of an annotation, and shows it."""
    how = {"type": functools.partial(read, hint)}
    if known := options(hint):
        return how | {"choices": known}
    return how | {"metavar": next(KINDS[kind][0] for kind in KINDS if kind in _kinds(hint))}


def settings(args: argparse.Namespace, mark: str = MARK) -> dict[str, Any]:
    """Return what was set of a config, by dotted path; ``mark`` is what the parsed flags begin with."""
    return {
        key.removeprefix(mark): tuple(value) if isinstance(value, list) else value
        for key, value in vars(args).items()
        if key.startswith(mark)
    }


def options(hint: Any) -> list[Any] | None:
    """Return the values that an annotation names one by one, None if there are too many."""
    found = [option for kind in _kinds(hint) for option in _named(kind)]
    return found if found and all(_named(kind) for kind in _kinds(hint)) else None


def read(hint: Any, word: str) -> Any:
    """Return a word as a value of an annotation; ArgumentTypeError says what it should be."""
    kinds = _kinds(hint)
    for option in (option for kind in kinds for option in _named(kind)):
        if word.lower() == written(option).lower():
            return option
    for kind in (kind for kind in (int, float, str) if kind in kinds):
        try:
            return kind(word)
        except ValueError:
            continue
    if known := options(hint):
        raise argparse.ArgumentTypeError(f"there is no '{word}'.{did_you_mean(word, map(written, known))}")
    raise argparse.ArgumentTypeError(
        f"'{word}' is not {' or '.join(KINDS[kind][1] for kind in KINDS if kind in kinds)}"
    )


def written(value: Any) -> str:
    """Return a value as it is typed behind its flag."""
    return " ".join(map(written, value)) if isinstance(value, tuple) else str(value)


def _kinds(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _named(kind: Any) -> tuple[Any, ...]:
    """The values of an annotation that has few."""
    if typing.get_origin(kind) is Literal:
        return typing.get_args(kind)
    return (True, False) if kind is bool else (None,) if kind is types.NoneType else ()


def _plain(hint: Any) -> Any:
    """Return an annotation without the configs it allows; None if nothing is left to type."""
    kinds = [kind for kind in _kinds(hint) if kind in KINDS or _named(kind) or typing.get_origin(kind) is tuple]
    typed = [kind for kind in kinds if kind is not types.NoneType]
    return typing.Union[tuple(kinds)] if typed else None  # noqa: UP007


@functools.cache
def texts(config: type) -> dict[str, str]:
    """Return the text of each field of a config class by its name, from the comments of its source."""
    found: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        if dataclasses.is_dataclass(cls):
            found |= _comments(cls)
    return found


def _comments(cls: Any) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except OSError:  # installed without its source
        return {}
    lines, comments = source.splitlines(), {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ").replace("``", "").strip()
    found = {}
    body: Any = ast.parse(source).body[0]
    for node in body.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        beside = [comments[line] for line in range(node.lineno, (node.end_lineno or 0) + 1) if line in comments]
        above, line = [], node.lineno - 1
        while not beside and line in comments and lines[line - 1].lstrip().startswith("#"):
            above.insert(0, comments[line])
            line -= 1
        if text := " ".join(beside or above):
            found[node.target.id] = text
    return found
