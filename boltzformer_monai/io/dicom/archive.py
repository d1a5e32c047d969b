"""Which DICOM series lie in a folder tree, and which SEG or RTSTRUCT was drawn on which; headers only."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom.files import broken_dicom, read_header
from boltzformer_monai.io.dicom.sop_classes import annotation_kind, other_kind
from boltzformer_monai.io.dicom.suspects import lost_slices
from boltzformer_monai.io.formats import is_image_file

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_TAGS = (
    "SOPClassUID", "Modality", "PatientID", "SeriesInstanceUID", "Rows", "Columns", "ReferencedSeriesSequence",
    "ReferencedFrameOfReferenceSequence",
)  # fmt: skip


@dataclass
class Series:
    """One series of slices.

    Attributes:
        uid: SeriesInstanceUID.
        patient: PatientID, "" when it has none.
        files: its slices, damaged ones included: without its last slice a scan looks whole, so it must be refused.
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
        damaged: files that are DICOM by name or content, cannot be read, and may belong to any or no series.
        unmatched: annotations of series that are not there.
    """

    series: list[Series]
    damaged: list[Path]
    unmatched: list[Path]


def find_series(files: Iterable[Path]) -> Archive:
    """Sort DICOM files by series, in the order of ``files``; others only count if they may be damaged slices.

    A damaged file belongs to the series that it names, or else to the only series in its folder.
    """
    found: dict[str, Series] = {}
    drawn: list[tuple[Path, set[str]]] = []
    damaged, others = [], []
    unreadable: tuple[type[Exception], ...] = (VolumeError, *broken_dicom())
    for path in files:
        try:
            header = read_header(path, _TAGS)
            if header is None:
                others.append(path)
                continue
            kind, references = other_kind(header), _references(header)
            uid, patient = (str(header.get(name) or "") for name in ("SeriesInstanceUID", "PatientID"))
        except unreadable:
            if not is_image_file(path):  # a dangling link, say; as a scan it is listed elsewhere
                damaged.append(path)
            continue
        if references is not None:
            drawn.append((path, references))
        elif kind is None and not uid and "Rows" not in header:
            damaged.append(path)
        elif kind is None:
            found.setdefault(uid, Series(uid, patient)).files.append(path)
    slices = [path for series in found.values() for path in series.files]
    damaged += lost_slices((path for path in others if not is_image_file(path)), slices)
    unmatched = []
    for path, references in drawn:
        for uid in sorted(references & found.keys()):
            found[uid].annotations.append(path)
        if not references & found.keys():
            unmatched.append(path)
    return Archive(list(found.values()), _without_series(damaged, list(found.values())), unmatched)


def _without_series(damaged: list[Path], series: list[Series]) -> list[Path]:
    """Give damaged files to the only series of their folder; return the others."""
    inside: dict[Path, list[Series]] = {}
    for each in series:
        for folder in {path.parent for path in each.files}:
            inside.setdefault(folder, []).append(each)
    left = []
    for path in damaged:
        near = inside.get(path.parent, [])
        if len(near) == 1:
            near[0].files.append(path)
        else:
            left.append(path)
    return left


def _references(header: Dataset) -> set[str] | None:
    """Return the series that an annotation was drawn on; None for what is no annotation."""
    kind = annotation_kind(header)
    if kind == "SEG":
        return {str(item.get("SeriesInstanceUID", "")) for item in _items(header, "ReferencedSeriesSequence")}
    if not kind:
        return None
    return {
        str(series.get("SeriesInstanceUID", ""))
        for frame in _items(header, "ReferencedFrameOfReferenceSequence")
        for study in _items(frame, "RTReferencedStudySequence")
        for series in _items(study, "RTReferencedSeriesSequence")
    }


def _items(dataset: Dataset, name: str) -> Iterator[Dataset]:
    return iter(dataset.get(name) or ())
