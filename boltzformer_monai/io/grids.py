"""Compare voxel grids (numpy only): how far two lie apart, and which box of an image's grid an annotation covers.

Distances are shares of a voxel along the grid's own axes: a hundredth of a millimetre is nothing to a CT slice of 5 mm
and half a voxel of a micro-CT. Nothing is resampled: axes are permuted and flipped, a box is put at its corner, and
what lies between the image's voxels is refused.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from boltzformer_monai.caveats import Caveat
from boltzformer_monai.errors import ConfigError, VolumeError
from boltzformer_monai.io.orientation import AxisMap, signed_permutation
from boltzformer_monai.io.volume import Volume

Triple = tuple[int, int, int]

GRID_TOLERANCE = 0.1
"""Two grids are the same when no voxel centre of one is further than this share of a voxel, from 0 to 0.5, from its
partner's in the other, along any axis. The slices of a DICOM series may stray as far from their even grid."""
NOTICED = 1e-3
"""From this share of a voxel on a difference is reported; single precision and six decimals stay below it."""
SKEW = 3**0.5 * 1e-3
"""Cosine between two axes: the most that directions of three decimals can feign, 0.1 degrees."""
_OWN_VOXEL = 0.5  # beyond this a voxel's centre would lie in another voxel
_SINGLE = 1e-6  # cosine between two axes that single precision leaves


@dataclass(frozen=True)
class Misfit:
    """The largest distance of a voxel centre of a grid from its partner's in another.

    Attributes:
        voxels: along one axis, as a share of the voxel.
        mm: in space.
    """

    voxels: float = 0.0
    mm: float = 0.0

    def __str__(self) -> str:
        share = 100 * self.voxels
        return f"{self.mm:.3g} mm ({share:.2g} % of a voxel)" if share < 100 else f"{self.mm:.3g} mm"

    def caveat(self) -> tuple[Caveat, ...]:
        """Say that an annotation was moved onto its scan's grid; nothing below :data:`NOTICED`."""
        if self.voxels < NOTICED:
            return ()
        text = f"the annotation's voxels lie up to {self} off the scan's; they were taken for the same, not resampled"
        return (Caveat("grid", text),)


def check_grid_tolerance(tolerance: float) -> float:
    """Return a share of a voxel from 0 to 0.5, or raise a :class:`ConfigError`.

    From half a voxel on it would be open which voxel is meant.
    """
    if not 0 <= tolerance <= _OWN_VOXEL:
        raise ConfigError(f"the grid tolerance is a share of a voxel from 0 to {_OWN_VOXEL}, got {tolerance}")
    return tolerance


def distance(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> Misfit:
    """Return how far voxels of a grid ``one`` (4, 4), voxel → mm, lie from those of an ``other`` of the same shape.

    The two have the same axes; a voxel of ``other`` is the measure.
    """
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)  # no voxel is further away than one
    moved = (one - other)[:3] @ np.vstack([corners, np.ones(corners.shape[1])])
    voxels = np.abs(np.linalg.solve(other[:3, :3], moved)).max()
    return Misfit(float(voxels), float(np.linalg.norm(moved, axis=0).max()))


