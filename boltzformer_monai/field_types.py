"""Check the values of a settings dataclass against its annotations: a text ``"false"`` is true to Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from boltzformer_monai.errors import ConfigError

__all__ = ["check_types"]

_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "nothing"}


def check_types(settings: Any) -> None:
    """Compare every field of a dataclass with its annotation.

    Understood are plain types, unions, ``Literal``, ``tuple[X, ...]`` and ``Mapping[X, Y]``. A whole number is a
    number, too; a bool is none.

    Raises:
        ConfigError: a value is of another type.
    """
    hints = get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if not _matches(value, hints[field.name]):
            msg = f"{field.name} must be {_describe(hints[field.name])}, got {value!r}"
            raise ConfigError(msg)


def _matches(value: object, kind: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(_matches(value, each) for each in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and all(_matches(each, arguments[0]) for each in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            _matches(key, arguments[0]) and _matches(each, arguments[1]) for key, each in value.items()
        )
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _describe(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_describe, arguments))
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin is tuple:
        return f"a list, each {_describe(arguments[0])}"
    if origin is Mapping:
        return "a mapping" if arguments[1] is Any else f"a mapping of names, each to {_describe(arguments[1])}"
    return _NAMES[kind]
