"""Which files of a folder are DICOM slices, and the few header fields that decide whether they form a volume."""

from __future__ import annotations

import logging
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from boltzformer_monai.errors import VolumeError, cannot_open, not_opened
from boltzformer_monai.io.dicom.frames import FrameGeometry, classic_geometry, frame_geometries
from boltzformer_monai.io.dicom.open import read_dicom
from boltzformer_monai.io.dicom.sop_classes import DICOM_SUFFIXES, other_kind
from boltzformer_monai.io.dicom.suspects import lost_slice, lost_slices
from boltzformer_monai.io.folder_tree import read_tree
from boltzformer_monai.io.formats import is_image_file
from boltzformer_monai.limits import open_file
from boltzformer_monai.modality import modality_of_header

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

logger = logging.getLogger(__name__)

_USUAL_STARTS = (b"\x02\0\0\0", b"\x08\0\0\0", b"\x08\0\x05\0", b"\x08\0\x08\0")
# Further elements that a data set without preamble may begin with: version and class of the file meta information;
# dates, class and UID of the object; dates and times of study to content; accession number, modality.
_FIRST_ELEMENTS = tuple(
    number.to_bytes(2, "little")
    for number in (0x01, 0x02, 0x03, 0x10, 0x12, 0x13, 0x14, 0x16, 0x18, 0x20, 0x21, 0x22, 0x23, 0x2A,
                   0x30, 0x31, 0x32, 0x33, 0x50, 0x60)
)  # fmt: skip
_FIRST_VRS = (b"CS", b"DA", b"TM", b"UI", b"SH", b"OB", b"LO", b"DT")
_ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
# Nothing else is kept of a header: reading is faster, and no name or date can get into a message.
_TAGS = [
    "SOPClassUID", "ImageType", "Modality", "SliceThickness", "PatientID", "SpacingBetweenSlices", "SeriesInstanceUID",
    "ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID", "SamplesPerPixel",
    "PhotometricInterpretation", "PresentationLUTShape", "NumberOfFrames", "Rows", "Columns", "BitsAllocated",
    "PixelSpacing",
    "RescaleIntercept", "RescaleSlope", "RescaleType", "ModalityLUTSequence", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]  # fmt: skip
# What pydicom lets through when a file is cut off or damaged, except for its own errors: see broken_dicom.
_BROKEN: tuple[type[Exception], ...] = (
    OSError, EOFError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError, MemoryError, RuntimeError,
    struct.error, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class SliceHeader:
    """What is needed of one slice before its pixels are decoded.

    Attributes:
        modality: ``"CT"``, ``"MR"``, another code in capitals, or "" where the header states none.
        frame: index in a file with functional groups; None where the file is the slice.
        frames: number of frames that the file states.
        bits: allocated for a pixel.
        image_type: the values of ImageType, in capitals.
        lut_shape: PresentationLUTShape, in capitals; "" where it is not stated.
        geometry: place and scale; see :class:`~boltzformer_monai.io.dicom.frames.FrameGeometry`.
    """

    path: Path
    series: str
    modality: str
    patient_id: str
    frame_of_reference: str
    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    image_type: tuple[str, ...]
    lookup_table: bool
    geometry: FrameGeometry
    lut_shape: str = ""
    bits: int = 16
    frame: int | None = None

    @property
    def name(self) -> str:
        """The file, and the frame counted from 1, for messages."""
        return self.path.name if self.frame is None else f"{self.path.name} frame {self.frame + 1}"


@dataclass
class Found:
    """The content of a folder.

    Attributes:
        slices: headers sorted by path, frames of one file in their stored order.
        objects: kind → number of DICOM objects that are no slices.
        images: format → number of files of other image formats.
    """

    slices: list[SliceHeader] = field(default_factory=list)
    objects: Counter[str] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)


def is_dicom_file(path: Path) -> bool:
    """Tell by content whether a file is DICOM, with or without the 128-byte preamble."""
    return _looks_like_dicom(_start(path))


def find_slices(place: Path, files: Sequence[Path] = ()) -> Found:
    """Look at all files of a folder and its subfolders, at one file, or at these files alone.

    Raises:
        VolumeError: a file that is DICOM by name or content is damaged, or one beside slices without suffix is empty or
            named like them. It is not skipped: a lost first or last slice would go unnoticed.
    """
    found, others = Found(), []
    for path in sorted(files) or ([place] if place.is_file() else _files(place)):
        dataset = read_header(path, _TAGS)
        if dataset is not None:
            _sort_in(found, path, dataset)
        elif is_image_file(path):
            found.images["NRRD or MetaImage" if path.suffix.lower() in _ITK_SUFFIXES else "NIfTI"] += 1
        else:
            others.append(path)
    for path in lost_slices(others, (header.path for header in found.slices)):
        raise lost_slice(path)
    if found.objects:
        logger.info("%s: skipped %d DICOM objects that are no slices", place, sum(found.objects.values()))
    return found


