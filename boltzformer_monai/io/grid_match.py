"""Where a grid that repeats a part of an image's grid lies in it: a cropped label, one frame of a DICOM SEG.

Nothing is resampled: axes are permuted and flipped, a box is put at its corner, and what lies between the image's
voxels is refused.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.grids import GRID_TOLERANCE, Misfit, distance, right_angled
from boltzformer_monai.io.orientation import AxisMap, signed_permutation
from boltzformer_monai.io.volume import Volume

__all__ = ["Place", "check_frame_of_reference", "find_place", "in_plane_axes", "inside", "voxels_inside"]

Triple = tuple[int, int, int]


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
    msg = f"{what}; pass the scan that it was drawn on, or resample it to the image first"
    raise VolumeError(msg, reason="grid")


def _place(affine: np.ndarray, shape: Triple, grid: np.ndarray) -> Place | None:
    """Return the nearest place in a grid, None where the axes or voxel sizes are no hair the same."""
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
