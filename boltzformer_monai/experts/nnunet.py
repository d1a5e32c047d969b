"""A slice dataset's scans in nnU-Net v2's raw layout, with the same split, for the real nnU-Net to run beside.

::

    OUT/Dataset001_NAME/dataset.json            channel_names, labels, numTraining, file_ending
    OUT/Dataset001_NAME/splits_final.json       train and val of every fold; nnU-Net reads it in nnUNet_preprocessed
    OUT/Dataset001_NAME/imagesTr/SCAN_0000.nii.gz, labelsTr/SCAN.nii.gz   scans of train and val
    OUT/Dataset001_NAME/imagesTs/…, labelsTs/…  scans of test

A label map has one value per voxel: targets that share label values cannot go into one dataset.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from boltzformer_monai.data.planes import slices_to_volume
from boltzformer_monai.data.slices.folds import choose_fold
from boltzformer_monai.data.slices.format import scan_of
from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.errors import ConfigError, DatasetError, reject_unknown
from boltzformer_monai.experts.scans import Original, Scan, choose_plane, grid_of, list_scans, read_stack
from boltzformer_monai.io.formats import write_image_file
from boltzformer_monai.limits import read_json
from boltzformer_monai.storage import replacing_folder, write_json

__all__ = ["export_nnunet"]

MOST_DATASETS = 999
_MAKER = "boltzformer export-dataset"


def export_nnunet(
    reader: SliceReader,
    output: Path,
    *,
    originals: Mapping[str, Original] | None = None,
    targets: Sequence[str] = (),
    per_target: bool = False,
    number: int = 1,
    folds: int | None = None,
    progress: bool = False,
) -> list[Path]:
    """Write one dataset, or one for every target.

    Args:
        reader: of the slice dataset.
        output: folder for the datasets, nnU-Net's ``nnUNet_raw``; older exports of the same names are replaced.
        originals: scan → what reads the original; None writes the dataset's 8-bit slices as volumes.
        targets: to write; empty takes all.
        per_target: whether every target becomes a dataset of its own, with the scans that annotate it.
        number: of the (first) dataset.
        folds: in ``splits_final.json``, as ``boltzformer train --folds`` divides them; None: the dataset's own split.
        progress: show a progress bar on standard error.

    Returns:
        Their folders.

    Raises:
        DatasetError: targets overlap, a scan does not annotate all of them or lacks slices, or a folder of that name is
            no export.
        ConfigError: a target is unknown, or the numbers are out of range.
        StorageError: a folder cannot be written.
    """
    reject_unknown(targets, reader.targets, what="target")
    scans = list_scans(choose_plane(reader, ""), originals)
    names = [*dict.fromkeys(targets)] or sorted({name for scan in scans for name in scan.targets})
    groups = [[name] for name in names] if per_target else [names]
    if not names:
        raise DatasetError(f"{reader.root} has no targets; there is nothing to export")
    if not 1 <= number <= MOST_DATASETS + 1 - len(groups):
        raise ConfigError(f"the number of the dataset must be from 1 to {MOST_DATASETS}, for {len(groups)} of them")
    splits = _splits(reader, folds)
    made = []
    for offset, group in enumerate(groups):
        chosen = [scan for scan in scans if set(group) <= set(scan.targets)]
        if not per_target:
            _check_together(scans, group)
        title = group[0] if per_target else reader.name
        folder = output / f"Dataset{number + offset:03d}_{re.sub(r'[^A-Za-z0-9]+', '', title.title()) or 'Slices'}"
        _check_replaceable(folder)
        _write(folder, chosen, group, splits, original=originals is not None, progress=progress)
        made.append(folder)
    return made


def _splits(reader: SliceReader, folds: int | None) -> list[dict[str, str]]:
    """Patient → split, of every fold."""
    readers = [reader] if folds is None else [choose_fold(reader, folds=folds, fold=fold) for fold in range(folds)]
    return [{row.patient: row.split for row in each.rows} for each in readers]


def _check_together(scans: Sequence[Scan], targets: Sequence[str]) -> None:
    """Raise a ``DatasetError`` where one label map cannot hold all targets."""
    for scan in scans:
        lacking = sorted(set(targets) - set(scan.targets))
        if lacking:
            msg = f"{scan.volume} does not annotate {', '.join(lacking)}, and nnU-Net would take it for absent"
            raise DatasetError(f"{msg}; export one dataset per target (--per-target), or choose --target")
        seen: dict[int, str] = {}
        for target in targets:
            for value in scan.targets[target]:
                if (other := seen.setdefault(value, target)) != target:
                    msg = f"{other} and {target} overlap in {scan.volume}, and a label map has one value per voxel"
                    raise DatasetError(f"{msg}; export one dataset per target (--per-target), or choose --target")


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    try:
        content: Any = read_json(folder / "dataset.json")
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or content.get("converted_by") != _MAKER:
        raise DatasetError(f"{folder}: exists and is no export of this command; choose another --output or --number")


def _write(
    folder: Path, scans: Sequence[Scan], targets: Sequence[str], splits: Sequence[Mapping[str, str]],
    *, original: bool, progress: bool,
) -> None:  # fmt: skip
    names = {scan.volume: scan_of(scan.volume, scan.entry) for scan in scans}
    training = [scan for scan in scans if scan.split != "test"]
    modalities = sorted({str(scan.entry["modality"]) for scan in scans})
    channel = {"CT": "CT", "MR": "MRI"}.get(modalities[0], "grey") if len(modalities) == 1 else "mixed"
    with replacing_folder(folder) as temporary:
        for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
            (temporary / part).mkdir()
        for scan in tqdm(scans, desc="exporting", unit="scan", dynamic_ncols=True, disable=not progress):
            image, label, affine = _volumes(scan, targets)
            part = "Ts" if scan.split == "test" else "Tr"
            write_image_file(image, affine, temporary / f"images{part}" / f"{names[scan.volume]}_0000.nii.gz")
            write_image_file(label, affine, temporary / f"labels{part}" / f"{names[scan.volume]}.nii.gz")
        content = {
            # By the name CT nnU-Net clips and scales Hounsfield units; any other is scaled scan by scan.
            "channel_names": {"0": channel if original else f"8-bit {channel}"},
            "labels": {"background": 0, **{target: value for value, target in enumerate(targets, start=1)}},
            "numTraining": len(training),
            "file_ending": ".nii.gz",
            "name": folder.name.partition("_")[2],
            "converted_by": _MAKER,
        }
        write_json(temporary / "dataset.json", content, indent=2)
        folds = [
            {
                part: [names[scan.volume] for scan in training if split[scan.patient] == part]
                for part in ("train", "val")
            }
            for split in splits
        ]
        (temporary / "splits_final.json").write_text(json.dumps(folds, indent=2) + "\n", encoding="utf-8")


def _volumes(scan: Scan, targets: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, label map with the values 1, 2, … of the targets, and affine."""
    stack = read_stack(scan, whole=True)
    values = np.zeros(stack.label.shape, np.uint8 if len(targets) < 256 else np.uint16)
    for value, target in enumerate(targets, start=1):
        values[np.isin(stack.label, scan.targets[target])] = value
    grid, plane = grid_of(scan.entry), str(scan.entry["plane"])
    image = stack.image if scan.original is not None else stack.image.astype(np.uint8)
    return slices_to_volume(image, grid, plane), slices_to_volume(values, grid, plane), grid.affine
