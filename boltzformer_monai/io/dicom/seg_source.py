"""The source instances of a DICOM SEG or RTSTRUCT: copies of the headers it needs, sorted by position and repaired.

A copy holds identifiers, the place of its pixels and the few attributes that every object of a study repeats; texts
that people write into headers (comments, histories, descriptions) stay in the scan. What is empty, invalid or missing
is repaired in the copies; what cannot be known is refused, by name.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom.files import SliceHeader, broken_dicom, damage_as_volume_error, one_line
from boltzformer_monai.io.dicom.frames import stated_numbers
from boltzformer_monai.io.dicom.grid import ordered
from boltzformer_monai.io.dicom.open import read_dicom
from boltzformer_monai.io.dicom.series import check_slices, choose_series
from boltzformer_monai.io.volume import Volume

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

logger = logging.getLogger(__name__)

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d(([0-5]\d|60)(\.\d{1,6})?)?)?")
# Repeated in the file meta information, which survives anonymisers that blank the data set.
_IN_META = {"SOPClassUID": "MediaStorageSOPClassUID", "SOPInstanceUID": "MediaStorageSOPInstanceUID"}
_MADE_UP = ("StudyInstanceUID", "SeriesInstanceUID")
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
_INSTEAD = "write masks as NIfTI (.nii.gz), a report as .html"


@contextmanager
def making(kind: str, place: object, *, instead: str) -> Iterator[None]:
    """Turn what highdicom or pydicom raise against an object into one line; errors of the disk pass.

    Args:
        kind: of the object, e.g. ``"DICOM SEG"``.
        place: the scan or file that the line names.
        instead: the ending of what can be written.

    Raises:
        VolumeError: the series has something that the object cannot have.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote the patient's name where it is written oddly
            yield
    except broken_dicom() as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        msg = f"{place}: no {kind} can be made of this series ({one_line(error)}); write {instead} instead"
        raise VolumeError(msg, reason="unsupported format") from error


@dataclass(frozen=True)
class SegSource:
    """What a SEG or RTSTRUCT refers to.

    Attributes:
        grid: (columns, rows, slices), without voxel values.
        images: data sets without pixels.
        order: for each slice of the grid its index among the frames of the data sets.
        lossy: whether the scan was compressed with loss.
        series_number: for the new series; it shows where it comes from: 1004 for series 4.
    """

    grid: Volume
    images: list[Dataset]
    order: list[int]
    lossy: bool = False
    series_number: int = 1000


def seg_source(scan: Path | Sequence[Path], series: str | None) -> SegSource:
    """Read the headers of a series or of an enhanced multi-frame file; no pixels.

    Invalid dates, times and numbers of the study become empty, with a warning that names no value. Anonymised files
    without study or series UID get ones made of their frame of reference.

    Args:
        scan: the folder or the multi-frame file, or all files of the series.
        series: the SeriesInstanceUID, where the folder holds several.

    Raises:
        VolumeError: no regular series, or one that no DICOM object can refer to; it names the attribute and its tag.
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
    paths = list(dict.fromkeys(header.path for header in slices))
    if first.frame is not None and (len(paths) > 1 or len(slices) != first.frames):
        msg = f"{paths[0].parent}: no DICOM object can refer to frames of several files; {_INSTEAD}"
        raise VolumeError(msg, reason="unsupported format")
    stated = []
    for path in paths:
        with damage_as_volume_error(path):
            stated.append(read_dicom(path, tags=_TAGS, pixels=False))
    uids = _uids(place, paths, stated)
    shared = {**_identity(place, stated[0]), **_loss(stated[0])}
    copied = [{**shared, **uid} for uid in uids]
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    step = abs(float(affine[:3, 2] @ normal / np.linalg.norm(normal)))
    thickness = _thickness(place, stated[0], step)
    if first.frame is None:
        images = [_slice(values, header, thickness, step) for values, header in zip(copied, slices, strict=True)]
    else:
        images = [_frames(copied[0], slices, thickness, step)]
    lossy = str(_value(stated[0], _LOSSY[0])).strip() == "01"
    return SegSource(grid, images, order, lossy, _series_number(_value(stated[0], "SeriesNumber")))


def _value(dataset: Any, keyword: str) -> Any:
    """An attribute's value; None where it is missing or its bytes are none of its kind."""
    try:
        return dataset.get(keyword)
    except broken_dicom():
        return None


