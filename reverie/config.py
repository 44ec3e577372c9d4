"""Frozen dataclasses as configuration: to JSON and back, flat text, replacement by dotted path.

A config is also a factory: it has ``make(rngs)``, and the module that it makes takes ``(config, *, rngs)`` and nothing
else. JSON holds the class of every nested config, so a checkpoint describes itself. Only dataclasses of this package
are imported by name, of packages in ``packages``, and of installed packages with sources for Reverie. So a config file
is data and cannot run code.
"""

import dataclasses
import importlib
import importlib.metadata
import types
import typing
from typing import Any

from reverie.errors import ReverieError, did_you_mean

CLASS = "class"  # the JSON key that names a config's class, as "module:Class"
SOURCES = "reverie.sources"  # the group of entry points in which other packages name sources: NAME = "module:Config"
packages = {__name__.partition(".")[0]}  # whose dataclasses JSON may name; add your own for configs of your own
FROM_DATA = {"from_data": True}  # metadata of a field that follows from the data or the tokenizer: no flag sets it
# Fields that were renamed, by class: runs that were saved under the old names load as before.
RENAMED = {
    "TransformerConfig": {"places": "position_embeddings"},
    "VQConfig": {"thrift": "rate_penalty"},
    "TokenLAMConfig": {"free": "continuous_share", "told": "rate_target", "nearness": "distance_weight"},
    "MaskGITConfig": {"pace": "schedule"},
    "DiffusionConfig": {"images": "image_share", "short": "short_length", "whole": "long_share"},
    "ShortcutConfig": {"steepest": "velocity_clip", "teacher": "ema_teacher"},
    "DynamicsObjective": {"slips": "action_noise"},
    "Run": {"few": "augment_below"},
    "Comparison": {"arithmetic": "flops"},
}


def to_json(value: Any) -> Any:
    """Return ``value`` (a config, or any nesting of configs, tuples, dicts and scalars) as plain JSON data."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {CLASS: f"{type(value).__module__}:{type(value).__qualname__}", **fields}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a config holds plain values only, not {type(value).__name__}")


def from_json(data: Any) -> Any:
    """Rebuild what ``to_json`` wrote, also under older field names (``RENAMED``); lists become tuples.

    Unknown fields and foreign classes raise ReverieError.
    """
    if isinstance(data, list):
        return tuple(from_json(item) for item in data)
    if not isinstance(data, dict):
        return data
    if CLASS not in data:
        return {key: from_json(item) for key, item in data.items()}
    cls = _config_class(data[CLASS])
    known = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    values = {}
    for key, item in data.items():
        if key == CLASS:
            continue
        if key not in known and (present := _renamed(cls, key)) != key:
            if present in data:
                raise ReverieError(f"{cls.__name__} has '{present}' twice: under its old name '{key}' as well.")
            key = present
        if key not in known:
            raise ReverieError(f"{cls.__name__} has no field '{key}'.{did_you_mean(key, known)}")
        values[key] = from_json(item)
        if not _fits(values[key], hints[key]):
            raise ReverieError(f"{cls.__name__}.{key} cannot be {values[key]!r}: it is a {_name(hints[key])}.")
    try:
        return cls(**values)
    except (TypeError, ValueError, ArithmeticError) as error:  # a field is missing, or values contradict each other
        raise ReverieError(f"{cls.__name__} cannot be read: {error}.") from None


def replace(config: Any, **changes: Any) -> Any:
    """Return ``config`` with fields replaced; a dotted path reaches nested ones: ``replace(c, **{"net.depth": 2})``."""
    for path, value in changes.items():
        head, _, rest = path.partition(".")
        names = [f.name for f in dataclasses.fields(config)]
        if head not in names:
            raise ReverieError(f"{type(config).__name__} has no field '{head}'.{did_you_mean(head, names)}")
        new = replace(getattr(config, head), **{rest: value}) if rest else value
        config = dataclasses.replace(config, **{head: new})
    return config


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return a config as ``{"dotted.path": scalar}``, in field order; the text that golden tests compare."""
    data = to_json(value)
    if isinstance(data, dict):
        items = data.items()
    elif isinstance(data, list) and any(isinstance(item, dict | list) for item in data):
        items = enumerate(data)
    else:
        return {prefix: data}
    flat = {}
    for key, item in items:
        flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat


def differences(old: Any, new: Any) -> dict[str, str]:
    """Return in which fields two configs differ, ``{"dotted.path": "dotted.path 1 -> 2"}``."""
    a, b = flatten(old), flatten(new)
    return {name: f"{name} {a.get(name)!r} -> {b.get(name)!r}" for name in a | b if a.get(name) != b.get(name)}


def _renamed(cls: type, field: str) -> str:
    """Return the present name of a config's field."""
    return next((RENAMED[c.__name__][field] for c in cls.__mro__ if field in RENAMED.get(c.__name__, ())), field)


def _config_class(name: str) -> type:
    module, _, qualname = str(name).partition(":")
    package = module.partition(".")[0]
    inside = package in packages or any(
        entry.module.partition(".")[0] == package for entry in importlib.metadata.entry_points(group=SOURCES)
    )
    try:
        cls = getattr(importlib.import_module(module), qualname) if inside and qualname.isidentifier() else None
    except (ImportError, AttributeError, ValueError):
        cls = None
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ReverieError(f"'{name}' is not a config of this version of Reverie; it may come from a newer one.")
    return cls


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value fits a field's annotation; annotations that say little (Any, protocols) accept all."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is typing.Literal:
        return value in args
    if origin is tuple:
        return isinstance(value, tuple) and (
            all(_fits(item, args[0]) for item in value)
            if len(args) == 2 and args[1] is Ellipsis
            else len(value) == len(args) and all(map(_fits, value, args))
        )
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str, type(None)):
        return isinstance(value, type(None) if hint is None else hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return isinstance(value, hint)
    return True


def _name(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint)
