"""Data sets with a ``dataset.json``: in the manner of the Medical Segmentation Decathlon, or of nnU-Net (version 2)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from boltzformer_monai.data.label_names import LabelMap, canonical_labels
from boltzformer_monai.errors import BoltzFormerError, DatasetError
from boltzformer_monai.limits import read_json_description
from boltzformer_monai.modality import modality_of_channel

DESCRIPTION_FILE = "dataset.json"


def read_description(path: Path, *, what: str) -> dict[str, Any]:
    """Return the checked content of a ``dataset.json``, which should describe ``what`` (for messages).

    Raises:
        DatasetError: it is missing, damaged, or of another form.
    """
    content = read_json_description(path, missing=f"no such file; give the folder of {what}")
    if isinstance(content, dict) and "channel_names" in content:
        raise DatasetError(f"{path}: is written for nnU-Net; use --recipe folder, which reads it")
    kinds = {"modality": dict, "labels": dict, "training": list}
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in kinds.items()):
        raise DatasetError(f"{path}: lacks modality, labels or training; it is not the dataset.json of {what}")
    if not all(isinstance(value, str) for key in ("modality", "labels") for value in content[key].values()):
        raise DatasetError(f"{path}: modality and labels must give a name for every number")
    return content


def target_labels(content: Mapping[str, Any]) -> dict[str, str]:
    """Return label value → name without the background."""
    return {value: name for value, name in content["labels"].items() if value != "0"}


def entries(path: Path, content: Mapping[str, Any], key: str) -> Iterator[tuple[str, Path, Path]]:
    """Yield (stem, image, label) of one list; both files exist.

    Raises:
        DatasetError: an entry has no image or no label, or names a file that is not there.
    """
    listed = content.get(key, [])
    if not isinstance(listed, list) or not all(
        isinstance(entry, dict) and all(isinstance(entry.get(part), str) for part in ("image", "label"))
        for entry in listed
    ):
        raise DatasetError(f"{path}: an entry of {key} has no image or no label")
    for entry in listed:
        image, label = (_place(path.parent, entry[part]) for part in ("image", "label"))
        if image.name.startswith("._"):  # macOS leaves these behind in archives; they are no scans
            continue
        for file in (image, label):
            if not file.is_file():
                raise DatasetError(f"{path}: names {file}, which does not exist; unpack the data set completely")
        yield re.sub(r"\.nii(\.gz)?$", "", image.name), image, label


def _place(folder: Path, name: str) -> Path:
    """Return the file of an entry, which Windows may have written with backslashes."""
    place = folder / name
    return place if place.is_file() else folder / name.replace("\\", "/")


def read_nnunet_names(path: Path, *, channel: int | None) -> LabelMap | None:
    """Read names of labels, and the modality from the name of a channel.

    ``{"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "kidney": [2, 3]}}``; a region is a target
    of several values. Only channels called as a modality say one; that of "zscore" is given by ``--modality``.

    Returns:
        The names; None for a ``dataset.json`` of another kind.

    Raises:
        DatasetError: it is damaged, the channel is of another modality than CT and MR, two labels mean the same voxels,
            or some voxels say "ignore", which nothing here can express.
    """
    content = read_json_description(path)
    if not isinstance(content, dict) or "channel_names" not in content:
        return None
    channels, labels = content["channel_names"], content.get("labels")
    if not isinstance(channels, dict) or not isinstance(labels, dict):
        raise DatasetError(f"{path}: its channel_names and labels must be objects, as nnU-Net writes them")
    if any(name.strip().lower() == "ignore" for name in labels):
        msg = f'{path}: has a label "ignore", whose voxels are neither a target nor its absence; remove these scans'
        raise DatasetError(msg)
    values = {name: _value(path, name, value) for name, value in labels.items() if name.strip().lower() != "background"}
    named = {value: name for name, value in values.items()}
    if len(named) < len(values):
        raise DatasetError(f"{path}: two of its labels have the same values")
    try:
        canonical_labels(named)
        spoken = modality_of_channel(str(channels.get(str(channel or 0), "")))
    except BoltzFormerError as error:
        raise DatasetError(f"{path}: {error}") from None
    return LabelMap(named, spoken or "unknown")


def _value(path: Path, name: str, value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(each, int) and not isinstance(each, bool) and each > 0 for each in values):
        raise DatasetError(f'{path}: the values of "{name}" must be whole numbers above 0, not {value!r}')
    return "+".join(map(str, sorted(values)))
