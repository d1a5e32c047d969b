"""What a model says of itself, in words: for its card and for ``boltzformer info``. Imports no PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from boltzformer_monai.data.windows import MRPercentiles, Window, window_from_dict
from boltzformer_monai.errors import CheckpointError, ConfigError, why

__all__ = [
    "initial_weights", "modalities_of", "plane_text", "provenance_text", "readable", "targets_of", "training_text",
]  # fmt: skip


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Refuse a part of a description that has another form: nobody checked it before.

    Raises:
        CheckpointError: it has.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(f"the model's description of its {what} cannot be used ({why(error)})") from error


def targets_of(data: Mapping[str, Any]) -> list[dict[str, str]]:
    """Target, modality, site and window, in words, of each kind of training data.

    Raises:
        CheckpointError: the description has another form.
    """
    rows = []
    with readable("targets"):
        for entry in data.get("targets", ()):
            row = {name: str(entry.get(name, "")) for name in ("target", "modality", "site")}
            rows.append({**row, "window": _window_text(entry["window"]) if "window" in entry else ""})
    return rows


def _window_text(content: Mapping[str, Any]) -> str:
    window = window_from_dict(content)
    if isinstance(window, Window):
        return f"level {window.level:g}, width {window.width:g} HU"
    if isinstance(window, MRPercentiles):
        return f"percentiles {window.lower:g} to {window.upper:g}"
    return "stored grey"


def modalities_of(data: Mapping[str, Any]) -> set[str]:
    """Modalities of the training data, in lower case."""
    stated = [str(entry["modality"]).lower() for entry in targets_of(data)]
    with readable("modalities"):
        return {*stated, *(str(each).lower() for each in data.get("modalities", ()))} - {"", "unknown"}


def plane_text(data: Mapping[str, Any]) -> str:
    """The plane of the slices, or several, in words where no training chose it."""
    with readable("planes"):
        if data.get("planes"):
            return ", ".join(map(str, data["planes"]))
    return str(data.get("plane") or ("as the protocol chooses" if data.get("protocol") else "axial"))


def training_text(data: Mapping[str, Any]) -> list[str]:
    """What is known of the training data, one line each.

    Raises:
        CheckpointError: the description has another form.
    """
    known = data.get("training_data")
    if not isinstance(known, Mapping):
        return []
    with readable("training data"):
        return _training_text(known)


def _training_text(known: Mapping[str, Any]) -> list[str]:
    lines = []
    if fold := known.get("fold"):
        lines.append(f"fold {fold['fold']} of {fold['folds']}, counted from 0, validated the training")
    for split, counts in known.get("splits", {}).items():
        said = (f"{count} {what.removesuffix('s') if count == 1 else what}" for what, count in counts.items())
        lines.append(f"{split}: {', '.join(said)}")
    for key in ("modalities", "sites", "planes"):
        if known.get(key):
            lines.append(f"{key}: {', '.join(f'{name} ({count})' for name, count in known[key].items())}")
    for label, key in (("pixel spacing", "pixel_spacing_mm"), ("slice spacing", "slice_spacing_mm")):
        if known.get(key):
            low, middle, high = known[key]
            lines.append(f"{label}: {low:g} to {high:g} mm, median {middle:g}")
    if known.get("sha256"):
        lines.append(f"sha256 of its records: {known['sha256']}")
    return lines


def initial_weights(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Where the training's first weights are from: ``part``, ``source``, ``file``, ``sha256``, ``licence`` each."""
    found = data.get("initial_weights", [])
    return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list | tuple) else []


def provenance_text(entry: Mapping[str, Any]) -> str:
    """One of :func:`initial_weights` in words."""
    said = [f"{entry.get('part', 'model')}: {entry.get('source', 'not stated')}"]
    said += [f"{name} {entry[name]}" for name in ("file", "revision", "sha256") if entry.get(name)]
    licence = entry.get("licence")
    if licence:
        with readable("initial weights"):
            said.append(f"licence {licence['name'] if isinstance(licence, Mapping) else licence}")
    return ", ".join(said)