def broken_dicom() -> tuple[type[Exception], ...]:
    """Return all that pydicom raises for a damaged file; a function, so that pydicom is imported only when needed."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    return (*_BROKEN, BytesLengthException, InvalidDicomError)


@contextmanager
def damage_as_volume_error(
    path: str | os.PathLike[str], what: str = "cannot be read as DICOM", *, reason: str = "damaged"
) -> Iterator[None]:
    """Turn what pydicom raises for a damaged file into a :class:`VolumeError` that names the file.

    Args:
        path: the file.
        what: what cannot be read, in the words after the path.
        reason: of the error, unless the file ends early.

    Raises:
        VolumeError: the file is damaged, or the operating system does not open it.
    """
    try:
        yield
    except broken_dicom() as error:
        if (closed := cannot_open(path, error)) is not None:
            raise closed from error
        msg = f"{path}: {what} ({one_line(error)}); is the file complete, or truncated?"
        raise VolumeError(msg, reason="truncated" if isinstance(error, EOFError) else reason) from error


def one_line(error: BaseException) -> str:
    """Return an error's text up to the first quotation: pydicom quotes values, which may name the patient.

    What only Python says of itself, such as the name of a missing attribute, is put into words.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, (EOFError, AttributeError, LookupError, TypeError)) or "No tag to read" in str(error):
        return "it ends early or lacks a required part"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    text = re.split(r"\bb?['\"]|['\"]", str(error).strip().partition("\n")[0])[0].strip()
    if isinstance(error, ArithmeticError) or text.startswith(("could not convert", "invalid literal")):
        return "a number in it is none"
    return text[:160] or "it contradicts its own header"


def _start(path: Path) -> bytes:
    try:
        with open_file(path) as file:
            return file.read(132)
    except OSError as error:
        raise not_opened(path, error) from error


def _looks_like_dicom(start: bytes) -> bool:
    """Tell by the first 132 bytes; without a preamble a file begins with the first element of its first group."""
    if start[128:] == b"DICM" or start[:4] in _USUAL_STARTS:
        return True
    group, element, vr, length = start[:2], start[2:4], start[4:6], int.from_bytes(start[4:8], "little")
    if group not in (b"\x02\0", b"\x08\0") or element not in _FIRST_ELEMENTS:
        return False
    # Explicit VR, or implicit with the length of a short text; anything else only begins by chance like this.
    return vr in _FIRST_VRS or length <= 128


def _files(folder: Path) -> list[Path]:
    """Return all files below a folder except hidden ones (which macOS adds to every copied folder), sorted."""
    tree = read_tree(folder, follow=False)
    for place, reason in tree.closed:
        raise VolumeError(f"{place}: cannot be listed ({reason}); slices may lie in it", reason="missing")
    return sorted(path for path in tree.files if path.is_file())


def read_header(path: Path, tags: Sequence[str]) -> Dataset | None:
    """Return these fields of a file; None for one that is not DICOM and does not claim to be.

    Raises:
        VolumeError: it cannot be opened or is damaged.
    """
    start = _start(path)
    if _looks_like_dicom(start):
        with damage_as_volume_error(path):
            return read_dicom(path, tags=tags, pixels=False)
    if path.suffix.lower() in DICOM_SUFFIXES:
        msg = f"{path}: is named like a DICOM file but is none (empty or truncated?); repair or remove it"
        raise VolumeError(msg, reason="truncated" if len(start) < 132 else "damaged")
    return None


def _sort_in(found: Found, path: Path, dataset: Dataset) -> None:
    with damage_as_volume_error(path):
        kind = other_kind(dataset)
        if kind is None and ("Rows" not in dataset or "Columns" not in dataset):
            msg = f"{path}: its DICOM header ends early or lacks Rows and Columns (truncated?); repair or remove it"
            raise VolumeError(msg, reason="truncated")
        if kind is None:
            found.slices += _slices(path, dataset)
        elif kind:
            found.objects[kind] += 1


def _slices(path: Path, dataset: Dataset) -> list[SliceHeader]:
    frames = int(dataset.get("NumberOfFrames") or 1)
    grouped = any(f"{name}FunctionalGroupsSequence" in dataset for name in ("Shared", "PerFrame"))
    image_type = dataset.get("ImageType") or ()
    header = SliceHeader(
        path=path,
        series=str(dataset.get("SeriesInstanceUID") or ""),
        modality=modality_of_header(str(dataset.get("Modality") or ""), str(dataset.get("SOPClassUID") or "")),
        patient_id=str(dataset.get("PatientID") or ""),
        frame_of_reference=str(dataset.get("FrameOfReferenceUID") or ""),
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        frames=frames,
        samples=int(dataset.get("SamplesPerPixel", 1)),
        bits=min(int(dataset.get("BitsAllocated") or 16), 64),
        photometric=str(dataset.get("PhotometricInterpretation") or ""),
        image_type=tuple(str(v).upper() for v in ([image_type] if isinstance(image_type, str) else image_type)),
        lookup_table=bool(dataset.get("ModalityLUTSequence")),
        lut_shape=str(dataset.get("PresentationLUTShape") or "").strip().upper(),
        # Frames without functional groups have no place of their own: one header stands for all, and will be refused.
        geometry=FrameGeometry() if grouped or frames != 1 else classic_geometry(dataset),
    )
    if not grouped:
        return [header]
    return [replace(header, frame=k, geometry=place) for k, place in enumerate(frame_geometries(dataset))]