def _uids(place: Path, paths: Sequence[Path], stated: Sequence[Dataset]) -> list[dict[str, str]]:
    """Return the UIDs of each file; refuse missing or invalid ones, and those that contradict each other."""
    from pydicom.uid import UID

    def stripped(dataset: Dataset, keyword: str) -> str:
        return str(_value(dataset, keyword) or "").strip(" \0")

    found = []
    for path, dataset in zip(paths, stated, strict=True):
        own = {keyword: stripped(dataset, keyword) for keyword in (*_IN_META, *_MADE_UP, "FrameOfReferenceUID")}
        for keyword, copy in _IN_META.items():
            own[keyword] = own[keyword] or stripped(dataset.file_meta, copy)
        for keyword, uid in own.items():
            if not uid and keyword not in _MADE_UP:
                raise _refused(path, keyword, "is missing or empty")
            if uid and (len(uid) > 64 or not _UID.fullmatch(uid)):
                raise _refused(path, keyword, "is no UID")
        if UID(own["SOPClassUID"]).name == own["SOPClassUID"]:
            raise _refused(path, "SOPClassUID", "is private or unknown")
        found.append(own)
    if len({own["SOPInstanceUID"] for own in found}) < len(found):
        raise _refused(place, "SOPInstanceUID", "is the same in several slices")
    lacking = [keyword for keyword in _MADE_UP if not all(own[keyword] for own in found)]
    for keyword in (*_MADE_UP, "FrameOfReferenceUID"):
        known = {own[keyword] for own in found} - {""}
        if len(known) > 1:
            raise _refused(place, keyword, "differs between the slices")
        if not known:
            digest = hashlib.blake2b(f"{keyword}|{found[0]['FrameOfReferenceUID']}".encode(), digest_size=16).digest()
            known = {f"2.25.{int.from_bytes(digest, 'big')}"}
        for own in found:
            own[keyword] = next(iter(known))
    if lacking:
        line = "%s: has no %s (anonymised?); the result gets one of its own, so a viewer may not list both together"
        logger.warning(line, place, " and ".join(lacking))
    return found


def _identity(place: Path, dataset: Dataset) -> dict[str, str]:
    """Return patient and study; what is not in a form that DICOM knows is empty."""
    kept, invalid = {}, []
    for keyword, in_form in IDENTITY.items():
        text = _words(_value(dataset, keyword))
        kept[keyword] = "" if text is None else in_form(text)
        if not kept[keyword] and (text or (text is None and keyword in dataset)):
            invalid.append(keyword)
    if "PatientID" in invalid:  # an archive would file the result under another patient
        raise _refused(place, "PatientID", "cannot be read")
    if invalid:
        names = ", ".join(map(_named, invalid))
        logger.warning("%s: not in the form of DICOM, so the result leaves it empty: %s", place, names)
    return kept


def _words(value: Any) -> str | None:
    """A value as one line of text; None where it is no text."""
    from pydicom.multival import MultiValue
    from pydicom.valuerep import PersonName

    if isinstance(value, MultiValue):
        value = "\\".join(map(str, value))
    if not isinstance(value, (str, PersonName)):
        return None
    return "".join(letter for letter in str(value) if letter.isprintable()).strip()


def _loss(dataset: Dataset) -> dict[str, Any]:
    """How much was lost; only where all of it is stated, since a part alone is no statement."""
    flag, ratio, method = (_value(dataset, keyword) for keyword in _LOSSY)
    return dict(zip(_LOSSY, (flag, ratio, method), strict=True)) if flag == "01" and ratio and method else {}


def _thickness(place: Path, dataset: Dataset, step: float) -> float:
    """Return the stated thickness of a slice, else the distance of the slices."""
    measures = dataset
    for group in _GROUPS:
        for item in (_value(dataset, group) or [])[:1]:
            measures = next(iter(_value(item, "PixelMeasuresSequence") or []), measures)
    stated = stated_numbers(measures, "SliceThickness", 1)
    if stated is not None and 0 < stated[0] < 1e4:
        return stated[0]
    logger.info("%s: %s says nothing; the result states the distance of the slices", place, _named("SliceThickness"))
    return step


