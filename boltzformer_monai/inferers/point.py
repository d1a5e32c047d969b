"""A point in the patient that a request is about: the lesion there, and the region around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from boltzformer_monai.data.planes import Slicing
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.evaluation.components import bounding_box, label_components
from boltzformer_monai.io.volume import Volume

__all__ = ["DEPTH_MM", "LEAST_ZOOM", "REACH_MM", "LesionAtPoint", "Region", "checked_point", "lesion_at", "region_at",
           "voxel_at"]  # fmt: skip

REACH_MM = 5.0
"""A lesion whose nearest voxel is farther from the point is not the one that is meant."""
LEAST_ZOOM = 1.5
"""How much larger than in the whole slice the region is shown, where that has its full resolution already."""
DEPTH_MM = 20.0
"""Slices up to so far from the point belong to the region."""
_FARTHEST_MM = 1e5  # no scan is so large


@dataclass(frozen=True, eq=False)
class LesionAtPoint:
    """The connected component of a mask at a point.

    Attributes:
        voxel: of the component, the one nearest to the point.
        distance_mm: from the point to the centre of that voxel; 0 where the point lies within it.
        others: further components of the mask.
        box: that holds the component.
        inside: bool, of the box's shape: the component's voxels.
    """

    voxel: tuple[int, int, int]
    distance_mm: float
    others: int
    box: tuple[slice, ...]
    inside: np.ndarray

    def only(self, values: np.ndarray) -> np.ndarray:
        """An array (I, J, K) with zeros outside of the component."""
        kept = np.zeros_like(values)
        kept[self.box][self.inside] = values[self.box][self.inside]
        return kept


@dataclass(frozen=True)
class Region:
    """Part of the slices of a plane.

    Attributes:
        slices: (first, one after the last).
        rows: likewise.
        columns: likewise.
    """

    slices: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) of its part of a slice."""
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    @property
    def box(self) -> tuple[slice, slice]:
        """Its part of a slice."""
        return slice(*self.rows), slice(*self.columns)

    def weights(self, shape: tuple[int, int]) -> np.ndarray:
        """How much its pixels count beside those of the whole slice, (h, w) float32: falls to its inner edges.

        Args:
            shape: (H, W) of the slices, at whose border nothing falls.
        """
        ramps = []
        for (first, stop), length in zip((self.rows, self.columns), shape, strict=True):
            ramp = np.ones(stop - first, np.float32)
            margin = max(1, (stop - first) // 8)
            rise = np.arange(1, margin + 1, dtype=np.float32) / (margin + 1)
            if first > 0:
                ramp[:margin] = rise
            if stop < length:
                ramp[-margin:] = np.minimum(ramp[-margin:], rise[::-1])
            ramps.append(ramp)
        return ramps[0][:, None] * ramps[1]


def checked_point(point: Any) -> tuple[float, float, float]:
    """A place in the patient: three numbers, millimetres in RAS+.

    Raises:
        ConfigError: anything else.
    """
    values = tuple(point) if isinstance(point, Sequence) and not isinstance(point, str) else ()
    numbers = all(isinstance(each, Real) and not isinstance(each, bool) for each in values)
    if len(values) != 3 or not numbers or not all(abs(each) <= _FARTHEST_MM for each in values):
        msg = f"a point is three numbers, millimetres towards Right, Anterior and Superior, got {ascii(point)[:60]}"
        raise ConfigError(msg)
    return float(values[0]), float(values[1]), float(values[2])


def voxel_at(volume: Volume, point: Sequence[float]) -> tuple[int, int, int]:
    """The voxel that a point lies in.

    Raises:
        ConfigError: it lies outside of the scan.
    """
    voxel = np.linalg.inv(volume.affine) @ (*point, 1)
    index = np.floor(voxel[:3] + 0.5).astype(np.int64)
    if (index < 0).any() or (index >= volume.shape).any():
        corners = np.array(np.meshgrid(*((0, n - 1) for n in volume.shape))).reshape(3, -1)
        places = volume.affine[:3, :3] @ corners + volume.affine[:3, 3:]
        ends = [f"{name} {low:.0f} to {high:.0f}" for name, low, high in zip(
            "RAS", places.min(axis=1), places.max(axis=1), strict=True
        )]  # fmt: skip
        where = ", ".join(f"{each:g}" for each in point)
        raise ConfigError(f"the point ({where}) mm lies outside of the scan, which has {', '.join(ends)}")
    return int(index[0]), int(index[1]), int(index[2])


def lesion_at(mask: np.ndarray, volume: Volume, point: Sequence[float]) -> LesionAtPoint | None:
    """The component (26 neighbours) of a mask at a point, or the nearest within :data:`REACH_MM`.

    Args:
        mask: (I, J, K) bool, on the grid of the scan.
        volume: the scan.
        point: within it.

    Raises:
        ConfigError: the point lies outside of the scan.
    """
    nearest = _nearest(mask, volume, point)
    if nearest is None:
        return None
    voxel, distance = nearest
    whole = bounding_box(mask)
    components, count = label_components(mask[whole], rank=3)
    in_box = tuple(index - (axis.start or 0) for index, axis in zip(voxel, whole, strict=True))
    component = components == components[in_box]
    inner = bounding_box(component)
    box = tuple(
        slice((outer.start or 0) + axis.start, (outer.start or 0) + axis.stop)
        for outer, axis in zip(whole, inner, strict=True)
    )
    return LesionAtPoint(voxel, distance, int(count) - 1, box, component[inner])


def region_at(
    volume: Volume, slicing: Slicing, point: Sequence[float], size: int, *, least_zoom: float = LEAST_ZOOM
) -> Region:
    """The region around a point that a square of the network shows at full resolution.

    In the slice it is as large as `size` of its finest pixels, but no larger than the slice's longer edge by
    `least_zoom`; it is moved to lie in the slice. Across the slices it reaches :data:`DEPTH_MM` to both sides.

    Args:
        volume: the scan.
        slicing: its slices.
        point: within it.
        size: edge of the network's square in pixels.
        least_zoom: at least 1.

    Raises:
        ConfigError: the point lies outside of the scan.
    """
    voxel = voxel_at(volume, point)
    count, *shape = slicing.shape(volume)
    *spacing, across = slicing.spacing(volume)
    place = [
        volume.shape[axis] - 1 - voxel[axis] if flipped else voxel[axis]
        for axis, flipped in zip(slicing.axes.order, slicing.axes.flip, strict=True)
    ]
    longest = max(n * mm for n, mm in zip(shape, spacing, strict=True))
    edge = min(size * min(spacing), longest / least_zoom)
    ends = []
    for middle, length, mm in zip(place[1:], shape, spacing, strict=True):
        width = min(length, max(1, round(edge / mm)))
        first = min(max(0, middle - width // 2), length - width)
        ends.append((first, first + width))
    reach = int(DEPTH_MM / across)
    return Region((max(0, place[0] - reach), min(count, place[0] + reach + 1)), ends[0], ends[1])


def _nearest(mask: np.ndarray, volume: Volume, point: Sequence[float]) -> tuple[tuple[int, int, int], float] | None:
    """The voxel of the mask nearest to a point, within reach, and its distance."""
    here = voxel_at(volume, point)
    if mask[here]:
        return here, 0.0
    inverse = np.linalg.inv(volume.affine[:3, :3])
    reach = np.ceil(REACH_MM * np.linalg.norm(inverse, axis=1)).astype(int) + 1
    low = np.maximum(np.array(here) - reach, 0)
    box = tuple(slice(int(a), int(b) + 1) for a, b in zip(low, np.array(here) + reach, strict=True))
    voxels = np.argwhere(mask[box]) + low
    if not len(voxels):
        return None
    places = voxels @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    distances = np.linalg.norm(places - np.asarray(point, np.float64), axis=1)
    best = int(distances.argmin())
    if distances[best] > REACH_MM:
        return None
    i, j, k = voxels[best].tolist()
    return (i, j, k), round(float(distances[best]), 3)
