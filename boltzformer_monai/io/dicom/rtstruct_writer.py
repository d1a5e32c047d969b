"""Write masks as a DICOM RTSTRUCT that refers to the series they were made on.

Every slice of a mask becomes closed planar contours along the edges of its pixels, on the plane of the source slice.
The object is read back and compared voxel for voxel before it takes its name. :func:`check_can_be_rtstruct` checks a
scan's headers before any mask exists.
"""

from __future__ import annotations

import datetime
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom.contours import fill_contours
from boltzformer_monai.io.dicom.files import one_line
from boltzformer_monai.io.dicom.open import read_dicom
from boltzformer_monai.io.dicom.outlines import outlines
from boltzformer_monai.io.dicom.rtstruct import parse_rois
from boltzformer_monai.io.dicom.seg_source import IDENTITY, SegSource, making, seg_source
from boltzformer_monai.io.dicom.seg_writer import ANATOMY, SIDES, TISSUE, SegmentCode
from boltzformer_monai.io.label_map import reorient_label
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.storage import atomic_path

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_SOP_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"  # RT Structure Set Storage
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, retired; what references to studies name
_CONTOUR_DATA = 0x3006_0050
_SH, _LO, _ST = 16, 64, 1024  # characters of texts in DICOM
_DS = 16  # of a decimal number
_FINE = 1000  # parts of a pixel that coordinates are rounded to, or better


@dataclass(frozen=True)
class _Plane:
    """A source slice: what refers to it, and its pixels (column, row, 1) → mm LPS."""

    sop_class: str
    sop_instance: str
    frame: int | None
    to_mm: np.ndarray


@dataclass(frozen=True)
class _Region:
    """A mask: its contours (N, 2) in (column, row) of each slice, and its pixels, packed, for reading back."""

    name: str
    code: SegmentCode
    contours: Mapping[int, Sequence[np.ndarray]]
    pixels: Mapping[int, tuple[np.ndarray, tuple[int, int], np.ndarray]]


@dataclass(frozen=True)
class _Maker:
    """What made the masks."""

    algorithm: str
    version: str
    model: str = ""
    description: str = ""
    made: str = "AUTOMATIC"


def check_can_be_rtstruct(scan: Path | Sequence[Path], *, series: str | None = None, names: Sequence[str] = ()) -> None:
    """Check that :func:`write_rtstruct` can write regions of these ``names``: by headers alone, with one pixel each.

    Raises:
        VolumeError: as :func:`write_rtstruct` would, once the masks are made.
    """
    source = seg_source(scan, series)
    pixel = {0: outlines(np.ones((1, 1), dtype=bool))}
    regions = [_Region(name, TISSUE, pixel, {}) for name in names or ("any",)]
    with making("RTSTRUCT", source.grid.source, instead=".nii.gz"):
        _structure_set(source, regions, _Maker("BoltzFormer", "0"), {}, {}).save_as(
            io.BytesIO(), write_like_original=False
        )


def write_rtstruct(
    path: str | os.PathLike[str],
    *,
    scan: Path | Sequence[Path],
    masks: Iterable[tuple[str, SegmentCode | None, np.ndarray]],
    grid: Volume,
    algorithm: str,
    version: str,
    model: str = "",
    series: str | None = None,
    description: str = "Segmentation by text prompts",
    made: str = "AUTOMATIC",
    remarks: Mapping[str, str] | None = None,
    colours: Mapping[str, str] | None = None,
) -> int:
    """Write an RTSTRUCT that refers to the scan's instances; atomically, and only if it reads back the same.

    Masks may overlap. One mask is in memory at a time. Pixels that touch at a corner only have contours of their own;
    holes are kept by the keyhole technique, see :func:`~boltzformer_monai.io.dicom.outlines.outlines`.

    Args:
        path: an existing file is replaced; its folder must exist.
        scan: what the grid was read from: a folder with one series, an enhanced multi-frame file, or all files of the
            series.
        masks: (name, code or None, boolean array (I, J, K) on ``grid``) of each region, numbered from 1. One without
            voxels is left out.
        grid: the volume whose axes and affine the masks have; any order and flip of the series' own.
        algorithm: name of what made the masks, with its ``version``.
        model: identifies the weights, e.g. the start of their hash.
        series: the SeriesInstanceUID, where the folder holds several.
        description: SeriesDescription of the new series, and StructureSetName.
        made: ``"AUTOMATIC"``, or ``"SEMIAUTOMATIC"`` where a person has checked or corrected the masks.
        remarks: name → what a reader must know of the region, for its ROIDescription (1024 letters).
        colours: name → ``"#RRGGBB"``; without one a viewer chooses.

    Returns:
        The number of regions written.

    Raises:
        VolumeError: no voxels at all, the scan is no DICOM series or not on the grid of the masks, the file cannot be
            written, or it does not read back as it should.
    """
    target = Path(path)
    source = seg_source(scan, series)
    regions = [region for region in (_region(*mask, grid, source.grid) for mask in masks) if region.contours]
    if not regions:
        msg = f"{target}: no mask has a voxel, and an RTSTRUCT without contours shows nothing; nothing is written"
        raise VolumeError(msg, reason="labels")
    maker = _Maker(algorithm, version, model, description, made)
    try:
        with making("RTSTRUCT", target, instead=".nii.gz"):
            dataset = _structure_set(source, regions, maker, remarks or {}, colours or {})
        with atomic_path(target) as temporary:
            with making("RTSTRUCT", target, instead=".nii.gz"):
                dataset.save_as(temporary, write_like_original=False)
            _check(temporary, target, source.grid, regions)
    except OSError as error:
        msg = f"{target}: cannot be written ({one_line(error)}); does its folder exist and have room?"
        raise VolumeError(msg, reason="write") from error
    return len(regions)


