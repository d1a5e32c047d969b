"""Gantry tilt: slices stacked at an angle to their normal, which no right-angled grid can describe."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from boltzformer_monai.caveats import Caveat
from boltzformer_monai.errors import ConfigError, VolumeError
from boltzformer_monai.io.grids import NOTICED, SKEW, Misfit, distance, right_angled
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.limits import require_room

TILTS = ("refuse", "resample", "keep")
_WHOLE = 6  # decimals: a shift this close to whole voxels moves them without interpolation


def check_tilt(choice: str) -> None:
    """Raise a :class:`ConfigError` for a ``choice`` that is not one of :data:`TILTS`."""
    if choice not in TILTS:
        raise ConfigError(f"unknown treatment of gantry tilt {choice!r}; use one of {', '.join(TILTS)}")


def tilt_degrees(volume: Volume) -> float:
    """Return the angle between the slice axis and the normal of the slices; 0.0 where rounding alone can explain it."""
    upright = right_angled(volume.affine, volume.shape)
    return _slice_axis(volume.affine)[1] if upright is None else 0.0


def settle_tilt(volume: Volume, choice: str) -> Volume:
    """Refuse, resample (:func:`resample_tilt`) or keep a tilted scan; others are returned as they are.

    Raises:
        VolumeError: the scan is tilted and ``choice`` is ``"refuse"``.
        ConfigError: ``choice`` is none of :data:`TILTS`.
    """
    check_tilt(choice)
    degrees = tilt_degrees(volume)
    if not degrees:
        return _noted(volume)
    if choice == "resample":
        return resample_tilt(volume)
    if choice == "keep":
        text = (
            f"the slices are stacked {degrees:.1f} degrees off (gantry tilt), results keep the sheared affine; ITK, "
            "3D Slicer and ITK-SNAP open no .nii.gz of it, choose .nrrd for them"
        )
        return replace(volume, caveats=(*volume.caveats, Caveat("gantry tilt", text)))
    msg = (
        f"{volume.source or 'volume'}: its slices are stacked {degrees:.2g} degrees off their normal (gantry tilt), so "
        "its axes are not at right angles; --resample-tilt (tilt='resample') shifts each slice in its plane onto a "
        "right-angled grid"
    )
    raise VolumeError(msg, reason="gantry tilt")


def resample_tilt(volume: Volume) -> Volume:
    """Bring a sheared stack to a right-angled grid by shifting each slice within its own plane.

    Slices keep their planes, their distance and their pixel spacing; the first slice is not interpolated at all. The
    grid grows in the plane so that no voxel is lost. An image and its label map of the same grid stay on the same grid.

    Args:
        volume: (I, J, K); of any axis order, one axis (the slice axis) not at right angles to the others.

    Returns:
        The same volume where it is not tilted. Otherwise images (floats) are interpolated linearly, float32, with the
        lowest value outside; label maps (integers) go to the nearest voxel, in their own type, with 0 outside.

    Raises:
        VolumeError: all three axes are skewed against each other: no stack of slices.
    """
    if not tilt_degrees(volume):
        return volume
    axis = _slice_axis(volume.affine)[0]
    if axis is None:
        msg = f"{volume.source or 'volume'}: its three axes are all skewed; resample it to right angles elsewhere"
        raise VolumeError(msg, reason="gantry tilt")
    last = [other for other in range(3) if other != axis] + [axis]
    affine = volume.affine[:, [*last, 3]]
    stack = volume.array.transpose(last)
    array, moved = _unsheared(stack, affine, volume.source or "volume")
    back = np.argsort(last)
    caveats = tuple(caveat for caveat in volume.caveats if caveat.kind != "gantry tilt")  # of a scan that was kept so
    upright = np.ascontiguousarray(array.transpose(back))
    return replace(volume, array=upright, affine=moved[:, [*back, 3]], caveats=caveats)


def _noted(volume: Volume) -> Volume:
    """Return an untilted scan, with a caveat where its axes are noticeably off right angles."""
    upright = right_angled(volume.affine, volume.shape)
    moved = Misfit() if upright is None else distance(upright, volume.affine, volume.shape)
    if moved.voxels < NOTICED:
        return volume
    text = f"its axes are not quite at right angles; results lie on the nearest grid that is, up to {moved} away"
    return replace(volume, caveats=(*volume.caveats, Caveat("right angles", text)))


def _slice_axis(affine: np.ndarray) -> tuple[int | None, float]:
    """Return the axis that is not at right angles to the other two, and by how many degrees it is off their normal.

    A tilt about a pixel axis skews one pair of axes, either of which can be taken; slices are usually stored last.
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs(directions.T @ directions)
    for axis in (2, 1, 0):
        one, other = (index for index in range(3) if index != axis)
        if cosines[one, other] <= SKEW:
            sine = float(np.hypot(cosines[axis, one], cosines[axis, other]))
            return axis, float(np.degrees(np.arcsin(min(sine, 1.0))))
    return None, float(np.degrees(np.arcsin(min(float(np.sort(cosines, axis=None)[-4]), 1.0))))


def _unsheared(stack: np.ndarray, affine: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Shift the slices of (I, J, slices) within their planes; return the enlarged stack and its affine."""
    from scipy import ndimage

    label = stack.dtype.kind != "f"
    plane, step = affine[:3, :2], affine[:3, 2]
    normal = np.cross(plane[:, 0], plane[:, 1])
    upright = normal * (step @ normal) / (normal @ normal)
    drift = np.linalg.lstsq(plane, step - upright, rcond=None)[0]  # voxels per slice along both axes of the plane
    shifts = np.round(np.arange(stack.shape[2])[:, None] * drift, _WHOLE)
    low, high = np.floor(shifts.min(axis=0)).astype(int), np.ceil(shifts.max(axis=0)).astype(int)
    moved = affine.copy()
    moved[:3, 2] = upright
    moved[:3, 3] += plane @ low
    padding = 0 if label else float(stack.min())
    size = (*(np.array(stack.shape[:2]) + high - low), stack.shape[2])
    # A header may state any angle and any size of a voxel. While a slice is moved there are three of it, in doubles.
    voxels, each = math.prod(int(length) for length in size), stack.itemsize if label else 4
    require_room(voxels * each + 3 * 8 * voxels // int(size[2]), 1, where)
    result = np.full(size, padding, dtype=stack.dtype if label else np.float32)
    for index, shift in enumerate(shifts - low):
        if label:
            row, column = np.floor(shift + 0.5).astype(int)
            result[row : row + stack.shape[0], column : column + stack.shape[1], index] = stack[:, :, index]
        else:
            canvas = np.zeros(size[:2])
            canvas[: stack.shape[0], : stack.shape[1]] = stack[:, :, index].astype(np.float64) - padding
            result[:, :, index] += ndimage.shift(canvas, shift, order=1, mode="grid-constant")
    return result, moved
