"""Which files of a folder are DICOM slices, and the few header fields that decide whether they form a volume."""

from __future__ import annotations

import logging
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from boltzformer_monai.errors import VolumeError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

logger = logging.getLogger(__name__)

_SUFFIXES = (".dcm", ".dicom", ".ima")
# Objects with rows and columns that are not slices of a scan.
_NOT_SCANS = ("SEG", "RTDOSE", "RTIMAGE", "PR", "KO", "SR", "DOC")
# What pydicom lets through when a file is cut off or damaged. A name, so that pydicom is imported only when needed.
_DAMAGE = (OSError, EOFError, ValueError, KeyError, AttributeError, TypeError, NotImplementedError, OverflowError)
BROKEN_DICOM: tuple[type[Exception], ...] = (*_DAMAGE, RuntimeError, IndexError, struct.error, zlib.error)


@dataclass(frozen=True)
class SliceHeader:
    """What is needed of one file before its pixels are decoded; positions and spacings in mm, LPS."""

    path: Path
    series: str
    modality: str
    patient_id: str
    frame_of_reference: str
    rows: int
    columns: int
    frames: int
    enhanced: bool
    samples: int
    photometric: str
    position: tuple[float, ...] | None
    cosines: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None
    stated_spacing: float | None
    rescaled: bool
    slope: float
    intercept: float
    rescale_type: str
    lookup_table: bool


def is_dicom_file(path: Path) -> bool:
    """Tell by content whether a file is DICOM, with or without the 128-byte preamble."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError as error:
        msg = f"{path}: cannot be opened ({one_line(error)})"
        raise VolumeError(msg) from error
    # Old files begin with the first element: group 0002 or 0008, little endian, and an element number that occurs.
    return start[128:] == b"DICM" or start[:4] in (b"\x02\0\0\0", b"\x08\0\0\0", b"\x08\0\x05\0", b"\x08\0\x08\0")


def find_slices(place: Path) -> list[SliceHeader]:
    """Return the headers of all slices in a folder and its subfolders (or of one file), sorted by path.

    Raises:
        VolumeError: a file that is DICOM by name or content is damaged. It is not skipped: a lost first or last slice
            would go unnoticed.
    """
    headers, skipped = [], 0
    for path in [place] if place.is_file() else _files(place):
        header = _read_header(path) if is_dicom_file(path) else None
        if header is not None:
            headers.append(header)
        elif path.suffix.lower() in _SUFFIXES and not is_dicom_file(path):
            msg = f"{path}: is named like a DICOM file but is none (empty or truncated?); repair or remove it"
            raise VolumeError(msg)
        else:
            skipped += 1
    if skipped:
        logger.info("%s: skipped %d files that are not slices", place, skipped)
    return headers


def one_line(error: BaseException) -> str:
    """Return the first line of an error's text."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _files(folder: Path) -> list[Path]:
    """Return all files below a folder except hidden ones (which macOS adds to every copied folder), sorted."""
    found = []
    for directory, subfolders, names in os.walk(folder, onerror=_refuse_unreadable):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [Path(directory, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())


def _refuse_unreadable(error: OSError) -> None:
    msg = f"{error.filename}: cannot be listed ({one_line(error)}); slices may lie in it"
    raise VolumeError(msg) from error


def _read_header(path: Path) -> SliceHeader | None:
    """Read what decides; None for a DICOM object that is no picture."""
    import pydicom

    try:
        # force: files without preamble; is_dicom_file has looked at the content already.
        dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        if "DirectoryRecordSequence" in dataset or str(dataset.get("Modality", "")) in _NOT_SCANS:
            return None
        if "Rows" not in dataset or "Columns" not in dataset:
            if _is_no_picture(dataset):
                return None
            msg = f"{path}: its DICOM header ends early or lacks Rows and Columns (truncated?); repair or remove it"
            raise VolumeError(msg)
        return _parse(path, dataset)
    except BROKEN_DICOM as error:
        msg = f"{path}: cannot be read as DICOM ({one_line(error)}); is the file complete?"
        raise VolumeError(msg) from error


def _is_no_picture(dataset: Dataset) -> bool:
    """Tell whether a header without rows belongs to a report, plan, raw data, … and not to a slice cut off."""
    if "SOPClassUID" not in dataset:
        return not dataset.preamble  # something else whose first bytes looked like old DICOM
    from pydicom.uid import UID

    kind = UID(str(dataset.SOPClassUID))
    # A UID that is cut off itself is in no dictionary and differs from its copy in the file's preface.
    stated = dataset.file_meta.get("MediaStorageSOPClassUID", kind if kind.name != str(kind) else None)
    return kind == stated and "Image" not in kind.name


def _parse(path: Path, dataset: Dataset) -> SliceHeader:
    class_uid = str(dataset.get("SOPClassUID", ""))
    spacings = [_numbers(dataset.get(name), 1) for name in ("SpacingBetweenSlices", "SliceThickness")]
    pixel_spacing = _numbers(dataset.get("PixelSpacing"), 2)
    slope, intercept = _numbers(dataset.get("RescaleSlope"), 1), _numbers(dataset.get("RescaleIntercept"), 1)
    if slope == (0.0,) or (slope is None and dataset.get("RescaleSlope") is not None):
        msg = f"RescaleSlope {dataset.RescaleSlope} is unusable"
        raise ValueError(msg)
    return SliceHeader(
        path=path,
        series=str(dataset.get("SeriesInstanceUID", "")),
        modality=str(dataset.get("Modality", "")),
        patient_id=str(dataset.get("PatientID") or ""),
        frame_of_reference=str(dataset.get("FrameOfReferenceUID") or ""),
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        frames=int(dataset.get("NumberOfFrames") or 1),
        enhanced="PerFrameFunctionalGroupsSequence" in dataset or class_uid in _ENHANCED,
        samples=int(dataset.get("SamplesPerPixel", 1)),
        photometric=str(dataset.get("PhotometricInterpretation", "")),
        position=_numbers(dataset.get("ImagePositionPatient"), 3),
        cosines=_numbers(dataset.get("ImageOrientationPatient"), 6),
        pixel_spacing=pixel_spacing if pixel_spacing and min(pixel_spacing) > 0 else None,
        stated_spacing=next((value[0] for value in spacings if value and value[0] > 0), None),
        rescaled=slope is not None and intercept is not None,
        slope=slope[0] if slope else 1.0,
        intercept=intercept[0] if intercept else 0.0,
        rescale_type=str(dataset.get("RescaleType") or "").strip(),
        lookup_table="ModalityLUTSequence" in dataset,
    )


# Enhanced CT, MR, PET, and legacy converted ones: one file, many frames, geometry in functional groups.
_ENHANCED = tuple(f"1.2.840.10008.5.1.4.1.1.{tail}" for tail in ("2.1", "2.2", "4.1", "4.4", "130", "128.1"))


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """Return exactly ``count`` finite numbers, or None."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    numbers = np.atleast_1d(np.asarray(value, dtype=np.float64))
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        return None
    return tuple(float(number) for number in numbers)
