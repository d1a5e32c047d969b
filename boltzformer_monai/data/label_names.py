"""Names of label values: reading ``labels.json`` and comparing it with a label volume."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from boltzformer_monai.data.prompts import normalise_site, normalise_target
from boltzformer_monai.errors import ConfigError, DatasetError, did_you_mean
from boltzformer_monai.limits import read_json_description, unique_keys
from boltzformer_monai.modality import parse_modality, settled_modality

__all__ = ["LabelMap", "canonical_labels", "check_values", "parse_label_values", "read_label_names"]

_BACKGROUND = ("0", "background")
_KEYS = ("labels", "modality", "site")


@dataclass(frozen=True)
class LabelMap:
    """The content of a ``labels.json``: ``{"modality", "site", "labels": {value: name}}``.

    Attributes:
        labels: value (``"2"``, or ``"2+3"`` for a target of several values) → name as written, background left out.
        modality: ``"CT"``, ``"MR"`` or ``"unknown"``.
        site: body site, ``""`` when the file names none.
    """

    labels: Mapping[str, str]
    modality: str = "unknown"
    site: str = ""

    def settled(self, wanted: str | None, *, source: object) -> LabelMap:
        """With its own modality, else the user's.

        Args:
            wanted: ``"CT"`` or ``"MR"`` from the user, or None.
            source: the file that it was read from.

        Raises:
            VolumeError: the user's modality differs from the file's.
        """
        stated = "" if self.modality == "unknown" else self.modality
        return replace(self, modality=settled_modality(stated, wanted, source=f"{source}: it says"))


def read_label_names(path: str | os.PathLike[str]) -> LabelMap:
    """Read a ``labels.json``; other keys are ignored.

    Raises:
        DatasetError: the file is missing, has another form, a duplicate key, or a misspelled one.
    """
    place = Path(path)
    content = read_json_description(place, encoding="utf-8-sig", object_pairs_hook=partial(_unique, place))
    content = content if isinstance(content, dict) else {}
    _check_keys(place, content)
    labels, modality, site = content.get("labels"), content.get("modality", ""), content.get("site", "")
    if not isinstance(labels, dict) or not all(isinstance(text, str) for text in (*labels.values(), modality, site)):
        msg = f'{place}: needs the form {{"modality": "CT", "site": "abdomen", "labels": {{"1": "spleen", …}}}}'
        raise DatasetError(msg)
    try:
        named = {value: name for value, name in labels.items() if (value.strip(), name.strip().lower()) != _BACKGROUND}
        canonical_labels(named)
        return LabelMap(named, parse_modality(modality), normalise_site(site))
    except (ConfigError, DatasetError) as error:
        raise DatasetError(f"{place}: {error}") from None


def parse_label_values(text: str | int) -> tuple[int, ...]:
    """Read ``"2"``, ``2`` or a composite ``"2+3"`` as ascending label values.

    Raises:
        DatasetError: a part is not a whole number from 1 to 65535, or occurs twice.
    """
    parts = str(text).split("+")
    values = sorted({int(part) for part in parts if part.strip().isdecimal() and len(part) < 9})
    if len(values) != len(parts) or not 1 <= values[0] <= values[-1] <= 65535:
        msg = f"label value {text!r} is not a whole number from 1 to 65535, nor several joined by +, like 2+3"
        raise DatasetError(msg)
    return tuple(values)


def canonical_labels(labels: Mapping[int | str, str] | Mapping[int, str] | Mapping[str, str]) -> dict[str, str]:
    """Return canonical target name → value text (``"2"``, ``"2+3"``), in the order given.

    Raises:
        DatasetError: there are none, a value is invalid, two values mean the same target, or one value, also in two
            spellings such as ``"1"`` and ``"01"``, means two.
    """
    targets: dict[str, str] = {}
    names: dict[str, str] = {}
    for value, name in labels.items():
        text = "+".join(str(part) for part in parse_label_values(value))
        if names.setdefault(text, name) != name:
            raise DatasetError(f'label value {text} is named "{names[text]}" and "{name}"; keep one of them')
        target = normalise_target(name)
        if not target:
            raise DatasetError(f"label value {text} has an empty name")
        if target in targets:
            msg = (
                f'label values {targets[target]} and {text} are both named "{target}"; name one target of several '
                f'values as "{targets[target]}+{text}"'
            )
            raise DatasetError(msg)
        targets[target] = text
    if not targets:
        raise DatasetError("no label value has a name")
    return targets


def check_values(array: np.ndarray, labels: Mapping[str, str], *, where: str, allow_missing: bool = False) -> list[str]:
    """Compare a label volume with the names of its values.

    Args:
        array: label values, any shape.
        labels: value text → name.
        where: name of the label volume for messages.
        allow_missing: accept named values that do not occur as annotated and absent.

    Returns:
        Warnings: one line about missing values (if allowed), one about values without a name.

    Raises:
        DatasetError: a named value does not occur (unless allowed), or none does.
    """
    occurring = _occurring(array) - {0}
    named = {text: parse_label_values(text) for text in labels}
    missing = [
        f'{value} ("{labels[text]}")' for text, values in named.items() for value in values if value not in occurring
    ]
    there = _some(sorted(occurring)) or "none"
    all_named = {value for values in named.values() for value in values}
    if not all_named & occurring:
        msg = f"{where}: none of the named label values occurs (values there: {there}); is it the right label map?"
        raise DatasetError(msg)
    warnings = []
    if missing:
        line = f"{where}: {_values(missing)} not occur in the label volume (values there: {there})"
        if not allow_missing:
            raise DatasetError(f"{line}; correct labels.json, or keep the target as absent with --allow-missing")
        warnings.append(f"{line}; annotated and absent")
    unnamed = sorted(occurring - all_named)
    if unnamed:
        warnings.append(f"{where}: no name for label value {_some(unnamed)}, which becomes no target")
    return warnings


def _occurring(array: np.ndarray) -> set[int]:
    """Values of an array, by a look-up table, which is much faster than sorting a volume."""
    if array.dtype.itemsize > 2 or array.dtype.kind not in "bu":
        return {int(value) for value in np.unique(array)}
    seen = np.zeros(np.iinfo(np.uint16).max + 1, dtype=bool)
    seen[array.ravel(order="K").astype(np.uint16, copy=False)] = True
    return set(np.flatnonzero(seen).tolist())


def _values(missing: list[str]) -> str:
    return f"label value {missing[0]} does" if len(missing) == 1 else f"label values {_some(missing)} do"


def _some(items: Sequence[object], *, most: int = 20) -> str:
    """The first ``most`` items as text."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more