def _region(name: str, code: SegmentCode | None, mask: np.ndarray, grid: Volume, source: Volume) -> _Region:
    """Return the contours of a mask on the slices of the source."""
    if mask.dtype != np.bool_ or mask.shape != grid.shape:
        msg = f"{name!r}: a mask is a bool array of the scan's shape {grid.shape}, got {mask.dtype} {mask.shape}"
        raise VolumeError(msg, reason="grid")
    # By position: the masks may have any order and flip of the series' axes.
    turned = reorient_label(Volume(mask, grid.affine, source=name), source).array
    contours, pixels = {}, {}
    for index in np.flatnonzero(turned.any(axis=(0, 1))).tolist():
        plane = turned[:, :, index]
        found = np.argwhere(plane)
        low, high = found.min(axis=0), found.max(axis=0) + 1
        part = plane[low[0] : high[0], low[1] : high[1]]
        contours[index] = outlines(plane)
        pixels[index] = (low, (part.shape[0], part.shape[1]), np.packbits(part))
    return _Region(name, code or TISSUE, contours, pixels)


def _structure_set(
    source: SegSource,
    regions: Sequence[_Region],
    maker: _Maker,
    remarks: Mapping[str, str],
    colours: Mapping[str, str],
) -> Dataset:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ImplicitVRLittleEndian, generate_uid

    planes, first, now = _planes(source), source.images[0], datetime.datetime.now()
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for keyword in (*IDENTITY, "StudyInstanceUID", "FrameOfReferenceUID"):
        setattr(dataset, keyword, getattr(first, keyword))
    dataset.PositionReferenceIndicator = ""
    dataset.SOPClassUID, dataset.SOPInstanceUID = _SOP_CLASS, generate_uid(prefix=None)
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = date, time
    dataset.Modality, dataset.SeriesInstanceUID = "RTSTRUCT", generate_uid(prefix=None)
    dataset.SeriesNumber, dataset.InstanceNumber = source.series_number, 1
    dataset.SeriesDescription = maker.description[:_LO]
    dataset.OperatorsName = ""
    dataset.Manufacturer, dataset.ManufacturerModelName = "boltzformer-monai", maker.algorithm[:_LO]
    dataset.SoftwareVersions, dataset.DeviceSerialNumber = maker.version[:_LO], maker.model[:_LO] or "unknown"
    dataset.StructureSetLabel, dataset.StructureSetName = maker.algorithm[:_SH], maker.description[:_LO]
    dataset.StructureSetDate, dataset.StructureSetTime = date, time
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(first, planes)]
    numbered = list(enumerate(regions, 1))
    dataset.StructureSetROISequence = [
        _roi(number, region, first.FrameOfReferenceUID, maker, remarks.get(region.name, ""))
        for number, region in numbered
    ]
    dataset.ROIContourSequence = [
        _contours(number, region, planes, _digits(source.grid), colours.get(region.name)) for number, region in numbered
    ]
    dataset.RTROIObservationsSequence = [_observation(number, region.code) for number, region in numbered]
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    # Implicit, because an explicit length ends at 64 KiB, and contours do not.
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.is_little_endian = dataset.is_implicit_VR = True
    return dataset


