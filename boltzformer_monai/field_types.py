"""Check the values of a settings dataclass against its annotations: a text ``"false"`` is true to Python."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from boltzformer_monai.errors import ConfigError

__all__ = ["check_types", "check_value", "is_scalar"]

_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "nothing"}


def check_types(settings: Any) -> None:
    """Compare every field of a dataclass with its annotation.

    Supported are plain types, unions, ``Literal``, ``list[X]``, ``tuple[X, ...]`` and ``Mapping[X, Y]``. An int is
    accepted as a float; a bool is not.

    Raises:
        ConfigError: a value is of another type.
    """
    hints = get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        check_value(field.name, getattr(settings, field.name), hints[field.name])


def check_value(name: str, value: object, kind: Any) -> None:
    """Compare one value with its annotation.

    Raises:
        ConfigError: it is of another type.
    """
    if not _matches(value, kind):
        raise ConfigError(f"{name} must be {_describe(kind)}, got {reprlib.repr(value)}")


def is_scalar(kind: Any) -> bool:
    """Whether an annotation is a bool, number, text or None, or a choice of these."""
    if get_origin(kind) in (Union, UnionType):
        return all(map(is_scalar, get_args(kind)))
    return kind in _NAMES


def _matches(value: object, kind: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(_matches(value, each) for each in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin in (list, tuple):
        return isinstance(value, origin) and all(_matches(each, arguments[0]) for each in value)
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
    if origin in (list, tuple):
        return f"a list, each {_describe(arguments[0])}"
    if origin is Mapping:
        return "a mapping" if arguments[1] is Any else f"a mapping of names, each to {_describe(arguments[1])}"
    return _NAMES[kind]
