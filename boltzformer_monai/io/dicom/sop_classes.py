"""What kind of object a DICOM file is: a slice of a scan, an annotation, or something else."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
"""By its name such a file must be DICOM."""

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_SEG_CLASSES = (_STORAGE + "66.4", _STORAGE + "66.7")  # Segmentation, Label Map Segmentation
_RTSTRUCT_CLASS = _STORAGE + "481.3"
# Objects that may have rows and columns and still are no slices of a scan, by Modality and by SOP class: segmentations
# (also as label map or by height), radiotherapy images and doses.
_NOT_SCANS = ("SEG", "RTDOSE", "RTIMAGE", "PR", "KO", "SR", "DOC")
_NOT_SCAN_CLASSES = (*_SEG_CLASSES, *(_STORAGE + tail for tail in ("66.8", "481.1", "481.2")))
_DICOMDIR = "1.2.840.10008.1.3.10"


def annotation_kind(dataset: Dataset) -> str:
    """Return ``"SEG"``, ``"RTSTRUCT"``, or ``""`` for what is no annotation that is read here."""
    uid = str(dataset.get("SOPClassUID", ""))
    return "SEG" if uid in _SEG_CLASSES else "RTSTRUCT" if uid == _RTSTRUCT_CLASS else ""


def other_kind(dataset: Dataset) -> str | None:
    """Name the kind of an object that is no slice (a report, a plan, …), "" if it is not even DICOM; None for a slice.

    None also for a header without rows that may be that of a slice cut off.
    """
    from pydicom.uid import UID

    stated = dataset.file_meta.get("MediaStorageSOPClassUID")
    if stated == _DICOMDIR:
        return "DICOMDIR"
    uid = UID(str(dataset.get("SOPClassUID", "")))
    name = uid.name.removesuffix(" Storage") if uid.name != str(uid) else "object of an unknown class"
    if str(dataset.get("Modality", "")) in _NOT_SCANS or uid in _NOT_SCAN_CLASSES:
        return name
    if "Rows" in dataset and "Columns" in dataset:
        return None
    if not uid:  # without a preamble it is something else whose first bytes looked like old DICOM
        return None if dataset.preamble else ""
    # A UID that is cut off itself is in no dictionary and differs from its copy in the file meta information.
    whole = uid == (stated if stated or uid.name == str(uid) else uid)
    return name if whole and "Image" not in uid.name else None
