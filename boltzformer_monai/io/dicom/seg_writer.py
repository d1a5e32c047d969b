"""Write masks as a DICOM SEG that refers to the series they were made on.

Masks are mapped to the source slices by position. The object is read back with this package's own reader and compared
voxel for voxel before it takes its name. :func:`check_can_be_seg` checks a scan's headers before any mask exists.
"""

from __future__ import annotations

import copy
import io
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom.files import one_line
from boltzformer_monai.io.dicom.seg_reader import read_dicom_seg
from boltzformer_monai.io.dicom.seg_source import SegSource, making, seg_source
from boltzformer_monai.io.label_map import reorient_label
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.storage import atomic_path

ANATOMY = ("91723000", "Anatomical Structure")
"""(SNOMED CT code, meaning) of the category."""
_ALTERED = ("49755003", "Morphologically Abnormal Structure")
SIDES = {"left": ("7771000", "Left"), "right": ("24028007", "Right")}
"""(SNOMED CT code, meaning) of a :class:`SegmentCode`'s side."""
_LO = 64  # characters of a short text in DICOM
_ST = 1024  # of a description


@dataclass(frozen=True)
class SegmentCode:
    """What a segment shows, in SNOMED CT as DICOM PS3.16 lists it.

    Attributes:
        value: the code.
        meaning: its words.
        side: ``"left"``, ``"right"`` or None; becomes the modifier of the type.
        category: (code, meaning) of the kind of thing; anatomy unless given.
        site: anatomy that a finding lies in, where it is known; becomes the anatomic region.
    """

    value: str
    meaning: str
    side: str | None = None
    category: tuple[str, str] = ANATOMY
    site: SegmentCode | None = None


TISSUE = SegmentCode("85756007", "Tissue", category=("85756007", "Tissue"))
"""For a target without a known code; the label holds the prompt."""
LESION = SegmentCode("52988006", "Lesion", category=_ALTERED)
MASS = SegmentCode("4147007", "Mass", category=_ALTERED)
NEOPLASM = SegmentCode("108369006", "Neoplasm", category=_ALTERED)
NODULE = SegmentCode("27925004", "Nodule", category=_ALTERED)


def check_can_be_seg(scan: Path | Sequence[Path], *, series: str | None = None, names: Sequence[str] = ()) -> None:
    """Check that :func:`write_dicom_seg` can write segments of these ``names``: by headers alone, on slices of a pixel.

    Raises:
        VolumeError: as :func:`write_dicom_seg` would, once the masks are made.
    """
    source = seg_source(scan, series)
    small = [copy.copy(image) for image in source.images]
    for image in small:
        image.Rows = image.Columns = 1
    named = [(name, TISSUE) for name in names or ("any",)]
    stack = np.zeros((len(named), len(source.order), 1, 1), np.uint8)
    stack[:, 0] = 1
    with making("DICOM SEG", source.grid.source, instead=".nii.gz"):
        dataset = _segmentation(
            replace(source, images=small), stack, named, "BoltzFormer", "0", "", "any", "AUTOMATIC", {}
        )
        dataset.save_as(io.BytesIO())


def write_dicom_seg(
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
) -> int:
    """Write a binary DICOM SEG that refers to the scan's instances; atomically, and only if it reads back the same.

    Masks may overlap. One mask is in memory at a time; they wait in a temporary file.

    Args:
        path: an existing file is replaced; its folder must exist.
        scan: what the grid was read from: a folder with one series, an enhanced multi-frame file, or all files of the
            series.
        masks: (label, code or None, boolean array (I, J, K) on ``grid``) of each segment, numbered from 1. One without
            voxels is left out, because a SEG cannot show it.
        grid: the volume whose axes and affine the masks have; any order and flip of the series' own.
        algorithm: name of what made the masks, with its ``version``.
        model: identifies the weights, e.g. the start of their hash.
        series: the SeriesInstanceUID, where the folder holds several.
        description: SeriesDescription of the new series.
        made: ``"AUTOMATIC"``, or ``"SEMIAUTOMATIC"`` where a person has checked or corrected the masks.
        remarks: label → what a reader must know of the segment, for its SegmentDescription (1024 letters).

    Returns:
        The number of segments written.

    Raises:
        VolumeError: no voxels at all, the scan is no DICOM series or not on the grid of the masks, the file cannot be
            written, or it does not read back as it should.
    """
    target = Path(path)
    found = seg_source(scan, series)
    source, order = found.grid, found.order
    with tempfile.TemporaryFile() as file:
        named = _store(masks, grid, source, order, file)
        if not named:
            msg = f"{target}: no mask has a voxel, and a DICOM SEG without segments does not exist; nothing is written"
            raise VolumeError(msg, reason="labels")
        columns, rows, depth = source.shape
        stack = np.memmap(file, np.uint8, "r", shape=(len(named), depth, rows, columns))
        settings = (algorithm, version, model, description, made, remarks or {})
        try:
            with making("DICOM SEG", target, instead=".nii.gz"):
                dataset = _segmentation(found, stack, named, *settings)
            with atomic_path(target) as temporary:
                with making("DICOM SEG", target, instead=".nii.gz"):
                    dataset.save_as(temporary)
                _check(temporary, target, source, stack, order)
        except OSError as error:
            msg = f"{target}: cannot be written ({one_line(error)}); does its folder exist and have room?"
            raise VolumeError(msg, reason="write") from error
    return len(named)