def misfit(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> Misfit:
    """Return the :func:`distance` of two grids, or of the grids at right angles next to them if that is less.

    One of them may have been written for right angles, and the other not; see :func:`right_angled`.
    """
    found = distance(one, other, shape)
    upright = [right_angled(affine, shape) for affine in (one, other)]
    if found.voxels < NOTICED or upright[0] is None or upright[1] is None:
        return found
    return min(found, distance(upright[0], upright[1], shape), key=lambda each: each.voxels)


def right_angled(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the grid at right angles next to a grid: ITK opens no NIfTI file of another one.

    The axes are turned as little as possible (polar decomposition) about the middle of the grid; voxel sizes stay.

    Returns:
        The affine itself where its axes are at right angles in single precision. None for a real shear (gantry tilt):
        more than directions of three decimals can feign, or a voxel's centre would leave its voxel.
    """
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / lengths
    skew = np.abs(directions.T @ directions - np.eye(3)).max()
    if skew <= _SINGLE:
        return affine
    left, _, right = np.linalg.svd(directions)
    upright = affine.copy()
    upright[:3, :3] = left @ right * lengths
    middle = (np.array(shape) - 1) / 2
    upright[:3, 3] += (affine - upright)[:3, :3] @ middle
    fits = skew <= SKEW and distance(upright, affine, shape).voxels <= _OWN_VOXEL
    return upright if fits else None


@dataclass(frozen=True)
class Place:
    """A box of an image's grid.

    Attributes:
        axes: brings the axes of the box to those of the image.
        corner: the image's voxel at which the box then begins; may lie outside the image.
        shape: of the box in the image's axes.
        off: how far its voxels lie from the image's.
    """

    axes: AxisMap
    corner: Triple
    shape: Triple
    off: Misfit = Misfit()


def find_place(
    affine: np.ndarray, shape: Triple, image: Volume, *, what: str, tolerance: float = GRID_TOLERANCE
) -> Place:
    """Find the voxels of an image that a grid consists of.

    Args:
        affine: (4, 4) of the grid, voxel → RAS+ mm.
        shape: its voxels along each of its axes.
        image: the image; only its grid matters.
        what: the grid's name in messages, e.g. a path.
        tolerance: how far, as a share of a voxel along each axis, its voxels may lie from the image's.

    Raises:
        VolumeError: the grid's axes or voxel sizes are not the image's, or it lies between the image's voxels.
    """
    place = _place(affine, shape, image.affine)
    if place is None or place.off.voxels > tolerance:  # or drawn on the grid at right angles, as which we write it
        upright = right_angled(image.affine, image.shape)
        place = place if upright is None else _place(affine, shape, upright) or place
    if place is not None and place.off.voxels <= tolerance:
        return place
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    turned = (np.abs(np.linalg.inv(image.affine)[:3, :3] @ affine[:3, :3]).argmax(axis=0)).tolist()
    of_image = np.array(image.spacing)[turned]
    if (np.abs(sizes / of_image - 1) * np.array(shape) > tolerance).any():
        what += f": its voxels measure {_times(sizes)} mm, those of the image {_times(of_image)} mm"
    elif place is None:
        what += ": its axes are not those of the image"
    else:
        what += f": lies {place.off} off the image's voxels"
    raise VolumeError(f"{what}; pass the scan that it was drawn on, or resample it to the image first", reason="grid")


def _place(affine: np.ndarray, shape: Triple, grid: np.ndarray) -> Place | None:
    """Return the nearest place in a grid, None where its axes are not those of the grid."""
    to_voxels = np.linalg.inv(grid)
    axes = signed_permutation((to_voxels @ affine)[:3, :3])
    if axes is None:
        return None
    moved = axes.apply_to_affine(affine, shape)
    size = _triple(np.array(shape)[list(axes.order)])
    corner = _triple(np.rint((to_voxels @ moved)[:3, 3]))
    expected = grid.copy()
    expected[:3, 3] = (grid @ (*corner, 1))[:3]
    return Place(axes, corner, size, distance(moved, expected, size))


def _times(lengths: np.ndarray) -> str:
    return " x ".join(f"{length:.4g}" for length in lengths)


def in_plane_axes(directions: np.ndarray, image: Volume) -> tuple[int, int, int] | None:
    """Return which axes of the image a plane's two axes follow, then the axis across; None for an oblique plane.

    Args:
        directions: (3, 2), RAS+ mm from pixel to pixel along the plane's axes.
        image: the image; only its grid matters.
    """
    steps = np.abs(np.linalg.inv(image.affine)[:3, :3] @ directions) * np.array(image.spacing)[:, None]  # mm
    first, second = int(np.argmax(steps[:, 0])), int(np.argmax(steps[:, 1]))
    return None if first == second else (first, second, 3 - first - second)


def check_frame_of_reference(path: str | os.PathLike[str], stated: str, image: Volume) -> None:
    """Refuse an annotation whose coordinates are those of another scan; unknown ("") fits all.

    Raises:
        VolumeError: both are known and differ.
    """
    if stated and image.frame_of_reference and stated != image.frame_of_reference:
        msg = (
            f"{path}: its frame of reference is not that of the image {image.source or '(no path)'}, so it was drawn "
            "on another scan; pass the scan that it belongs to"
        )
        raise VolumeError(msg, reason="grid")


def inside(place: Place, image: Volume) -> bool:
    """Tell whether a box lies inside an image entirely."""
    ends = (corner + size for corner, size in zip(place.corner, place.shape, strict=True))
    return min(place.corner) >= 0 and all(end <= size for end, size in zip(ends, image.shape, strict=True))


def voxels_inside(place: Place, image: Volume) -> tuple[tuple[slice, ...], Triple]:
    """Return the part of a box that lies inside an image, in the box's voxels (image axes), and its corner."""
    low = [max(0, -corner) for corner in place.corner]
    high = [
        max(start, min(size, length - corner))
        for start, size, length, corner in zip(low, place.shape, image.shape, place.corner, strict=True)
    ]
    corner = _triple([start + first for start, first in zip(low, place.corner, strict=True)])
    return tuple(slice(start, end) for start, end in zip(low, high, strict=True)), corner


def _triple(values: np.ndarray | list[int]) -> Triple:
    return int(values[0]), int(values[1]), int(values[2])
