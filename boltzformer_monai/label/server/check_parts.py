"""What several checks of requests have in common."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException

from boltzformer_monai.data.prompts import control_character
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.label.infer_request import IGNORED, KEYS
from boltzformer_monai.label.label_info import names_in
from boltzformer_monai.label.safe_ids import parse_json


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
        if key not in keys and key not in IGNORED and key not in KEYS:
            msg = f"unknown parameter {str(key)[:60]!a}; known are {', '.join(keys)}"
            raise ConfigError(msg)


def plain_values(params: Mapping[str, Any]) -> None:
    """What MONAI Label's own code uses as a text or number is one."""
    for key in IGNORED.intersection(params) - {"label_info"}:
        if not isinstance(params[key], str | int | float | None):
            msg = f"{key} must be a text, a number, true or false, got {str(params[key])[:40]!a}"
            raise ConfigError(msg)
    if not re.fullmatch(r"all|[0-9,]*", str(params.get("gpus") or "all")):
        msg = f"gpus must be all, or numbers with a comma between them, got {str(params['gpus'])[:40]!a}"
        raise ConfigError(msg)


def check_label_info(params: Mapping[str, Any]) -> None:
    """Names that come with a label can be read: what is misspelt would be forgotten, and the label never learned."""
    listed = params.get("label_info")
    for each in listed if isinstance(listed, list) else ():
        name = each.get("name") if isinstance(each, dict) else None
        if isinstance(name, str) and (control := control_character(name)):
            msg = f"the name {name[:60]!a} holds the control character U+{ord(control):04X}; leave it out"
            raise ConfigError(msg)
    if listed and not names_in({"label_info": listed}):
        msg = 'label_info must be a list of {"name": "left kidney", "idx": 1}, idx being the value in the label map'
        raise ConfigError(f"{msg}; got {str(listed)[:60]!a}")


def whole_numbers(params: Mapping[str, Any], keys: Sequence[str], *, low: int = 0, high: int = 100_000) -> None:
    for key in keys:
        value = params.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high):
            msg = f"{key} must be a whole number from {low} to {high}, got {str(value)[:40]!a}"
            raise ConfigError(msg)


def image_info(info: Mapping[str, Any]) -> None:
    for key in ("strategy", "name", "path", "ts"):
        if key in info:
            msg = f"{key!r} is what the server itself notes about an image"
            raise ConfigError(msg)


def trainer_numbers(params: Mapping[str, Any]) -> None:
    whole_numbers(params, ("epochs",), low=1, high=1000)
    rate = params.get("learning_rate")
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1):
        msg = f"learning_rate must lie between 0 and 1, got {str(rate)[:40]!a}"
        raise ConfigError(msg)
