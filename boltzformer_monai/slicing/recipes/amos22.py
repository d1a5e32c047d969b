"""AMOS22: 15 abdominal organs in CT and MRI, which differ by their number.

Layout of the published archive: ``dataset.json``, ``imagesTr``/``labelsTr`` (training), ``imagesVa``/``labelsVa``
(validation), ``imagesTs`` (test, without labels), files ``amos_0001.nii.gz`` …; numbers up to 500 are CT, higher ones
MRI. ``modality`` chooses one of the two.

The labels of the published test scans are secret, so its validation scans are the only held-out ones: they become the
split ``test``, and training and validation are drawn by patient from the training scans. The option ``validation``
makes them ``val`` or leaves them to the draw instead. Scans without labels are not listed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boltzformer_monai.errors import ConfigError, DatasetError
from boltzformer_monai.modality import parse_modality
from boltzformer_monai.slicing.cases import Case, LabelFile
from boltzformer_monai.slicing.recipes import Option
from boltzformer_monai.slicing.recipes.dataset_json import DESCRIPTION_FILE, entries, read_description, target_labels

logger = logging.getLogger(__name__)

OPTIONS = (Option("validation", "test", "what the published validation scans become", ("test", "val", "draw")),)

_LAST_CT = 500
_MISSPELT = {"arota": "aorta"}


def cases(folder: Path, *, modality: str | None, site: str | None, channel: int | None, validation: str) -> list[Case]:
    """List the labelled scans of a folder with ``dataset.json``; ``modality`` takes only those of one.

    Raises:
        DatasetError: ``dataset.json`` is missing, damaged, names files that are not there, or nothing remains.
        ConfigError: a setting does not fit.
    """
    if channel is not None:
        raise ConfigError("AMOS22 has no channels to choose from; leave --channel out")
    wanted = None if modality is None else parse_modality(modality)
    path = folder / DESCRIPTION_FILE
    content = read_description(path, what="AMOS22")
    names = {value: _MISSPELT.get(name.lower(), name) for value, name in target_labels(content).items()}
    pinned = None if validation == "draw" else validation
    listed = []
    for key, split in (("training", None), ("validation", pinned)):
        for stem, image, label in entries(path, _with_labels(folder, content, key), key):
            spoken = _modality(path, stem)
            if wanted in (None, spoken):
                annotation = LabelFile(label, names)
                place = site or "abdomen"
                # The name was checked: it is a published one.
                listed.append(Case(stem, stem, image, annotation, place, modality=spoken, split=split, public=True))
    if not listed:
        msg = f"{path}: lists no labelled {wanted or 'CT or MR'} scans whose folders exist; unpack imagesTr, labelsTr"
        raise DatasetError(msg)
    return listed


def _with_labels(folder: Path, content: Mapping[str, Any], key: str) -> dict[str, list[Any]]:
    """Return one list with the label's path where an entry gives the image alone; empty when it was not unpacked."""
    images, labels = ("imagesTr", "labelsTr") if key == "training" else ("imagesVa", "labelsVa")
    listed = content.get(key, [])
    if not isinstance(listed, list):
        return {key: listed}
    if listed and not (folder / images).is_dir():
        logger.warning("%s: has no %s, so its %d %s scans are left out", folder, images, len(listed), key)
        return {key: []}
    plain = [{"image": entry} if isinstance(entry, str) else entry for entry in listed]
    return {
        key: [
            {"label": str(entry["image"]).replace("\\", "/").replace(images, labels), **entry}
            if isinstance(entry, dict) and "image" in entry
            else entry
            for entry in plain
        ]
    }


def _modality(path: Path, stem: str) -> str:
    number = re.fullmatch(r"(?i)amos_(\d{4})", stem)
    if number is None:
        raise DatasetError(f"{path}: names a scan {stem!r}; those of AMOS22 are called amos_0001 and so on")
    return "CT" if int(number[1]) <= _LAST_CT else "MR"