def _series_number(stated: Any) -> int:
    try:
        number = int(stated)
    except (TypeError, ValueError):
        return 1000
    return 1000 + number if 0 <= number < 1_000_000 else 1000


def _slice(values: Mapping[str, Any], header: SliceHeader, thickness: float, step: float) -> Dataset:
    image = _data_set(values, header)
    image.ImagePositionPatient = _decimals(header.geometry.position)
    image.ImageOrientationPatient = _decimals(header.geometry.cosines)
    image.PixelSpacing = _decimals(header.geometry.pixel_spacing)
    image.SliceThickness, image.SpacingBetweenSlices = _decimals((thickness, step))
    return image


def _frames(values: Mapping[str, Any], slices: Sequence[SliceHeader], thickness: float, step: float) -> Dataset:
    from pydicom.dataset import Dataset

    first = slices[0]
    image, shared, measures, orientation = _data_set(values, first), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = _decimals(first.geometry.pixel_spacing)
    measures.SliceThickness, measures.SpacingBetweenSlices = _decimals((thickness, step))
    orientation.ImageOrientationPatient = _decimals(first.geometry.cosines)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    image.NumberOfFrames, image.SharedFunctionalGroupsSequence = first.frames, [shared]
    groups = []
    for header in sorted(slices, key=lambda each: each.frame or 0):
        group, place = Dataset(), Dataset()
        place.ImagePositionPatient = _decimals(header.geometry.position)
        group.PlanePositionSequence = [place]
        groups.append(group)
    image.PerFrameFunctionalGroupsSequence = groups
    return image


def _data_set(values: Mapping[str, Any], header: SliceHeader) -> Dataset:
    from pydicom.dataset import Dataset

    image = Dataset()
    image.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in values.items():
        setattr(image, keyword, value)
    image.Modality, image.Rows, image.Columns = header.modality, header.rows, header.columns
    return image


def _decimals(values: Sequence[float] | None) -> list[str]:
    """Numbers in the 16 letters that DICOM has for each."""
    from pydicom.valuerep import format_number_as_ds

    return [format_number_as_ds(float(value)) for value in values or ()]


def _named(keyword: str) -> str:
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(keyword) or 0
    return f"{keyword} ({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _refused(place: Path, keyword: str, why: str) -> VolumeError:
    msg = f"{place}: {_named(keyword)} {why}, so no DICOM object can refer to the scan; {_INSTEAD}"
    return VolumeError(msg, reason="header")


def _any_text(text: str) -> str:
    return text if text.encode("utf-8", "ignore").decode() == text else ""


def _short(text: str) -> str:
    return _any_text(text) if len(text) <= 16 and "\\" not in text else ""


def _name(text: str) -> str:
    return _any_text(text) if "\\" not in text else ""


def _physician(text: str) -> str:
    groups = text.split("=")
    return _name(text) if all(len(group) <= 64 and group.count("^") <= 4 for group in groups) else ""


def _date(text: str) -> str:
    digits = text.replace(".", "").replace("-", "")  # as in files of the eighties, and as people write them
    try:
        return datetime.datetime.strptime(digits, "%Y%m%d").strftime("%Y%m%d") if len(digits) == 8 else ""
    except ValueError:
        return ""


def _time(text: str) -> str:
    digits = text.replace(":", "")
    return digits if _TIME.fullmatch(digits) else ""


def _sex(text: str) -> str:
    return text.upper() if text.upper() in ("M", "F", "O") else ""


# All that is repeated of patient and study: what archives file by, and nothing that a person wrote about somebody.
IDENTITY: Mapping[str, Callable[[str], str]] = {
    "PatientID": _any_text, "PatientName": _name, "PatientBirthDate": _date, "PatientSex": _sex,
    "StudyDate": _date, "StudyTime": _time, "StudyID": _short, "AccessionNumber": _short,
    "ReferringPhysicianName": _physician,
}  # fmt: skip
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_TAGS = [*_IN_META, *_MADE_UP, *IDENTITY, *_LOSSY, *_GROUPS, "FrameOfReferenceUID", "SpecificCharacterSet",
         "SliceThickness", "SeriesNumber"]  # fmt: skip