def _store(
    masks: Iterable[tuple[str, SegmentCode | None, np.ndarray]],
    grid: Volume,
    source: Volume,
    order: Sequence[int],
    file: IO[bytes],
) -> list[tuple[str, SegmentCode]]:
    """Write the masks that have voxels to a file, frames as (slices, rows, columns); return their names and codes."""
    named = []
    for name, code, mask in masks:
        if mask.dtype != np.bool_ or mask.shape != grid.shape:
            msg = f"{name!r}: a mask is a bool array of the scan's shape {grid.shape}, got {mask.dtype} {mask.shape}"
            raise VolumeError(msg, reason="grid")
        if not mask.any():
            continue
        # By position: the masks may have any order and flip of the series' axes.
        turned = reorient_label(Volume(mask, grid.affine, source=name), source).array
        frames = np.empty(turned.shape[::-1], np.uint8)
        frames[order] = turned.transpose(2, 1, 0)
        file.write(frames.data)
        named.append((name, code or TISSUE))
    file.flush()
    return named


def _segmentation(
    source: SegSource,
    stack: np.ndarray,
    named: Sequence[tuple[str, SegmentCode]],
    algorithm: str,
    version: str,
    model: str,
    description: str,
    made: str,
    remarks: Mapping[str, str],
) -> Any:
    import highdicom
    from highdicom.seg import Segmentation, SegmentationTypeValues
    from pydicom.uid import ExplicitVRLittleEndian

    dataset = Segmentation(
        source_images=source.images,
        pixel_array=np.moveaxis(stack, 0, -1),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _described(number, name, code, algorithm, version, made, remarks.get(name, ""))
            for number, (name, code) in enumerate(named, 1)
        ],
        series_instance_uid=highdicom.UID(),
        series_number=source.series_number,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="boltzformer-monai",
        manufacturer_model_name=algorithm[:_LO],
        software_versions=version[:_LO],
        device_serial_number=model[:_LO] or "unknown",
        content_description=description[:_LO],
        content_label="SEGMENTATION",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description=description[:_LO],
    )
    dataset.SpecificCharacterSet = "ISO_IR 192"  # prompts come in any script, whatever the scan's texts are written in
    if source.lossy:
        dataset.LossyImageCompression = "01"  # also where the scan does not say how much was lost
    return dataset


def _described(number: int, name: str, code: SegmentCode, algorithm: str, version: str, made: str, remark: str) -> Any:
    import highdicom
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
    from highdicom.sr import CodedConcept

    def concept(value: str, meaning: str) -> Any:
        return CodedConcept(value, "SCT", meaning)

    text = " ".join(name.replace("\\", "/").split())  # a backslash separates values in DICOM
    described = SegmentDescription(
        segment_number=number,
        segment_label=text[:_LO],
        segmented_property_category=concept(*code.category),
        segmented_property_type=concept(code.value, code.meaning),
        algorithm_type=SegmentAlgorithmTypeValues(made),
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=algorithm[:_LO], family=CodedConcept("123109", "DCM", "Artificial Intelligence"), version=version[:_LO]
        ),
        tracking_uid=highdicom.UID(),
        tracking_id=text[:_LO],
    )
    # What does not fit into the label, and what must be known, which is never cut off by a long name.
    words = " ".join(remark.replace("\\", "/").split())[:_ST]
    if len(text) > _LO and len(words) + 2 < _ST:
        words = f"{text[: _ST - len(words) - 2]}. {words}" if words else text[:_ST]
    if words:
        described.SegmentDescription = words
    if code.side is not None:
        kind = described.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [concept(*SIDES[code.side])]
    if code.site is not None:
        region = concept(code.site.value, code.site.meaning)
        if code.site.side is not None:
            region.AnatomicRegionModifierSequence = [concept(*SIDES[code.site.side])]
        described.AnatomicRegionSequence = [region]
    return described


def _check(path: Path, target: Path, source: Volume, stack: np.ndarray, order: Sequence[int]) -> None:
    """Read the file as any other SEG and compare it with what was to be written."""
    read = read_dicom_seg(path, source)
    for number, written in enumerate(stack, 1):
        values = [int(value) for value in read.segments.get(str(number), "0").split("+")]
        for index, frame in enumerate(order):
            if not np.array_equal(np.isin(read.array[:, :, index].T, values), written[frame] != 0):
                msg = f"{target}: segment {number} did not read back as written; nothing is kept, please report it"
                raise VolumeError(msg, reason="write")
