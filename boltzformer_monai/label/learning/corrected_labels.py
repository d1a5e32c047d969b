"""Convert the final labels of the datastore to a slice dataset for training."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from boltzformer_monai.data.prompts import normalise_target
from boltzformer_monai.data.slices.volume import SliceSettings
from boltzformer_monai.data.slices.writer import SliceWriter
from boltzformer_monai.data.windows import GreyScale, window_from_dict
from boltzformer_monai.errors import BoltzFormerError, StorageError
from boltzformer_monai.io.read import read_label_map
from boltzformer_monai.label.label_info import SHA256, names_in
from boltzformer_monai.label.safe_ids import image_path, label_path
from boltzformer_monai.label.service import read_scan
from boltzformer_monai.storage import file_sha256

_log = logging.getLogger(__name__)

_FINAL = DefaultLabelTag.FINAL.value


@dataclass(frozen=True)
class CorrectedLabel:
    """A final label."""

    image_id: str
    image: Path
    """File or DICOM folder."""
    label: Path
    names: dict[int, str]
    """By label value."""
    digest: str
    """Changes with the label and its names."""
    sha256: str = ""
    """Of the label's file; "" if unknown."""


def corrected_labels(datastore: Datastore) -> list[CorrectedLabel]:
    """All usable final labels with names; others are logged and skipped."""
    found: list[CorrectedLabel] = []
    for image_id in sorted(datastore.get_labeled_images()):
        try:
            image, label = image_path(datastore, image_id), label_path(datastore, image_id, _FINAL)
        except BoltzFormerError as error:
            _log.warning("%s: label skipped: %s", image_id, error)
            continue
        info = datastore.get_label_info(image_id, _FINAL)
        names, sha256 = names_in(info), file_sha256(label)
        if not names:
            _log.warning("%s: label skipped: no names were saved with it", image_id)
            continue
        if info.get(SHA256, sha256) != sha256:
            _log.warning("%s: label skipped: the file is not the one that the names were saved with", image_id)
            continue
        content = json.dumps([image_id, sha256, sorted(names.items())], ensure_ascii=False)
        digest = hashlib.sha256(content.encode()).hexdigest()
        found.append(CorrectedLabel(image_id, image, label, names, digest, sha256))
    return found


def write_slices(
    labels: Sequence[CorrectedLabel], folder: Path, *, data: Mapping[str, Any], modality: str | None, neighbours: int
) -> list[CorrectedLabel]:
    """Update the slice dataset: slice new and changed labels, drop removed ones; returns the labels in it.

    Args:
        labels: all of them.
        folder: of the dataset.
        data: the checkpoint's description of its training slices: windows, sites and planes.
        modality: for scans that do not state theirs.
        neighbours: slices on either side in the network's input.

    Raises:
        StorageError: the folder cannot be written.
    """
    used: list[CorrectedLabel] = []
    known = {str(entry["modality"]) for entry in data.get("targets", [])}
    only = known.pop() if len(known) == 1 else None
    planes = list(map(str, data.get("planes") or [data.get("plane", "axial")]))
    with SliceWriter(folder, name="corrected labels", val_fraction=0) as writer:
        wanted = {name for each in labels for name in _volumes(each, planes)}
        for removed in writer.hide([name for name in writer.records if name not in wanted]):
            writer.drop(removed)
        for each in labels:
            volumes = _volumes(each, planes)
            if volumes.keys() <= writer.records.keys():
                used.append(each)
                continue
            if each.sha256 and not (each.label.is_file() and file_sha256(each.label) == each.sha256):
                _log.warning("%s: label changed meanwhile: left to the next training", each.image_id)
                continue
            try:
                image = read_scan(each.image, modality or only)
                site, window = _trained_as(each.names, image.modality, data)
                label = read_label_map(each.label)
                for name, plane in volumes.items():
                    writer.add_volume(
                        image,
                        label,
                        {str(value): text for value, text in each.names.items()},
                        volume_id=name,
                        patient=each.image_id,
                        site=site,
                        scan=_volume_id(each),
                        settings=SliceSettings(plane=plane, window=window, neighbours=neighbours),
                    )
            except StorageError:
                raise
            except BoltzFormerError as error:
                _log.warning("%s: label skipped: %s", each.image_id, error)
                continue
            used.append(each)
    return used


def _volumes(label: CorrectedLabel, planes: Sequence[str]) -> dict[str, str]:
    """Volume id → plane."""
    name = _volume_id(label)
    return {name if len(planes) == 1 else f"{name}-{plane}": plane for plane in planes}


def _volume_id(label: CorrectedLabel) -> str:
    """A volume id that changes with the label."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", label.image_id).strip("-")[:60] or "scan"
    return f"{plain}-{label.digest[:16]}"


def _trained_as(names: Mapping[int, str], modality: str, data: Mapping[str, Any]) -> tuple[str, GreyScale | None]:
    """The most common site and window of these targets in the checkpoint, or of all its targets if it knows none."""
    targets = [entry for entry in data.get("targets", []) if entry["modality"] == modality]
    wanted = {normalise_target(name) for name in names.values()}
    alike = [entry for entry in targets if entry["target"] in wanted] or targets
    if not alike:
        return "", None
    combinations = Counter(json.dumps([entry["site"], entry["window"]], sort_keys=True) for entry in alike)
    site, window = json.loads(combinations.most_common(1)[0][0])
    return str(site), window_from_dict(window)
