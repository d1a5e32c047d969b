"""DICOM RTSTRUCT: the closed contours of each region of interest (ROI), filled on the slices of an image."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.contours import fill_contours
from boltzformer_monai.io.dicom_guard import damage_as_volume_error
from boltzformer_monai.io.label_layers import FlatSegments, Layer, flatten_layers
from boltzformer_monai.io.lattice import check_frame_of_reference
from boltzformer_monai.io.orientation import LPS_TO_RAS
from boltzformer_monai.io.volume import Volume

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

logger = logging.getLogger(__name__)

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_OFF_SLICE = 0.1  # of the slice spacing: how far from a slice a contour may lie
_BESIDE = 0.5 + 1e-3  # pixels from the outermost centres to the edge of the picture


@dataclass(frozen=True)
class _Roi:
    """One region: its closed contours, each (N, 3) mm RAS+."""

    number: int
    name: str
    frame_of_reference: str
    contours: list[np.ndarray]


def read_rtstruct(path: Path, image: Volume) -> FlatSegments:
    """Read an RTSTRUCT on the grid of an image.

    A voxel belongs to an ROI when its centre lies inside an odd number of the ROI's contours on its slice (so a contour
    inside another is a hole; a centre on the contour: see :func:`fill_contours`). Contours may lie in any of
    the three planes along the image's axes. Open contours and points are left out with a warning; an ROI without closed
    contours is a segment without voxels.

    Raises:
        VolumeError: damaged or truncated, another frame of reference than the image's, or a contour that does not lie
            on a slice of the image; it names the ROI.
    """
    import pydicom

    with damage_as_volume_error(path, "cannot be read as RTSTRUCT"):
        rois = _parse(path, pydicom.dcmread(path, force=True))
    if not rois:
        msg = f"{path}: lists no regions of interest; is the file complete?"
        raise VolumeError(msg, reason="damaged")
    for roi in rois:
        if roi.contours:
            check_frame_of_reference(path, roi.frame_of_reference, image)
    empty = [f'"{roi.name}"' for roi in rois if not roi.contours]
    if empty:
        logger.warning("%s: no closed contours, so nothing is drawn, for %s", path, ", ".join(empty))
    titles = {roi.number: roi.name for roi in rois}
    return flatten_layers(
        image.shape, titles, (layer for roi in rois if roi.contours for layer in _fill(path, roi, image))
    )


def _parse(path: Path, dataset: Dataset) -> list[_Roi]:
    frames = dataset.get("ReferencedFrameOfReferenceSequence") or [dataset]
    common = str(frames[0].get("FrameOfReferenceUID") or "")
    named = {int(item.ROINumber): item for item in dataset.StructureSetROISequence}
    drawn: dict[int, list[np.ndarray]] = {number: [] for number in named}
    for item in dataset.ROIContourSequence:
        number = int(item.ReferencedROINumber)
        if number not in named:
            msg = f"{path}: has contours of an ROI {number} that it does not list; the header is damaged"
            raise VolumeError(msg, reason="damaged")
        drawn[number] += _closed(path, str(named[number].get("ROIName") or number), item)
    return [
        _Roi(
            number,
            str(item.get("ROIName") or "").strip(),
            str(item.get("ReferencedFrameOfReferenceUID") or common),
            drawn[number],
        )
        for number, item in named.items()
    ]


def _closed(path: Path, name: str, item: Dataset) -> list[np.ndarray]:
    """Return the closed contours of one ROI."""
    closed, left_out = [], 0
    for contour in item.get("ContourSequence") or []:
        points = _points(contour)
        stated = contour.get("NumberOfContourPoints")
        if (stated is not None and int(stated) != len(points)) or not np.isfinite(points).all():
            msg = f'{path}: a contour of "{name}" has not the points that it states; is the file complete?'
            raise VolumeError(msg, reason="damaged")
        if str(contour.ContourGeometricType) in _CLOSED and len(points) > 2:
            closed.append(points * LPS_TO_RAS)
        else:
            left_out += 1
    if left_out:
        logger.warning('%s: "%s": %d points or open contours are left out', path, name, left_out)
    return closed


def _points(contour: Dataset) -> np.ndarray:
    """Return the points (N, 3) of a contour, straight from the bytes: pydicom makes an object of each number."""
    value = contour.get_item("ContourData").value or b""
    if isinstance(value, bytes):
        value = value.strip(b" \0").split(b"\\") if value else []
    return np.array(value, dtype=np.float64).reshape(-1, 3)


def _fill(path: Path, roi: _Roi, image: Volume) -> Iterator[Layer]:
    """Yield the slices of one ROI."""
    to_voxels = np.linalg.inv(image.affine)
    contours = [points @ to_voxels[:3, :3].T + to_voxels[:3, 3] for points in roi.contours]
    across = int(np.argmin(sum(np.ptp(points, axis=0) for points in contours)))
    in_plane = [axis for axis in range(3) if axis != across]
    size = np.array(image.shape)
    by_slice: dict[int, list[np.ndarray]] = {}
    cut_off = False
    for points in contours:
        position = float(np.rint(points[:, across].mean()))
        if np.abs(points[:, across] - position).max() > _OFF_SLICE or not 0 <= position < size[across]:
            msg = (
                f'{path}: a contour of "{roi.name}" lies on no slice of the image; pass the scan that it was drawn on, '
                "in full and in its own slices"
            )
            raise VolumeError(msg, reason="grid")
        flat = points[:, in_plane]
        cut_off |= bool((flat < -_BESIDE).any() or (flat > size[in_plane] - 1 + _BESIDE).any())
        by_slice.setdefault(int(position), []).append(flat)
    if cut_off and not (roi.frame_of_reference and image.frame_of_reference):
        msg = (
            f'{path}: "{roi.name}" reaches beyond the image, and no frame of reference says that they belong together; '
            "pass the DICOM series that it was drawn on"
        )
        raise VolumeError(msg, reason="grid")
    if cut_off:
        logger.warning('%s: "%s" reaches beyond the image and is cut off there', path, roi.name)
    for position, flat_contours in sorted(by_slice.items()):
        yield _slice_layer(roi.number, flat_contours, size, across, position)


def _slice_layer(number: int, contours: list[np.ndarray], size: np.ndarray, across: int, position: int) -> Layer:
    """Fill contours, (N, 2) in pixels, inside their bounding box."""
    limit = np.delete(size, across)
    points = np.concatenate(contours)
    low = np.clip(np.floor(points.min(axis=0)), 0, limit).astype(np.int64)
    high = np.clip(np.ceil(points.max(axis=0)) + 1, low, limit).astype(np.int64)
    mask = fill_contours([contour - low for contour in contours], (int(high[0] - low[0]), int(high[1] - low[1])))
    corner = np.insert(low, across, position)
    return Layer(number, np.expand_dims(mask, across), (int(corner[0]), int(corner[1]), int(corner[2])))
