"""What data sets with a ``dataset.json`` in the manner of the Medical Segmentation Decathlon share."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from boltzformer_monai.errors import DatasetError, why
from boltzformer_monai.limits import read_json

__all__ = ["entries", "read_description", "target_labels"]


def read_description(path: Path, *, what: str) -> dict[str, Any]:
    """Return the checked content of a ``dataset.json``.

    Args:
        path: the file.
        what: what it should describe, for messages: "one Decathlon task, such as Task04_Hippocampus".

    Raises:
        DatasetError: it is missing, damaged, or of another form.
    """
    try:
        content = read_json(path)
    except FileNotFoundError:
        msg = f"{path}: no such file; give the folder of {what}"
        raise DatasetError(msg) from None
    except (OSError, ValueError) as error:
        msg = f"{path}: cannot be read as JSON ({why(error)})"
        raise DatasetError(msg) from None
    if isinstance(content, dict) and "channel_names" in content:
        msg = f"{path}: is written for nnU-Net; use --recipe folder, which reads it"
        raise DatasetError(msg)
    kinds = {"modality": dict, "labels": dict, "training": list}
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in kinds.items()):
        msg = f"{path}: lacks modality, labels or training; it is not the dataset.json of {what}"
        raise DatasetError(msg)
    if not all(isinstance(value, str) for key in ("modality", "labels") for value in content[key].values()):
        msg = f"{path}: modality and labels must give a name for every number"
        raise DatasetError(msg)
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
        msg = f"{path}: an entry of {key} has no image or no label"
        raise DatasetError(msg)
    for entry in listed:
        image, label = (_place(path.parent, entry[part]) for part in ("image", "label"))
        if image.name.startswith("._"):  # macOS leaves these behind in archives; they are no scans
            continue
        for file in (image, label):
            if not file.is_file():
                msg = f"{path}: names {file}, which does not exist; unpack the data set completely"
                raise DatasetError(msg)
        yield re.sub(r"\.nii(\.gz)?$", "", image.name), image, label


def _place(folder: Path, name: str) -> Path:
    """Return the file of an entry, which Windows may have written with backslashes."""
    place = folder / name
    return place if place.is_file() else folder / name.replace("\\", "/")
