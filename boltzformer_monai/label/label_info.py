"""Metadata saved with a label: segment names, caveats, and the hash of its file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from boltzformer_monai.caveats import Caveat
from boltzformer_monai.data.prompts import control_character, normalise_target
from boltzformer_monai.errors import ConfigError

SHA256 = "file_sha256"
"""Key of the hash of the label file that the metadata was saved with."""
_MAX_VALUE = 255


def as_label_info(names: Mapping[int, str]) -> list[dict[str, Any]]:
    """Value → name as the list that 3D Slicer saves: ``[{"name", "idx"}]``."""
    return [{"name": name, "idx": value} for value, name in sorted(names.items())]


def names_in(info: Mapping[str, Any]) -> dict[int, str]:
    """Value → name from the metadata of 3D Slicer (``[{"name", "idx"}]``), OHIF (``[{"name"}]``) or this server."""
    saved = info.get("label_info") or info.get("label_names")
    params = info.get("params")
    if not saved and isinstance(params, Mapping):
        saved = params.get("label_info") or params.get("label_names")
    pairs: list[tuple[Any, Any]] = []
    if isinstance(saved, Mapping):
        pairs = [(value, name) for name, value in saved.items()]
    elif isinstance(saved, list):
        for position, each in enumerate(saved, 1):
            if isinstance(each, Mapping):
                pairs.append((each.get("idx", each.get("labelValue", position)), each.get("name")))
    names: dict[int, str] = {}
    for value, name in pairs:
        valid = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MAX_VALUE
        if valid and isinstance(name, str) and _as_prompt(name) and normalise_target(name) not in ("", "background"):
            names[value] = _as_prompt(name)
    return names


def caveats_in(info: Mapping[str, Any]) -> tuple[Caveat, ...]:
    """Caveats of a label that the model made, with prompts named as by :func:`names_in`.

    Raises:
        ConfigError: they are not in the form that this server writes.
    """
    params = info.get("params")
    listed = params.get("caveats") if isinstance(params, Mapping) else None
    found = []
    for each in listed if isinstance(listed, list) else ():
        kind, text, prompt = (
            each.get(key) if isinstance(each, Mapping) else None for key in ("kind", "text", "prompt")
        )
        if not (isinstance(kind, str) and isinstance(text, str) and isinstance(prompt, str | None)):
            msg = f"a caveat of a label needs a kind, a text and optionally a prompt, got {str(each)[:60]!a}"
            raise ConfigError(msg)
        found.append(Caveat(kind, text, prompt and _as_prompt(prompt)))
    return tuple(found)


def _as_prompt(name: str) -> str:
    """A segment name as a later prompt: one line, without control characters."""
    while (control := control_character(name)) is not None:
        name = name.replace(control, " ")
    return " ".join(name.split())[:200]
