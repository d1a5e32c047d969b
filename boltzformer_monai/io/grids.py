"""Two grids compared, and the grid at right angles next to one that is a hair off (numpy only).

Distances are shares of a voxel along the grid's own axes: a hundredth of a millimetre is nothing to a CT slice of 5 mm
and half a voxel of a micro-CT.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from boltzformer_monai.caveats import Caveat
from boltzformer_monai.errors import ConfigError

GRID_TOLERANCE = 0.1
"""Two grids are the same when no voxel centre of one is further than this share of a voxel from its partner's in the
other, along any axis. The slices of a DICOM series may stray as far from the even grid that is made of them."""
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
        """Say that an annotation was moved onto its scan's grid; nothing where that is not worth a word."""
        if self.voxels < NOTICED:
            return ()
        text = f"the annotation's voxels lie up to {self} off the scan's; they were taken for the same, not resampled"
        return (Caveat("grid", text),)


def check_grid_tolerance(tolerance: float) -> float:
    """Return a share of a voxel from 0 to 0.5.

    Raises:
        ConfigError: anything else; from half a voxel on it would be open which voxel is meant.
    """
    if not 0 <= tolerance <= _OWN_VOXEL:
        msg = f"the grid tolerance is a share of a voxel from 0 to {_OWN_VOXEL}, got {tolerance}"
        raise ConfigError(msg)
    return tolerance


def distance(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> Misfit:
    """Return how far the voxels of a grid lie from those of another with the same axes.

    Args:
        one: (4, 4), voxel → mm.
        other: (4, 4); the axes whose voxels are the measure.
        shape: voxels along each axis.
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

    Args:
        affine: (4, 4), voxel → mm.
        shape: voxels along each axis.

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