def _planes(source: SegSource) -> list[_Plane]:
    """The source slices, in the order of the grid."""
    images = source.images
    found = []
    for index in source.order:
        image = images[0] if len(images) == 1 else images[index]
        place = orientation = measures = image
        frame = None
        if "PerFrameFunctionalGroupsSequence" in image:
            shared = image.SharedFunctionalGroupsSequence[0]
            place = image.PerFrameFunctionalGroupsSequence[index].PlanePositionSequence[0]
            orientation, measures = shared.PlaneOrientationSequence[0], shared.PixelMeasuresSequence[0]
            frame = index + 1
        turn = np.array(orientation.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
        between_rows, between_columns = map(float, measures.PixelSpacing)
        origin = np.array(place.ImagePositionPatient, dtype=np.float64)
        to_mm = np.stack([turn[0] * between_columns, turn[1] * between_rows, origin], axis=1)
        found.append(_Plane(str(image.SOPClassUID), str(image.SOPInstanceUID), frame, to_mm))
    return found


def _frame_of_reference(first: Dataset, planes: Sequence[_Plane]) -> Dataset:
    instances = {plane.sop_instance: _item(
        ReferencedSOPClassUID=plane.sop_class, ReferencedSOPInstanceUID=plane.sop_instance
    ) for plane in planes}  # fmt: skip
    series = _item(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=list(instances.values()))
    study = _item(
        ReferencedSOPClassUID=_STUDY_CLASS,
        ReferencedSOPInstanceUID=first.StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    return _item(FrameOfReferenceUID=first.FrameOfReferenceUID, RTReferencedStudySequence=[study])


def _roi(number: int, region: _Region, frame_of_reference: str, maker: _Maker, remark: str) -> Dataset:
    text = _words(region.name)
    item = _item(
        ROINumber=number,
        ReferencedFrameOfReferenceUID=frame_of_reference,
        ROIName=text[:_LO],
        ROIGenerationAlgorithm=maker.made,
        ROIGenerationDescription=f"{maker.algorithm} {maker.version}"[:_LO],
    )
    # What does not fit into the name, and what must be known, which is never cut off by a long name.
    words = _words(remark)[:_ST]
    if len(text) > _LO and len(words) + 2 < _ST:
        words = f"{text[: _ST - len(words) - 2]}. {words}" if words else text[:_ST]
    if words:
        item.ROIDescription = words
    return item


def _contours(number: int, region: _Region, planes: Sequence[_Plane], digits: int, colour: str | None) -> Dataset:
    item = _item(ReferencedROINumber=number)
    if colour is not None:
        item.ROIDisplayColor = list(bytes.fromhex(colour[1:]))
    item.ContourSequence = [
        _contour(polygon, planes[index], digits) for index, polygons in region.contours.items() for polygon in polygons
    ]
    return item


def _contour(polygon: np.ndarray, plane: _Plane, digits: int) -> Dataset:
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    image = _item(ReferencedSOPClassUID=plane.sop_class, ReferencedSOPInstanceUID=plane.sop_instance)
    if plane.frame is not None:
        image.ReferencedFrameNumber = plane.frame
    item = _item(ContourImageSequence=[image], ContourGeometricType="CLOSED_PLANAR", NumberOfContourPoints=len(polygon))
    points = polygon @ plane.to_mm[:, :2].T + plane.to_mm[:, 2]
    text = "\\".join(f"{value:.{digits}f}"[:_DS] for value in points.ravel().tolist()).encode()
    text += b" " * (len(text) % 2)
    # As bytes: pydicom would make an object of each number.
    tag = Tag(_CONTOUR_DATA)
    item[tag] = RawDataElement(tag, "DS", len(text), text, 0, True, True)
    return item


def _observation(number: int, code: SegmentCode) -> Dataset:
    """What a region shows. Anatomy is an organ; that a lesion is a gross tumour volume is for physicians to say."""
    kind = _code(code.value, code.meaning)
    if code.side is not None:
        kind.SegmentedPropertyTypeModifierCodeSequence = [_code(*SIDES[code.side])]
    return _item(
        ObservationNumber=number,
        ReferencedROINumber=number,
        SegmentedPropertyCategoryCodeSequence=[_code(*code.category)],
        RTROIIdentificationCodeSequence=[kind],
        RTROIInterpretedType="ORGAN" if code.category == ANATOMY else "",
        ROIInterpreter="",
    )


def _code(value: str, meaning: str) -> Dataset:
    return _item(CodeValue=value, CodingSchemeDesignator="SCT", CodeMeaning=meaning)


def _item(**elements: Any) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


def _words(text: str) -> str:
    return " ".join(text.replace("\\", "/").split())  # a backslash separates values in DICOM


def _digits(grid: Volume) -> int:
    """Decimals of coordinates in mm."""
    finest = float(np.linalg.norm(grid.affine[:3, :3], axis=0).min()) / _FINE
    return max(0, int(np.ceil(-np.log10(finest))))


def _check(path: Path, target: Path, grid: Volume, regions: Sequence[_Region]) -> None:
    """Read the contours as those of any other RTSTRUCT, fill them, and compare with what was to be written."""
    to_voxels = np.linalg.inv(grid.affine)
    for region, roi in zip(regions, parse_rois(path, read_dicom(path)), strict=True):
        by_slice: dict[int, list[np.ndarray]] = {}
        for points in roi.contours:
            voxels = points @ to_voxels[:3, :3].T + to_voxels[:3, 3]
            by_slice.setdefault(int(np.rint(voxels[:, 2].mean())), []).append(voxels[:, :2])
        for index in by_slice.keys() | region.pixels.keys():
            low, shape, packed = region.pixels.get(index, (0, (0, 0), np.empty(0, np.uint8)))
            written = np.unpackbits(packed, count=shape[0] * shape[1]).reshape(shape)
            drawn = [polygon - low for polygon in by_slice.get(index, [])]
            if not written.size or not drawn or not np.array_equal(fill_contours(drawn, shape), written != 0):
                msg = f'{target}: "{region.name}" did not read back as written; nothing is kept, please report it'
                raise VolumeError(msg, reason="write")
