"""Which DICOM series lie in a folder tree, and which SEG or RTSTRUCT was drawn on which; headers only."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom_files import broken_dicom, is_dicom_file

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["Archive", "Series", "find_series"]

_SUFFIXES = (".dcm", ".dicom", ".ima")  # by its name such a file must be DICOM
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_SEGMENTATION = tuple(_STORAGE + tail for tail in ("66.4", "66.7"))
_STRUCTURE_SET = _STORAGE + "481.3"
# Objects with rows and columns that are no slices of a scan.
_NOT_SCANS = ("SEG", "RTDOSE", "RTIMAGE", "PR", "KO", "SR", "DOC")
_TAGS = [
    "SOPClassUID", "Modality", "PatientID", "SeriesInstanceUID", "Rows", "ReferencedSeriesSequence",
    "ReferencedFrameOfReferenceSequence",
]  # fmt: skip


@dataclass
class Series:
    """One series of slices.

    Attributes:
        uid: SeriesInstanceUID.
        patient: PatientID, "" when it has none.
        files: its slices.
        annotations: the SEG and RTSTRUCT objects that refer to it.
    """

    uid: str
    patient: str
    files: list[Path] = field(default_factory=list)
    annotations: list[Path] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """The smallest folder that holds all its slices."""
        return Path(os.path.commonpath([path.parent for path in self.files]))


@dataclass
class Archive:
    """What was found.

    Attributes:
        series: in the order of their first file.
        damaged: files that are DICOM by name or content and cannot be read.
        unmatched: annotations of series that are not there.
    """

    series: list[Series]
    damaged: list[Path]
    unmatched: list[Path]


def find_series(files: Iterable[Path]) -> Archive:
    """Sort DICOM files by series; other files are ignored.

    Args:
        files: paths, in the order in which series shall be listed.
    """
    found: dict[str, Series] = {}
    drawn: list[tuple[Path, set[str]]] = []
    damaged = []
    unreadable: tuple[type[Exception], ...] = (VolumeError, *broken_dicom())
    for path in files:
        try:
            header = _read_header(path)
            if header is None:
                continue
            references = _references(header)
            uid, patient = (str(header.get(name) or "") for name in ("SeriesInstanceUID", "PatientID"))
        except unreadable:
            damaged.append(path)
            continue
        if references is not None:
            drawn.append((path, references))
        elif "Rows" in header and str(header.get("Modality", "")) not in _NOT_SCANS:
            found.setdefault(uid, Series(uid, patient)).files.append(path)
    unmatched = []
    for path, references in drawn:
        for uid in sorted(references & found.keys()):
            found[uid].annotations.append(path)
        if not references & found.keys():
            unmatched.append(path)
    return Archive(list(found.values()), damaged, unmatched)


def _read_header(path: Path) -> Dataset | None:
    """Return what decides; None for a file that neither is DICOM nor says so."""
    import pydicom

    if not is_dicom_file(path):
        if path.suffix.lower() in _SUFFIXES:
            msg = f"{path}: is named like a DICOM file but is none"
            raise VolumeError(msg, reason="damaged")
        return None
    # force: files without preamble; is_dicom_file has looked at the content already.
    header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(_TAGS))
    if "SOPClassUID" not in header and "Rows" not in header:
        return None  # a DICOMDIR, or something else whose first bytes looked like old DICOM
    return header


def _references(header: Dataset) -> set[str] | None:
    """Return the series that an annotation was drawn on; None for what is no annotation."""
    kind = str(header.get("SOPClassUID", ""))
    if kind in _SEGMENTATION:
        return {str(item.get("SeriesInstanceUID", "")) for item in _items(header, "ReferencedSeriesSequence")}
    if kind != _STRUCTURE_SET:
        return None
    return {
        str(series.get("SeriesInstanceUID", ""))
        for frame in _items(header, "ReferencedFrameOfReferenceSequence")
        for study in _items(frame, "RTReferencedStudySequence")
        for series in _items(study, "RTReferencedSeriesSequence")
    }


def _items(dataset: Dataset, name: str) -> Iterator[Dataset]:
    return iter(dataset.get(name) or ())
