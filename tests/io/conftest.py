"""Writers of small DICOM series and multi-frame files that work with pydicom 2.4 and 3."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SeriesWriter = Callable[..., list[Path]]
FileWriter = Callable[..., Path]


def _dataset(pixels: np.ndarray, kind: str, uid: str, number: int, modality: str) -> Any:
    """Return everything of an image object except its place in the patient."""
    import pydicom

    dataset = pydicom.Dataset()
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = f"1.2.840.10008.5.1.4.1.1.{kind}", f"{uid}.{number}"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.SeriesInstanceUID, dataset.Modality, dataset.PatientID = uid, modality, "phantom-1"
    dataset.FrameOfReferenceUID = "1.2.3.9"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = pixels.shape[-2], pixels.shape[-1], 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelData = pixels.astype("<u2").tobytes()
    return dataset


@pytest.fixture
def write_series(tmp_path: Path) -> SeriesWriter:
    """Return a function that writes one series and returns its files in the order of the slices.

    Slice k of ``stack`` (N, rows, columns) lies at ``origin + k * step``; file names run against the position, and
    ``change(dataset, k)`` may spoil a slice before it is written.
    """

    def write(
        stack: np.ndarray,
        *,
        folder: Path | None = None,
        origin: tuple[float, float, float] = (-100.0, -50.0, 10.0),
        step: tuple[float, float, float] = (0.0, 0.0, 2.5),
        cosines: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
        spacing: tuple[float, float] = (0.8, 0.6),
        modality: str = "CT",
        uid: str = "1.2.3.4.1",
        change: Callable[[Any, int], None] = lambda dataset, index: None,
    ) -> list[Path]:
        folder = folder or tmp_path / "series"
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for index, plane in enumerate(stack):
            dataset = _dataset(plane, "2" if modality == "CT" else "4", uid, index + 1, modality)
            dataset.PixelSpacing = list(spacing)
            dataset.ImageOrientationPatient = list(cosines)
            dataset.ImagePositionPatient = [o + index * s for o, s in zip(origin, step, strict=True)]
            dataset.SliceThickness = 2.5
            dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
            change(dataset, index)
            path = folder / f"{uid.rsplit('.', 1)[-1]}-{len(stack) - index:03d}.dcm"
            dataset.save_as(path, write_like_original=False)
            paths.append(path)
        return paths

    return write


@pytest.fixture
def write_enhanced(tmp_path: Path) -> FileWriter:
    """Return a function that writes one enhanced multi-frame file and returns its path.

    Frame k of ``stack`` (N, rows, columns) lies at ``positions[k]`` and has ``slopes[k]``; the rest is shared.
    ``change(dataset)`` may spoil the object before it is written.
    """
    from pydicom import Dataset, Sequence

    def items(**values: Any) -> Sequence:
        item = Dataset()
        for name, value in values.items():
            setattr(item, name, value)
        return Sequence([item])

    def write(
        stack: np.ndarray,
        positions: np.ndarray,
        *,
        path: Path | None = None,
        cosines: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
        spacing: tuple[float, float] = (0.8, 0.6),
        slopes: tuple[float, ...] | None = None,
        modality: str = "MR",
        number: int = 1,
        change: Callable[[Any], None] = lambda dataset: None,
    ) -> Path:
        dataset = _dataset(stack, "2.1" if modality == "CT" else "4.1", "1.2.3.4.5", number, modality)
        dataset.NumberOfFrames = len(stack)
        shared, frames = Dataset(), []
        shared.PlaneOrientationSequence = items(ImageOrientationPatient=[f"{value:.12g}" for value in cosines])
        shared.PixelMeasuresSequence = items(PixelSpacing=list(spacing), SliceThickness="2.5")
        shared.PixelValueTransformationSequence = items(RescaleSlope="1", RescaleIntercept="-1024", RescaleType="US")
        for index, position in enumerate(positions):
            frame = Dataset()
            frame.PlanePositionSequence = items(ImagePositionPatient=[f"{value:.12g}" for value in position])
            if slopes is not None:
                frame.PixelValueTransformationSequence = items(
                    RescaleSlope=str(slopes[index]), RescaleIntercept=str(-index), RescaleType="US"
                )
            frames.append(frame)
        dataset.SharedFunctionalGroupsSequence = Sequence([shared])
        dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
        change(dataset)
        path = path or tmp_path / "enhanced.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path, write_like_original=False)
        return path

    return write
