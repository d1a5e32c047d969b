"""What several checks of requests have in common."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.label.infer_request import HARMLESS, KEYS
from boltzformer_monai.label.safety import parse_json


def parse_into(arguments: dict[str, Any], name: str) -> dict[str, Any]:
    """Check a JSON form field, where the route has it."""
    if name not in arguments:
        return {}
    arguments[name] = arguments[name] or "{}"
    return parse_json(arguments[name], name)


def require_known(name: str, things: Mapping[str, Any], what: str) -> None:
    if name not in things:
        raise HTTPException(404, f"there is no {what} {name[:60]!a}; there is {', '.join(things)}")


def only_keys(params: Mapping[str, Any], keys: Sequence[str]) -> None:
    for key in params:
        if key not in keys and key not in HARMLESS and key not in KEYS:
            msg = f"unknown parameter {str(key)[:60]!a}; known are {', '.join(keys)}"
            raise ConfigError(msg)


def plain_values(params: Mapping[str, Any]) -> None:
    """What MONAI Label's own code uses as a text or number is one."""
    for key in HARMLESS.intersection(params) - {"label_info"}:
        if not isinstance(params[key], str | int | float | None):
            msg = f"{key} must be a text, a number, true or false, got {str(params[key])[:40]!a}"
            raise ConfigError(msg)
    if not re.fullmatch(r"all|[0-9,]*", str(params.get("gpus") or "all")):
        msg = f"gpus must be all, or numbers with a comma between them, got {str(params['gpus'])[:40]!a}"
        raise ConfigError(msg)


def whole_numbers(params: Mapping[str, Any], keys: Sequence[str], *, low: int = 0, high: int = 100_000) -> None:
    for key in keys:
        value = params.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high):
            msg = f"{key} must be a whole number from {low} to {high}, got {str(value)[:40]!a}"
            raise ConfigError(msg)
