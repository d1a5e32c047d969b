"""Writers of small DICOM SEG and RTSTRUCT objects, with pydicom 2.4 and 3."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FRAME_OF_REFERENCE = "1.2.3.9"
_LPS = np.array([-1.0, -1.0, 1.0])


def write_seg(
    path: Path,
    masks: Mapping[int, np.ndarray],
    affine: np.ndarray,
    *,
    kind: str = "BINARY",
    labels: Mapping[int, str] | None = None,
    frame_of_reference: str = FRAME_OF_REFERENCE,
    change: Callable[[Any], None] = lambda dataset: None,
) -> Path:
    """Write segments (columns, rows, slices) whose axes are those of the frames; empty frames are left out.

    The masks of a fractional SEG are bytes; a LABELMAP takes one array of numbers, under the number 0.
    """
    dataset = _dataset("1.2.840.10008.5.1.4.1.1.66.7" if kind == "LABELMAP" else "1.2.840.10008.5.1.4.1.1.66.4", "SEG")
    dataset.FrameOfReferenceUID = frame_of_reference
    dataset.SegmentationType, dataset.MaximumFractionalValue = kind, 200
    first = next(iter(masks.values()))
    dataset.Columns, dataset.Rows = first.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    bits = 1 if kind == "BINARY" else 8 * first.dtype.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    numbers = sorted(set(np.unique(first).tolist()) - {0}) if kind == "LABELMAP" else list(masks)
    dataset.SegmentSequence = [_segment(number, (labels or {}).get(number, f"part {number}")) for number in numbers]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    dataset.SharedFunctionalGroupsSequence = [
        _item(
            PlaneOrientationSequence=[
                _item(ImageOrientationPatient=_numbers((_LPS[:, None] * affine[:3, :2] / spacing[:2]).T.ravel()))
            ],
            PixelMeasuresSequence=[_item(PixelSpacing=_numbers(spacing[[1, 0]]), SliceThickness="1")],
        )
    ]
    frames, pixels = [], []
    for number, mask in masks.items():
        for index in range(mask.shape[2]):
            if not mask[:, :, index].any():
                continue
            place = _LPS * (affine @ (0, 0, index, 1))[:3]
            frames.append(_item(PlanePositionSequence=[_item(ImagePositionPatient=_numbers(place))]))
            if kind != "LABELMAP":
                frames[-1].SegmentIdentificationSequence = [_item(ReferencedSegmentNumber=number)]
            pixels.append(mask[:, :, index].T)
    dataset.NumberOfFrames, dataset.PerFrameFunctionalGroupsSequence = len(frames), frames
    stack = np.stack(pixels)
    data = np.packbits(stack.astype(bool).ravel(), bitorder="little").tobytes() if bits == 1 else stack.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    return _save(dataset, path, change)


def write_rtstruct(
    path: Path,
    rois: Mapping[str, Sequence[np.ndarray]],
    *,
    kind: str = "CLOSED_PLANAR",
    frame_of_reference: str = FRAME_OF_REFERENCE,
    change: Callable[[Any], None] = lambda dataset: None,
) -> Path:
    """Write regions as contours, each (N, 3) mm RAS+; they get the numbers 1, 2, …"""
    dataset = _dataset("1.2.840.10008.5.1.4.1.1.481.3", "RTSTRUCT")
    dataset.StructureSetROISequence = [
        _item(ROINumber=number, ROIName=name, ReferencedFrameOfReferenceUID=frame_of_reference)
        for number, name in enumerate(rois, 1)
    ]
    dataset.ROIContourSequence = [
        _item(
            ReferencedROINumber=number,
            ContourSequence=[
                _item(
                    ContourGeometricType=kind,
                    NumberOfContourPoints=len(points),
                    ContourData=_numbers((points * _LPS).ravel()),
                )
                for points in contours
            ],
        )
        for number, contours in enumerate(rois.values(), 1)
    ]
    return _save(dataset, path, change)


def voxel_outlines(mask: np.ndarray, affine: np.ndarray, *, across: int) -> list[np.ndarray]:
    """Return a contour in mm around every voxel of a mask, in the planes across an axis; together they are the mask."""
    square = np.insert(np.array([(-0.5, -0.5), (-0.5, 0.5), (0.5, 0.5), (0.5, -0.5)]), across, 0, axis=1)
    return [(voxel + square) @ affine[:3, :3].T + affine[:3, 3] for voxel in np.argwhere(mask)]


def box_outline(
    low: Sequence[float], high: Sequence[float], affine: np.ndarray, *, across: int, position: float
) -> np.ndarray:
    """Return a rectangle in mm, given in voxels of the two axes in its plane."""
    corners = np.array([(low[0], low[1]), (low[0], high[1]), (high[0], high[1]), (high[0], low[1])], dtype=float)
    return np.insert(corners, across, position, axis=1) @ affine[:3, :3].T + affine[:3, 3]


def _segment(number: int, label: str) -> Any:
    meaning = [_item(CodeValue="1", CodingSchemeDesignator="99TEST", CodeMeaning=f"type {number}")]
    return _item(SegmentNumber=number, SegmentLabel=label, SegmentedPropertyTypeCodeSequence=meaning)


def _dataset(sop_class: str, modality: str) -> Any:
    import pydicom

    dataset = pydicom.Dataset()
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.77"
    dataset.Modality = modality
    return dataset


def _item(**elements: Any) -> Any:
    import pydicom

    item = pydicom.Dataset()
    for name, value in elements.items():
        setattr(item, name, value)
    return item


def _numbers(values: np.ndarray) -> list[str]:
    return [f"{round(float(value), 9):.10g}" for value in values]


def _save(dataset: Any, path: Path, change: Callable[[Any], None]) -> Path:
    change(dataset)
    dataset.save_as(path, write_like_original=False)
    return path
