"""The instances that a DICOM SEG refers to: their headers by position, made fit to be referred to."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom_files import SliceHeader
from boltzformer_monai.io.dicom_grid import ordered
from boltzformer_monai.io.dicom_guard import damage_as_volume_error
from boltzformer_monai.io.dicom_series import check_slices, choose_series
from boltzformer_monai.io.volume import Volume

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["seg_source"]

logger = logging.getLogger(__name__)

# May be absent from files that archives and converters write; a SEG must have them, empty if unknown.
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
# Repeated in the file's preface, which survives anonymisers that blank the data set.
_IN_PREFACE = {"SOPClassUID": "MediaStorageSOPClassUID", "SOPInstanceUID": "MediaStorageSOPInstanceUID"}
_MADE_UP = ("StudyInstanceUID", "SeriesInstanceUID")
_NEEDED = (*_IN_PREFACE, "FrameOfReferenceUID")


def seg_source(scan: Path | Sequence[Path], series: str | None) -> tuple[Volume, list[Dataset], list[int]]:
    """Read the headers of a series or of an enhanced multi-frame file.

    Anonymised files without study or series UID get ones made of their frame of reference, with a warning.

    Args:
        scan: the folder or the multi-frame file, or all files of the series.
        series: the SeriesInstanceUID, where the folder holds several.

    Returns:
        The grid (columns, rows, slices) without voxel values; the data sets without pixels; and for each slice of the
        grid its index among the frames of the data sets.

    Raises:
        VolumeError: no regular series, or one that no SEG can refer to.
    """
    files = [] if isinstance(scan, Path) else list(scan)
    place = scan if isinstance(scan, Path) else Path(os.path.commonpath([file.parent for file in files]))
    slices = choose_series(place, series, files)
    check_slices(slices)
    slices, affine = ordered(slices)
    first = slices[0]
    empty = np.broadcast_to(np.uint8(0), (first.columns, first.rows, len(slices)))
    grid = Volume(empty, affine, source=str(place), frame_of_reference=first.frame_of_reference)
    order = [index if header.frame is None else header.frame for index, header in enumerate(slices)]
    return grid, _data_sets(slices), order


def _data_sets(slices: Sequence[SliceHeader]) -> list[Dataset]:
    paths = list(dict.fromkeys(header.path for header in slices))
    if slices[0].frame is not None and (len(paths) > 1 or len(slices) != slices[0].frames):
        msg = f"{paths[0].parent}: frames of several files are no source of a DICOM SEG; write NIfTI (.nii.gz) instead"
        raise VolumeError(msg, reason="unsupported format")
    images = [_data_set(path) for path in paths]
    lacking = [name for name in _MADE_UP if not images[0].get(name)]
    if lacking:
        logger.warning(
            "%s: has no %s (anonymised?); the DICOM SEG gets one of its own, so a viewer may not list the two together",
            paths[0].parent,
            " and ".join(lacking),
        )
    for image in images:
        for name in lacking:
            digest = hashlib.blake2b(f"{name}|{image.FrameOfReferenceUID}".encode(), digest_size=16).digest()
            setattr(image, name, f"2.25.{int.from_bytes(digest, 'big')}")
    return images


def _data_set(path: Path) -> Dataset:
    import pydicom

    with damage_as_volume_error(path, "cannot be read as DICOM"):
        image = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        for name, copy in _IN_PREFACE.items():
            if not image.get(name) and image.file_meta.get(copy):
                setattr(image, name, image.file_meta[copy].value)
        lacking = [name for name in _NEEDED if not image.get(name)]
        for name in _MAY_BE_EMPTY:
            if name not in image:
                setattr(image, name, "")
    if lacking:
        msg = f"{path}: lacks {lacking[0]}, so no DICOM SEG can refer to it; write NIfTI (.nii.gz) instead"
        raise VolumeError(msg, reason="unsupported format")
    return image
