"""Configs as flags: every nested field is one, ``--dynamics.objective.dynamics.transformer.depth 12``."""

import contextlib
import dataclasses
import io
import itertools
import typing
from typing import Any

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from reverie.config import flatten
from reverie.errors import ReverieError, did_you_mean


def flags(config: type, args: list[str], prog: str, **default: Any) -> Any:
    """Return a ``config``, or its ``default`` with what ``args`` change; ReverieError for a flag that no field has.

    ``prog`` is how the command was called, for the help text.
    """
    registry = ConstructorRegistry()
    registry.struct_rule(_filled_protocol)
    # `--x True` instead of `--x` and `--no-x`; what may be None keeps the kind it has in the preset.
    style = (tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            value, unknown = tyro.cli(
                config, args=args, prog=prog, config=style, registry=registry, return_unknown_args=True, **default
            )
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise ReverieError(f"{_first_words(complaint.getvalue())}. '{prog} --help' lists every flag.") from None
    if unknown:
        known = [f"--{name.replace('_', '-')}" for name in flatten(value) if not name.endswith("class")]
        raise ReverieError(f"{prog} does not know '{unknown[0]}'.{did_you_mean(unknown[0], known)}")
    return value


def _first_words(box: str) -> str:
    """What tyro complains about, out of the box it draws: all before the first rule across it."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]
    return " ".join(itertools.takewhile(lambda line: line.strip("─╰╯"), lines)).rstrip(".")


def _filled_protocol(info: StructTypeInfo) -> StructConstructorSpec | None:
    """A field typed by a protocol has the flags of the dataclass that fills it."""
    if dataclasses.is_dataclass(info.type) or not dataclasses.is_dataclass(info.default):
        return None
    cls, fields = type(info.default), []
    hints = typing.get_type_hints(cls)
    for name, hint in ((field.name, hints[field.name]) for field in dataclasses.fields(info.default)):
        value, choices = getattr(info.default, name), typing.get_args(hint)
        if any(map(dataclasses.is_dataclass, choices)):  # a folder or a config: flags for the one that is there
            plain = tuple(choice for choice in choices if not dataclasses.is_dataclass(choice))
            hint: Any = type(value) if dataclasses.is_dataclass(value) else typing.Union[plain]  # noqa: UP007
        fields.append(StructFieldSpec(name, hint, value))
    return StructConstructorSpec(cls, tuple(fields))
