"""A writer of small DICOM series that works with pydicom 2.4 and 3."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SeriesWriter = Callable[..., list[Path]]


@pytest.fixture
def write_series(tmp_path: Path) -> SeriesWriter:
    """Return a function that writes one series and returns its files in the order of the slices.

    Slice k of ``stack`` (N, rows, columns) lies at ``origin + k * step``; file names run against the position, and
    ``change(dataset, k)`` may spoil a slice before it is written.
    """
    import pydicom

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
            dataset = pydicom.Dataset()
            dataset.is_little_endian, dataset.is_implicit_VR = True, False
            dataset.file_meta = pydicom.dataset.FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
            dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1." + ("2" if modality == "CT" else "4")
            dataset.SOPInstanceUID = f"{uid}.{index + 1}"
            dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            dataset.SeriesInstanceUID, dataset.Modality, dataset.PatientID = uid, modality, "phantom-1"
            dataset.FrameOfReferenceUID = "1.2.3.9"
            dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = plane.shape[0], plane.shape[1], 1
            dataset.PhotometricInterpretation = "MONOCHROME2"
            dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
            dataset.PixelSpacing = list(spacing)
            dataset.ImageOrientationPatient = list(cosines)
            dataset.ImagePositionPatient = [o + index * s for o, s in zip(origin, step, strict=True)]
            dataset.SliceThickness = 2.5
            dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
            dataset.PixelData = plane.astype("<u2").tobytes()
            change(dataset, index)
            path = folder / f"{uid.rsplit('.', 1)[-1]}-{len(stack) - index:03d}.dcm"
            dataset.save_as(path, write_like_original=False)
            paths.append(path)
        return paths

    return write