def _unique(place: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without duplicate keys."""
    try:
        return unique_keys(pairs)
    except ValueError as error:
        raise DatasetError(f"{place}: {error}") from None


def _check_keys(place: Path, content: Mapping[str, Any]) -> None:
    """Raise a ``DatasetError`` for a misspelled key, and for labels the wrong way round."""
    for key in content.keys() - set(_KEYS):
        if hint := did_you_mean(key.strip().lower(), _KEYS, show='"{}"'.format, otherwise="", cutoff=0.8):
            raise DatasetError(f'{place}: has the unknown key "{key}"; {hint}')
    labels = content.get("labels")
    if not isinstance(labels, dict) or not labels or any(_is_value(name) for name in labels):
        return
    if all(_is_value(value) for value in labels.values()):
        name, value = next(iter(labels.items()))
        text = "+".join(map(str, value)) if isinstance(value, list) else value
        msg = f'{place}: its labels are the wrong way round; write value: name, as in {{"{text}": "{name}"}}'
        raise DatasetError(msg)


def _is_value(part: object) -> bool:
    """Whether it is a label value, or several as in nnU-Net."""
    if isinstance(part, list):
        return all(isinstance(each, int) for each in part)
    return isinstance(part, int) or (isinstance(part, str) and part.replace("+", "").strip().isdecimal())
