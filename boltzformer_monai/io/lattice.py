"""Where a grid that repeats a part of an image's grid lies in it: a cropped label, one frame of a DICOM SEG.

Nothing is resampled: axes are permuted and flipped, a box is put at its corner, and what lies between the image's
voxels is refused.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.orientation import AxisMap, signed_permutation
from boltzformer_monai.io.volume import GRID_TOLERANCE_MM, Volume

__all__ = ["Place", "check_frame_of_reference", "find_place", "in_plane_axes", "inside", "voxels_inside"]

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Place:
    """A box of an image's grid.

    Attributes:
        axes: brings the axes of the box to those of the image.
        corner: the image's voxel at which the box then begins; may lie outside the image.
        shape: of the box in the image's axes.
    """

    axes: AxisMap
    corner: Triple
    shape: Triple


def find_place(
    affine: np.ndarray,
    shape: Triple,
    image: Volume,
    *,
    what: str,
    slack: tuple[float, float, float] = (GRID_TOLERANCE_MM,) * 3,
) -> Place:
    """Find the voxels of an image that a grid consists of.

    Args:
        affine: (4, 4) of the grid, voxel → RAS+ mm.
        shape: its voxels along each of its axes.
        image: the image; only its grid matters.
        what: the grid's name in messages, e.g. a path.
        slack: how far, in mm along each axis of the image, its voxels may lie from the image's.

    Raises:
        VolumeError: the grid's axes or voxel sizes are not the image's, or it lies between the image's voxels.
    """
    to_voxels = np.linalg.inv(image.affine)
    axes = signed_permutation((to_voxels @ affine)[:3, :3])
    if axes is None:
        msg = f"{what}: its axes or voxel sizes are not those of the image; resample it to the image first"
        raise VolumeError(msg, reason="grid")
    moved = axes.apply_to_affine(affine, shape)
    size = np.array(shape)[list(axes.order)]
    corner = np.rint((to_voxels @ moved)[:3, 3])
    ends = np.array(np.meshgrid(*[(0, n - 1) for n in size])).reshape(3, -1)
    voxels = (to_voxels @ moved @ np.vstack([ends, np.ones(ends.shape[1])]))[:3]
    away = np.abs(voxels - ends - corner[:, None]).max(axis=1) * image.spacing
    if (away > slack).any():
        msg = f"{what}: lies {away.max():.3g} mm off the image's voxels; resample it to the image first"
        raise VolumeError(msg, reason="grid")
    return Place(axes, _triple(corner), _triple(size))


def in_plane_axes(directions: np.ndarray, image: Volume) -> tuple[int, int, int] | None:
    """Return which axes of the image a plane's two axes follow, then the axis across; None for an oblique plane.

    Args:
        directions: (3, 2), RAS+ mm from pixel to pixel along the plane's axes.
        image: the image; only its grid matters.
    """
    steps = np.abs(np.rint(np.linalg.inv(image.affine)[:3, :3] @ directions))
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
