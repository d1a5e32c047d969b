"""Pydantic models checked, with every error as one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from boltzformer_monai.errors import ConfigError

_Model = TypeVar("_Model", bound=BaseModel)


def validated(model: type[_Model], values: Mapping[str, Any]) -> _Model:
    """An instance of the model.

    Raises:
        ConfigError: the first field that is unknown, missing, of another type or out of range.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in model.model_fields)
        message = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
        raise ConfigError(f"{field or first['loc'][-1]} {message}, got {str(first['input'])[:60]!a}") from None


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a number")  # noqa: TRY004 (pydantic reports ValueError only)
    return value


def _truth(value: Any) -> Any:
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


Number = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
"""A finite number, or its text: 3D Slicer's table of options holds texts. JSON's ``true`` is none."""
Integer = Annotated[int, BeforeValidator(_no_bool)]
"""A whole number, or its text."""
Truth = Annotated[bool, BeforeValidator(_truth), Field(strict=True)]
"""True or false, or its text."""
