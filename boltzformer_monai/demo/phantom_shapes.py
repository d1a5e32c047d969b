"""Drawing synthetic scans: smooth random fields, soft ellipsoids, columns and tubes.

Coordinates are in mm: x towards Left, y towards Posterior, z towards Superior, with (0, 0) in the middle of an axial
slice and z = 0 at the lower end. A shape is an approximate signed distance in mm (negative inside); its edge is spread
over one in-plane voxel, as by the partial-volume effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["FIELD_OF_VIEW_MM", "Canvas", "Region", "smooth_field"]

FIELD_OF_VIEW_MM = (345.6, 345.6, 120.0)
_MAX_SHIFT_MM = 12.0
_AIR_HU = -1000.0

Box = tuple[slice, slice, slice]
Point = tuple[float, float, float]


def _spline_weights(length: int, knots: int) -> np.ndarray:
    """Uniform cubic B-spline weights (length, knots + 3) that spread `knots` intervals over `length` voxels."""
    position = (np.arange(length) + 0.5) / length * knots
    base = np.minimum(position.astype(int), knots - 1)
    t = position - base
    rows = np.arange(length)
    weights = np.zeros((length, knots + 3), dtype=np.float32)
    weights[rows, base] = (1 - t) ** 3 / 6
    weights[rows, base + 1] = (3 * t**3 - 6 * t**2 + 4) / 6
    weights[rows, base + 2] = (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6
    weights[rows, base + 3] = t**3 / 6
    return weights


def smooth_field(size: tuple[int, int, int], knots: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """A smooth random field (I, J, K) float32 of mean 0 and standard deviation 1.

    Args:
        size: number of voxels along each axis.
        knots: number of spline intervals along each axis.
        rng: of the coefficients.
    """
    coefficients = rng.standard_normal([n + 3 for n in knots], dtype=np.float32)
    field = coefficients
    for axis in (2, 1, 0):  # the short axis first, for small intermediate arrays
        field = np.moveaxis(np.tensordot(_spline_weights(size[axis], knots[axis]), field, axes=(1, axis)), 0, axis)
    spread = float(field.std())
    return np.ascontiguousarray((field - field.mean()) / spread if spread > 0 else field, dtype=np.float32)


@dataclass(frozen=True)
class Region:
    """A shape on a part of the canvas: signed distance in mm (negative inside) over `box`."""

    box: Box
    distance: np.ndarray

    def union(self, other: Region) -> Region:
        """Both shapes together; they must have been made over the same box."""
        return Region(self.box, np.minimum(self.distance, other.distance))

    def shrunk(self, by_mm: float) -> Region:
        """The same shape with its surface moved inwards by `by_mm`."""
        return Region(self.box, self.distance + np.float32(by_mm))


class Canvas:
    """A scan being drawn: HU (float32) and label values (uint8), both (I, J, K) in LPS order.

    Args:
        size: voxels along Left, Posterior, Superior.
        rng: of the deformation of all shapes.
        deformation_mm: its standard deviation.
    """

    def __init__(
        self, size: tuple[int, int, int], rng: np.random.Generator, *, deformation_mm: float, z_offset_mm: float
    ) -> None:
        self.size = size
        self.spacing = tuple(fov / n for fov, n in zip(FIELD_OF_VIEW_MM, size, strict=True))
        self.voxel_mm = float(max(self.spacing[0], self.spacing[1]))
        self.hu = np.full(size, _AIR_HU, dtype=np.float32)
        self.label = np.zeros(size, dtype=np.uint8)
        offsets = (-FIELD_OF_VIEW_MM[0] / 2, -FIELD_OF_VIEW_MM[1] / 2, z_offset_mm)
        self._axes = [
            ((np.arange(n) + 0.5) * step + start).astype(np.float32)
            for n, step, start in zip(size, self.spacing, offsets, strict=True)
        ]
        self._coordinates = []
        for axis in range(3):
            shift = smooth_field(size, (5, 5, 2), rng) + np.float32(0.35) * smooth_field(size, (11, 11, 4), rng)
            np.clip(shift * np.float32(deformation_mm), -_MAX_SHIFT_MM, _MAX_SHIFT_MM, out=shift)
            shift += self._axes[axis].reshape([-1 if a == axis else 1 for a in range(3)])
            self._coordinates.append(shift)

    def box(self, low: Sequence[float], high: Sequence[float]) -> Box:
        """Voxels that a shape between the points `low` and `high` (mm) may cover, deformed."""
        margin = _MAX_SHIFT_MM + 2 * self.voxel_mm
        slices = []
        for axis, points in enumerate(self._axes):
            first = int(np.searchsorted(points, low[axis] - margin))
            last = int(np.searchsorted(points, high[axis] + margin))
            slices.append(slice(first, max(last, first)))
        return slices[0], slices[1], slices[2]

    def position(self, index: tuple[int, int, int]) -> Point:
        """Position in mm of the voxel `index` before deformation, where a shape is drawn around that voxel."""
        x, y, z = (float(c[index]) for c in self._coordinates)
        return x, y, z

    def ellipsoid(
        self, centre: Point, radii: Point, *, angle: float = 0.0, power: float = 2.0, box: Box | None = None
    ) -> Region:
        """A superquadric turned by `angle` (radians, about z); `power` 2 is an ellipsoid, more is boxier."""
        reach = max(radii[0], radii[1]) if angle else 0.0
        half = (max(radii[0], reach), max(radii[1], reach), radii[2])
        if box is None:
            box = self.box(
                [c - h for c, h in zip(centre, half, strict=True)], [c + h for c, h in zip(centre, half, strict=True)]
            )
        x, y, z = (c[box] - np.float32(m) for c, m in zip(self._coordinates, centre, strict=True))
        if angle:
            cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
            x, y = cos * x + sin * y, cos * y - sin * x
        terms = [np.abs(v) / np.float32(r) for v, r in zip((x, y, z), radii, strict=True)]
        if power == 2.0:
            radius = np.sqrt(terms[0] ** 2 + terms[1] ** 2 + terms[2] ** 2)
        else:
            radius = (terms[0] ** power + terms[1] ** power + terms[2] ** power) ** (1 / power)
        return Region(box, (radius - 1) * np.float32(np.sqrt(radii[0] * radii[1])))

    def column(self, centre: tuple[float, float], radii: tuple[float, float], *, power: float = 2.0) -> Region:
        """An elliptic cylinder along the whole z axis: body outline, spine, aorta."""
        low, high = -1e6, 1e6
        box = self.box(
            (centre[0] - radii[0], centre[1] - radii[1], low), (centre[0] + radii[0], centre[1] + radii[1], high)
        )
        x = np.abs(self._coordinates[0][box] - np.float32(centre[0])) / np.float32(radii[0])
        y = np.abs(self._coordinates[1][box] - np.float32(centre[1])) / np.float32(radii[1])
        radius = np.sqrt(x**2 + y**2) if power == 2.0 else (x**power + y**power) ** (1 / power)
        return Region(box, (radius - 1) * np.float32(np.sqrt(radii[0] * radii[1])))

    def tube(self, start: Point, end: Point, radius: float) -> Region:
        """A straight piece of vessel with round ends."""
        low = [min(a, b) - radius for a, b in zip(start, end, strict=True)]
        high = [max(a, b) + radius for a, b in zip(start, end, strict=True)]
        box = self.box(low, high)
        to_point = [c[box] - np.float32(s) for c, s in zip(self._coordinates, start, strict=True)]
        line = [e - s for e, s in zip(end, start, strict=True)]
        length2 = max(sum(v * v for v in line), 1e-6)
        along = sum(p * np.float32(v / length2) for p, v in zip(to_point, line, strict=True))
        along = np.clip(along, 0, 1)
        squared = sum((p - along * np.float32(v)) ** 2 for p, v in zip(to_point, line, strict=True))
        return Region(box, np.sqrt(squared) - np.float32(radius))

    def paint(
        self, region: Region, hu: float | np.ndarray, value: int | None = None, *, only: Sequence[int] | None = None
    ) -> None:
        """Blend `hu` (a number, or a field of the canvas's size) into the region.

        Args:
            region: where.
            hu: the tissue's density in HU.
            value: label value of voxels that are at least half inside; None keeps the labels.
            only: draw only within these label values.
        """
        box = region.box
        occupancy = np.clip(0.5 - region.distance / np.float32(self.voxel_mm), 0, 1)
        if only is not None:
            occupancy = occupancy * np.isin(self.label[box], only)
        density = hu[box] if isinstance(hu, np.ndarray) else np.float32(hu)
        self.hu[box] += occupancy * (density - self.hu[box])
        if value is not None:
            self.label[box][occupancy >= 0.5] = value

    def blur(self) -> None:
        """A light in-plane point-spread function, (1, 6, 1)/8 along both axes."""
        for axis in (0, 1):
            volume = np.moveaxis(self.hu, axis, 0)
            middle = volume[1:-1] * np.float32(0.75) + (volume[2:] + volume[:-2]) * np.float32(0.125)
            volume[1:-1] = middle

    def add_noise(self, rng: np.random.Generator, *, sigma: float) -> None:
        """Scanner noise of standard deviation `sigma` HU, partly correlated between in-plane neighbours."""
        white = rng.standard_normal(self.size, dtype=np.float32)
        grain = rng.standard_normal(self.size, dtype=np.float32)
        for axis in (0, 1):
            grain = grain + np.float32(0.5) * (np.roll(grain, 1, axis) + np.roll(grain, -1, axis))
        self.hu += white * np.float32(0.7 * sigma) + grain * np.float32(0.714 * sigma / 1.5)
