"""The grid of DICOM pictures worked out from their headers by pydicom alone, apart from the reader under test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

Grid = tuple[tuple[int, int, int], np.ndarray]


def dicom_grid(paths: list[Path]) -> Grid:
    """Return the shape (columns, rows, slices) and the RAS+ affine of the pictures of one series.

    Slices are taken in the direction of the normal, whatever the order of the files or frames.
    """
    import pydicom

    planes, thickness = [], 0.0
    for path in paths:
        dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        rows, columns = int(dataset.Rows), int(dataset.Columns)
        frames = dataset.get("PerFrameFunctionalGroupsSequence") or [None]
        for frame in frames:
            position = _group(dataset, frame, "PlanePositionSequence").ImagePositionPatient
            cosines = _group(dataset, frame, "PlaneOrientationSequence").ImageOrientationPatient
            measures = _group(dataset, frame, "PixelMeasuresSequence")
            thickness = float(measures.get("SpacingBetweenSlices") or measures.get("SliceThickness") or 0)
            planes.append([np.array(value, dtype=float) for value in (position, cosines, measures.PixelSpacing)])
    row, column = planes[0][1][:3], planes[0][1][3:]
    normal = np.array(
        [
            row[1] * column[2] - row[2] * column[1],
            row[2] * column[0] - row[0] * column[2],
            row[0] * column[1] - row[1] * column[0],
        ]
    )
    planes.sort(key=lambda plane: float(plane[0] @ normal))
    step = (planes[-1][0] - planes[0][0]) / (len(planes) - 1) if len(planes) > 1 else thickness * normal
    affine = np.eye(4)
    affine[:3, 0] = row * planes[0][2][1]  # along a row: from column to column
    affine[:3, 1] = column * planes[0][2][0]
    affine[:3, 2] = step
    affine[:3, 3] = planes[0][0]
    affine[:2] *= -1  # LPS → RAS
    return (columns, rows, len(planes)), affine


def _group(dataset: Any, frame: Any, name: str) -> Any:
    """Return the item that holds a frame's geometry: its own, the shared one, or the header of a classic slice."""
    if frame is None:
        return dataset
    if name in frame:
        return frame[name].value[0]
    return dataset.SharedFunctionalGroupsSequence[0][name].value[0]
