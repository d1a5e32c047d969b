"""DICOM RTSTRUCT: the closed contours of each region of interest (ROI), filled on the slices of an image."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from boltzformer_monai.caveats import Caveat
from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom.contours import FilledRegion, copies, fill_contours, fill_region
from boltzformer_monai.io.dicom.files import damage_as_volume_error
from boltzformer_monai.io.dicom.open import read_dicom
from boltzformer_monai.io.grids import check_frame_of_reference
from boltzformer_monai.io.label_layers import FlatSegments, Layer, flatten_layers
from boltzformer_monai.io.orientation import LPS_TO_RAS
from boltzformer_monai.io.volume import Volume

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

logger = logging.getLogger(__name__)

_XOR = "CLOSEDPLANAR_XOR"
_CLOSED = ("CLOSED_PLANAR", _XOR)
_OFF_SLICE = 0.1  # of the slice spacing: how far from a slice a contour may lie
_FAR = 10_000  # pixels that a contour may reach beyond the image, which may be cut out of the scan it was drawn on
_BESIDE = 0.5 + 1e-3  # pixels from the outermost centres to the edge of the image


@dataclass
class Roi:
    """One region: its closed contours, each (N, 3) mm RAS+, and whether they are combined by exclusive or.

    Filling it counts repeated and crossing contours, and lists the slices that have contours.
    """

    number: int
    name: str
    frame_of_reference: str
    contours: list[np.ndarray]
    xor: bool
    repeated: int = 0
    crossing: int = 0
    slices: list[int] = field(default_factory=list)


def read_rtstruct(path: Path, image: Volume) -> FlatSegments:
    """Read an RTSTRUCT on the grid of an image.

    A voxel belongs to an ROI when its centre lies inside a contour on its slice and not in a hole of it; see
    :func:`fill_region`. Contours of the kind CLOSEDPLANAR_XOR count by the standard's rule: inside an odd number of
    them. Contours may lie in any of the three planes along the image's axes. Open contours and points are left out with
    a warning; an ROI without closed contours is a segment without voxels. Copies, overlapping contours and slices
    without a contour between others are caveats of the result; nothing is filled in between slices.

    Raises:
        VolumeError: damaged or truncated, another frame of reference than the image's, or a contour that does not lie
            on a slice of the image, reaches far beyond it or is too long; it names the ROI.
    """
    with damage_as_volume_error(path, "cannot be read as RTSTRUCT"):
        rois = parse_rois(path, read_dicom(path))
    if not rois:
        raise VolumeError(f"{path}: lists no regions of interest; is the file complete?", reason="damaged")
    drawn = [roi for roi in rois if roi.contours]
    for roi in drawn:
        check_frame_of_reference(path, roi.frame_of_reference, image)
    empty = [f'"{roi.name}"' for roi in rois if not roi.contours]
    if empty:
        logger.warning("%s: no closed contours, so nothing is drawn, for %s", path, ", ".join(empty))
    titles = {roi.number: roi.name for roi in rois}
    layers = (layer for roi in drawn for layer in _fill(path, roi, image))
    flat = flatten_layers(image.shape, titles, layers)  # counts while it draws
    return replace(flat, caveats=tuple(caveat for roi in drawn for caveat in _caveats(roi)))


def _caveats(roi: Roi) -> Iterator[Caveat]:
    name = f'"{roi.name}"' if roi.name else f"ROI {roi.number}"
    if roi.repeated and roi.xor:
        text = f"{name}: {roi.repeated} contours are drawn twice with CLOSEDPLANAR_XOR and cancel each other"
        yield Caveat("cancelling contours", text)
    elif roi.repeated:
        yield Caveat("repeated contours", f"{name}: {roi.repeated} contours are drawn twice and count once")
    if roi.crossing:
        text = f"{name}: {roi.crossing} contours overlap another in part and are united; check that none is a hole"
        yield Caveat("crossing contours", text)
    steps = np.diff(roi.slices)
    if (steps > 1).any():
        extent = roi.slices[-1] - roi.slices[0] + 1
        regular = f" (every {steps[0]} slices)" if len(steps) > 1 and (steps == steps[0]).all() else ""
        text = (
            f"{name}: {len(roi.slices)} of the {extent} slices from its first to its last have contours{regular}; on "
            "the others it counts as absent. If it goes on there, interpolate it where it was drawn"
        )
        yield Caveat("slices without contours", text)


def parse_rois(path: Path, dataset: Dataset) -> list[Roi]:
    """Return the regions in the order of their list; the path is for messages.

    Raises:
        VolumeError: a contour has not the points that it states, or belongs to no region that is listed.
    """
    frames = dataset.get("ReferencedFrameOfReferenceSequence") or [dataset]
    common = str(frames[0].get("FrameOfReferenceUID") or "")
    named = {int(item.ROINumber): item for item in dataset.StructureSetROISequence}
    drawn: dict[int, list[np.ndarray]] = {number: [] for number in named}
    xor: set[int] = set()
    for item in dataset.ROIContourSequence:
        number = int(item.ReferencedROINumber)
        if number not in named:
            msg = f"{path}: has contours of an ROI {number} that it does not list; the header is damaged"
            raise VolumeError(msg, reason="damaged")
        drawn[number] += _closed(path, str(named[number].get("ROIName") or number), item)
        if any(str(contour.get("ContourGeometricType")) == _XOR for contour in item.get("ContourSequence") or []):
            xor.add(number)
    return [
        Roi(
            number,
            str(item.get("ROIName") or "").strip(),
            str(item.get("ReferencedFrameOfReferenceUID") or common),
            drawn[number],
            number in xor,
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


def _fill(path: Path, roi: Roi, image: Volume) -> Iterator[Layer]:
    """Yield the filled slices of one ROI, and count for :func:`_caveats`."""
    to_voxels = np.linalg.inv(image.affine)
    with np.errstate(over="ignore", invalid="ignore"):  # numbers out of all measure are refused below
        contours = [points @ to_voxels[:3, :3].T + to_voxels[:3, 3] for points in roi.contours]
        across = int(np.argmin(sum(np.ptp(points, axis=0) for points in contours)))
    in_plane = [axis for axis in range(3) if axis != across]
    size = np.array(image.shape)
    by_slice: dict[int, list[np.ndarray]] = {}
    cut_off = False
    for points in contours:
        position = float(np.rint(points[:, across].mean()))
        if not (np.abs(points[:, across] - position).max() <= _OFF_SLICE and 0 <= position < size[across]):
            msg = (
                f'{path}: a contour of "{roi.name}" lies on no slice of the image; pass the scan that it was drawn on, '
                "in full and in its own slices"
            )
            raise VolumeError(msg, reason="grid")
        flat = points[:, in_plane]
        if not np.maximum(-flat, flat - size[in_plane]).max() <= _FAR:
            msg = (
                f'{path}: a contour of "{roi.name}" reaches more than {_FAR} pixels beyond the image; its points are '
                "not in millimetres of this scan, export it again"
            )
            raise VolumeError(msg, reason="grid")
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
    roi.slices = sorted(by_slice)
    for position in roi.slices:
        where = f'{path}: "{roi.name}"'
        low, region = _filled(by_slice[position], size[in_plane], xor=roi.xor, where=where)
        roi.repeated += region.repeated
        roi.crossing += region.crossing
        corner = np.insert(low, across, position)
        mask = np.expand_dims(region.mask, across)
        yield Layer(roi.number, mask, (int(corner[0]), int(corner[1]), int(corner[2])))


def _filled(contours: list[np.ndarray], limit: np.ndarray, *, xor: bool, where: str) -> tuple[np.ndarray, FilledRegion]:
    """Fill contours, (N, 2) in pixels, inside their bounding box; return its first pixel too."""
    points = np.concatenate(contours)
    low = np.clip(np.floor(points.min(axis=0)), 0, limit).astype(np.int64)
    high = np.clip(np.ceil(points.max(axis=0)) + 1, low, limit).astype(np.int64)
    moved, shape = [contour - low for contour in contours], (int(high[0] - low[0]), int(high[1] - low[1]))
    if xor:
        return low, FilledRegion(fill_contours(moved, shape), copies(moved, where=where))
    return low, fill_region(moved, shape, where=where)
