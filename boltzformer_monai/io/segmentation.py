"""Annotations of a scan, from whatever file they come in, as one label map on the scan's own grid."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from boltzformer_monai.errors import DatasetError, VolumeError
from boltzformer_monai.io.dicom.files import damage_as_volume_error, is_dicom_file
from boltzformer_monai.io.dicom.open import read_dicom
from boltzformer_monai.io.dicom.rtstruct import read_rtstruct
from boltzformer_monai.io.dicom.seg_reader import read_dicom_seg
from boltzformer_monai.io.dicom.sop_classes import annotation_kind
from boltzformer_monai.io.formats import is_image_file
from boltzformer_monai.io.grids import GRID_TOLERANCE, check_grid_tolerance
from boltzformer_monai.io.label_file import read_image_segments
from boltzformer_monai.io.label_layers import FlatSegments
from boltzformer_monai.io.read import existing
from boltzformer_monai.io.volume import Volume


@dataclass(frozen=True)
class Segmentation:
    """What was drawn on a scan.

    Overlapping segments share one label map: every combination of segments that occurs has its own value, and a
    segment is the set of the values it takes part in.

    Attributes:
        volume: label map (I, J, K), uint8, uint16 or uint32, on the grid of the scan; its caveats are the reader's.
        names: ``"2"``, or ``"1+3"`` for a segment of several values → the name that the file gives it; None where the
            file (a plain label map) carries no names.
        segments: segment number (of a DICOM SEG, an ROI, a layer from 1, a .seg.nrrd) → its values, ``"2"`` or
            ``"2+5"``; None for a plain label map, whose values are its segments.
        titles: segment number → the name that the file gives it, ``""`` for none.
        renamed: segment number, or ``"1+3"`` → the name that a user gave it instead; see :meth:`named`.
    """

    volume: Volume
    names: Mapping[str, str] | None = None
    segments: Mapping[str, str] | None = None
    titles: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)

    def named(self, labels: Mapping[str, str]) -> Segmentation:
        """Return the same drawing with the names of a user in place of the file's.

        Args:
            labels: the user's numbers of segments (of label values, for a plain label map), ``"2"`` or ``"2+3"`` for
                several segments that are one target → name. A segment that the file lacks becomes a value that does
                not occur.

        Raises:
            DatasetError: a number is none, or two names mean the same voxels.
        """
        if self.segments is None:
            return Segmentation(self.volume, {"+".join(_numbers(text)): name for text, name in labels.items()})
        used = {int(value) for text in self.segments.values() for value in text.split("+")}
        unused = (value for value in count(max(used, default=0) + 1))
        names: dict[str, str] = {}
        renamed: dict[str, str] = {}
        for text, name in labels.items():
            numbers = _numbers(text)
            renamed["+".join(numbers)] = name
            texts = [self.segments.get(number) or str(next(unused)) for number in numbers]
            values = "+".join(map(str, sorted({int(value) for text in texts for value in text.split("+")})))
            if values in names:
                msg = f'"{names[values]}" and "{name}" name the same voxels of the annotation; leave one out'
                raise DatasetError(msg)
            names[values] = name
        return Segmentation(self.volume, names, self.segments, self.titles, renamed)


def read_segmentation(
    path: str | os.PathLike[str], image: Volume, *, tolerance: float = GRID_TOLERANCE
) -> Segmentation:
    """Read an annotation on the grid of the scan that it was drawn on; nothing is ever resampled.

    Args:
        path: a label map or layers of segments (NIfTI, NRRD, MetaImage, 3D Slicer's .seg.nrrd), a DICOM SEG, a DICOM
            RTSTRUCT, or a folder with exactly one of the latter two.
        image: the scan; its grid and its frame of reference decide.
        tolerance: how far, as a share of a voxel (up to 0.5), a voxel of the annotation may lie from the scan's.

    Returns:
        Labels in the axes and with the affine of the image; other axis orders and flips are turned. Its volume has a
        caveat where the grids were not quite the same.

    Raises:
        VolumeError: missing or damaged, no annotation, or not on the grid of the image.
        ConfigError: the tolerance is out of range.
    """
    check_grid_tolerance(tolerance)
    place = existing(path)
    if place.is_dir():
        place = _only_annotation(place)
    elif is_image_file(place):
        drawn = read_image_segments(place, image, tolerance=tolerance)
        return Segmentation(drawn) if isinstance(drawn, Volume) else _on_image(drawn, image, path)
    elif not is_dicom_file(place):
        msg = f"{place}: unknown format; an annotation is NIfTI, NRRD, MetaImage, DICOM SEG or RTSTRUCT"
        raise VolumeError(msg, reason="unsupported format")
    return _on_image(_read_dicom(place, image, tolerance), image, path)


def find_dicom_seg(path: str | os.PathLike[str]) -> Path | None:
    """The DICOM SEG that :func:`read_segmentation` reads; None for an annotation of another kind.

    Raises:
        VolumeError: missing or damaged, or a folder without exactly one annotation.
    """
    place = existing(path)
    if place.is_dir():
        place = _only_annotation(place)
    elif is_image_file(place) or not is_dicom_file(place):
        return None
    return place if _kind(place) == "SEG" else None


def _on_image(drawn: FlatSegments, image: Volume, path: str | os.PathLike[str]) -> Segmentation:
    volume = Volume(drawn.array, image.affine, source=str(path), caveats=drawn.caveats)
    return Segmentation(volume, drawn.names, drawn.segments, drawn.titles)


def _read_dicom(place: Path, image: Volume, tolerance: float) -> FlatSegments:
    kind = _kind(place)
    if not kind:
        msg = f"{place}: is a DICOM file but neither SEG nor RTSTRUCT; pass the object that holds the annotation"
        raise VolumeError(msg, reason="labels")
    return read_dicom_seg(place, image, tolerance=tolerance) if kind == "SEG" else read_rtstruct(place, image)


def _only_annotation(folder: Path) -> Path:
    """Return the one SEG or RTSTRUCT of a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    found = [file for file in files if is_dicom_file(file) and _kind(file)]
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:9]) or "none"
        msg = f"{folder}: needs exactly one DICOM SEG or RTSTRUCT (found: {names}); pass the file itself"
        raise VolumeError(msg, reason="labels")
    return found[0]


def _kind(path: Path) -> str:
    """Return ``"SEG"``, ``"RTSTRUCT"`` or ``""``."""
    with damage_as_volume_error(path):
        return annotation_kind(read_dicom(path, tags=["SOPClassUID"], pixels=False))


def _numbers(text: str) -> list[str]:
    parts = [part.strip() for part in str(text).split("+")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise DatasetError(f'"{text}" is no segment number; write "2", or "2+3" for one target of several segments')
    return [str(int(part)) for part in parts]
