"""Lesions of a mask: its connected components, numbered and measured.

A lesion is a component of voxels that touch by a face, edge or corner (26-connectivity), so lesions that touch count as
one. Lengths are largest distances between opposite voxel faces of the outermost voxels: centre to centre plus the
extent of one voxel, which for convex shapes lies within one voxel of the truth.

Long and short axis lie in one slice of the acquisition, as RECIST and WHO have it: an axial slice, unless slices along
another axis are at least 1.5 times as far apart as their pixels. It is the slice on which the long axis is longest; the
short axis is the longest chord of its convex outline at right angles to the long one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from boltzformer_monai.data.planes import plane_of_axis
from boltzformer_monai.errors import ConfigError, VolumeError
from boltzformer_monai.evaluation.components import bounding_box, label_components
from boltzformer_monai.io.volume import Volume

__all__ = ["Lesion", "acquisition_axis", "find_lesions", "label_lesions", "tracking_uid"]

CONNECTIVITY = {6: 1, 18: 2, 26: 3}
"""Neighbours of a voxel → axes that may differ between two of them."""
_THICK = 1.5  # times the widest pixel: slices so far apart are how a scan was acquired
_FEW = 150  # points whose pairs are quicker than their convex hull
_CHUNK = 256  # points that are compared with all others at once
_DIGITS = 6  # significant ones that are kept


@dataclass(frozen=True)
class Lesion:
    """One connected component of a mask.

    Attributes:
        number: from 1, the largest first; equal ones from head to foot, front to back, right to left of the patient.
        voxels: of the component.
        volume_ml: voxels times the volume of one.
        long_axis_mm: longest distance within one slice.
        short_axis_mm: longest chord at right angles to it, on the same slice.
        axial_slice: the slice of both axes: index in the scan's array, from 0, along the axis across ``plane``.
        diameter_mm: largest distance in 3-D.
        centre_mm: mean of the voxels' centres, RAS+.
        slices: first and last slice with a voxel, as ``axial_slice`` counts them.
        mean_hu: of the voxels; these four are ``None`` for a scan that is known not to be CT, and values of the file
            where nothing states the modality.
        sd_hu: standard deviation over the voxels.
        min_hu: lowest.
        max_hu: highest.
        confidence: mean probability of the voxels, 0–1; ``None`` for a mask without probabilities.
        entropy: mean entropy of the voxels in bits, 0–1; ``None`` for a mask without repeated decoding.
        plane: of the slices, ``"axial"``, ``"coronal"`` or ``"sagittal"``.
        at_edge: whether a voxel lies on the border of the scan, which may have cut the lesion: all sizes are then lower
            bounds.
        at_point: whether it is the lesion at the point that was asked for.
    """

    number: int
    voxels: int
    volume_ml: float
    long_axis_mm: float
    short_axis_mm: float
    axial_slice: int
    diameter_mm: float
    centre_mm: tuple[float, float, float]
    slices: tuple[int, int]
    mean_hu: float | None
    sd_hu: float | None
    min_hu: float | None
    max_hu: float | None
    confidence: float | None = None
    entropy: float | None = None
    plane: str = "axial"
    at_edge: bool = False
    at_point: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Lesion:
        """A lesion of :meth:`as_dict`."""
        return cls(**{**values, "centre_mm": tuple(values["centre_mm"]), "slices": tuple(values["slices"])})

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**dataclasses.asdict(self), "centre_mm": list(self.centre_mm), "slices": list(self.slices)}


def find_lesions(
    mask: np.ndarray,
    volume: Volume,
    *,
    probability: np.ndarray | None = None,
    entropy: np.ndarray | None = None,
    minimum_ml: float = 0.0,
    minimum_mm: float = 0.0,
    maximum_mm: float = float("inf"),
    connectivity: int = 26,
    at: tuple[int, int, int] | None = None,
) -> list[Lesion]:
    """Measure the connected components of a mask, the largest first.

    Args:
        mask: (I, J, K) bool, on the grid of the scan.
        volume: the scan.
        probability: (I, J, K), uint8 with 0–255 for 0–1, or floats from 0 to 1.
        entropy: (I, J, K), in bits, in the same two forms.
        minimum_ml: volume from which a component counts.
        minimum_mm: largest diameter from which a component counts.
        maximum_mm: largest diameter up to which it counts.
        connectivity: 6, 18 or 26 neighbours.
        at: voxel of the mask whose component is the one at the point.

    Raises:
        VolumeError: an array does not fit the scan, or it is a picture that states no size.
        ConfigError: another connectivity, or a limit that is negative or no number.
    """
    limits = _Limits(minimum_ml, minimum_mm, maximum_mm)
    lesions, components = _find(mask, volume, probability, entropy, limits, connectivity)
    if at is None:
        return lesions
    here = np.array(at)[:, None]
    return [
        replace(lesion, at_point=bool((voxels == here).all(axis=0).any()))
        for lesion, voxels in zip(lesions, components, strict=True)
    ]


def label_lesions(
    mask: np.ndarray,
    volume: Volume,
    *,
    probability: np.ndarray | None = None,
    entropy: np.ndarray | None = None,
    minimum_ml: float = 0.0,
    minimum_mm: float = 0.0,
    maximum_mm: float = float("inf"),
    connectivity: int = 26,
) -> tuple[list[Lesion], np.ndarray]:
    """As :func:`find_lesions`, with the number of each voxel's lesion, (I, J, K) int32, 0 for none."""
    limits = _Limits(minimum_ml, minimum_mm, maximum_mm)
    lesions, components = _find(mask, volume, probability, entropy, limits, connectivity)
    numbers = np.zeros(mask.shape, np.int32)
    for lesion, voxels in zip(lesions, components, strict=True):
        numbers[tuple(voxels)] = lesion.number
    return lesions, numbers


def tracking_uid(scan: str, target: str, number: int) -> str:
    """A DICOM UID for a lesion: the same scan, target and number give the same.

    Args:
        scan: UID of the scan's series, or a hash of its content.
        target: name of what was segmented.
        number: of the lesion.
    """
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=[scan, target, str(number)]))


def acquisition_axis(volume: Volume) -> int:
    """The axis of the array across the slices in which a scan is read; see the module."""
    spacing = np.array(volume.spacing)
    widest = int(spacing.argmax())
    if spacing[widest] >= _THICK * np.delete(spacing, widest).max():
        return widest
    return next(axis for axis in range(3) if plane_of_axis(volume, axis) == "axial")


@dataclass(frozen=True)
class _Limits:
    minimum_ml: float
    minimum_mm: float
    maximum_mm: float

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not value >= 0:
                raise ConfigError(f"{name} of a lesion must be at least 0, got {value}")


@dataclass(frozen=True)
class _Shape:
    """What depends on a component's voxels relative to each other alone."""

    diameter_mm: float
    long_axis_mm: float
    short_axis_mm: float
    slice: int


def _find(
    mask: np.ndarray,
    volume: Volume,
    probability: np.ndarray | None,
    entropy: np.ndarray | None,
    limits: _Limits,
    connectivity: int,
) -> tuple[list[Lesion], list[np.ndarray]]:
    """The lesions, and the voxels (3, n) of each in the array."""
    for array in (mask, probability, entropy):
        if array is not None and array.shape != volume.shape:
            msg = f"a mask or map of shape {array.shape} does not fit the scan's shape {volume.shape}"
            raise VolumeError(msg, reason="grid")
    if not volume.in_mm:
        msg = f"{volume.source or 'the picture'}: states no size, so nothing in it can be measured; give a scan"
        raise VolumeError(msg, reason="pixel spacing")
    if connectivity not in CONNECTIVITY:
        raise ConfigError(f"voxels have 6, 18 or 26 neighbours, not {connectivity}")
    across = acquisition_axis(volume)
    turned = (across, *(axis for axis in range(3) if axis != across))
    back = np.argsort(turned)
    voxels, starts = _components(mask.astype(bool, copy=False).transpose(turned), CONNECTIVITY[connectivity])
    sizes = np.diff(np.append(starts, voxels.shape[1]))
    voxel_ml = abs(float(np.linalg.det(volume.affine[:3, :3]))) / 1000
    centres = volume.affine[:3, :3] @ _means(voxels[back], starts, sizes) + volume.affine[:3, 3:]
    measured = {
        **_intensities(volume, voxels[back], starts, sizes),
        "confidence": _mean_share(probability, voxels[back], starts, sizes),
        "entropy": _mean_share(entropy, voxels[back], starts, sizes),
    }
    at_edge = _at_edge(voxels, starts, [volume.shape[axis] for axis in turned])
    # From head to foot, front to back, right to left; rounded, so that noise does not part equal places.
    x, y, z = np.round(centres, 3)
    order = np.lexsort([-x, -y, -z, -sizes])
    measure = _ShapeMeasure(volume.affine[:3, list(turned)], limits)
    plane = plane_of_axis(volume, across)
    lesions: list[Lesion] = []
    places: list[np.ndarray] = []
    for index in order:
        if sizes[index] * voxel_ml < limits.minimum_ml:
            break  # the others are no larger
        place = voxels[:, starts[index] : starts[index] + sizes[index]]
        first, last = int(place[0, 0]), int(place[0, -1])
        shape = measure(place)
        if not limits.minimum_mm <= shape.diameter_mm <= limits.maximum_mm:
            continue
        values = {name: None if found is None else _kept(found[index]) for name, found in measured.items()}
        lesions.append(
            Lesion(
                number=len(lesions) + 1,
                voxels=int(sizes[index]),
                volume_ml=_kept(sizes[index] * voxel_ml),
                long_axis_mm=shape.long_axis_mm,
                short_axis_mm=shape.short_axis_mm,
                axial_slice=first + shape.slice,
                diameter_mm=shape.diameter_mm,
                centre_mm=(float(x[index]), float(y[index]), float(z[index])),
                slices=(first, last),
                plane=plane,
                at_edge=bool(at_edge[index]),
                at_point=False,
                **values,
            )
        )
        places.append(place[back])
    return lesions, places


def _components(mask: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (3, N) of all components, one after the other, in C order within each; and where each begins, (P,)."""
    box = bounding_box(mask)
    labels, _ = label_components(mask[box], rank=rank)
    flat = np.flatnonzero(labels)
    component = labels.ravel()[flat]
    order = np.argsort(component, kind="stable")
    voxels = np.stack(np.unravel_index(flat[order], labels.shape)) + np.array([[axis.start or 0] for axis in box])
    return voxels, np.flatnonzero(np.diff(component[order], prepend=0))


def _means(values: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Means of each component over the last axis, float64."""
    return np.add.reduceat(values, starts, axis=-1, dtype=np.float64) / sizes if len(starts) else values[..., :0] * 1.0


def _intensities(
    volume: Volume, voxels: np.ndarray, starts: np.ndarray, sizes: np.ndarray
) -> dict[str, np.ndarray | None]:
    if volume.modality not in ("CT", "unknown"):
        return dict.fromkeys(("mean_hu", "sd_hu", "min_hu", "max_hu"))
    values = volume.array[tuple(voxels)].astype(np.float64)
    mean = _means(values, starts, sizes)
    spread = np.sqrt(_means((values - np.repeat(mean, sizes)) ** 2, starts, sizes))
    ends = [each.reduceat(values, starts) if len(starts) else values for each in (np.minimum, np.maximum)]
    return {"mean_hu": mean, "sd_hu": spread, "min_hu": ends[0], "max_hu": ends[1]}


def _mean_share(
    levels: np.ndarray | None, voxels: np.ndarray, starts: np.ndarray, sizes: np.ndarray
) -> np.ndarray | None:
    if levels is None:
        return None
    return _means(levels[tuple(voxels)], starts, sizes) / (255 if levels.dtype == np.uint8 else 1)


def _at_edge(voxels: np.ndarray, starts: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    last = np.array(shape)[:, None] - 1
    # A scan of one slice has no slice beside it that could hold the rest.
    border = (((voxels == 0) | (voxels == last)) & (last > 0)).any(axis=0)
    return np.logical_or.reduceat(border, starts) if len(starts) else border


class _ShapeMeasure:
    """Lengths of components; the same shape is measured once, since noise has the same tiny ones again and again.

    Args:
        steps: (3, 3), millimetres from slice to slice, row to row and column to column, as columns.
        limits: of the diameter, which spare the axes of what is not kept.
    """

    def __init__(self, steps: np.ndarray, limits: _Limits) -> None:
        self.steps = steps
        self.limits = limits
        # Rows and columns in a plane of their own: lengths and angles are those in space.
        self.in_plane = np.linalg.qr(steps[:, 1:])[1]
        self.known: dict[bytes, _Shape] = {}

    def __call__(self, voxels: np.ndarray) -> _Shape:
        """Measure voxels (3, n): slices, rows and columns, in C order."""
        relative = voxels - voxels.min(axis=1, keepdims=True)
        # Only the ends of its rows can be a component's outermost voxels.
        beyond = np.diff(relative[:2], axis=1).any(axis=0)
        ends = relative[:, np.append(True, beyond) | np.append(beyond, True)]
        key = ends.astype(np.uint16).tobytes()
        if key not in self.known:
            self.known[key] = self._measure(ends)
        return self.known[key]

    def _measure(self, ends: np.ndarray) -> _Shape:
        measure = self._by_pairs if ends.shape[1] <= _FEW else self._by_hulls
        diameter, longest, line, number = measure(ends)
        on_slice = (self.in_plane @ ends[1:, ends[0] == number]).T
        short = _widest_across(on_slice, self.in_plane.T, line)
        return _Shape(_kept(diameter), _kept(longest), _kept(short), number)

    def _by_pairs(self, ends: np.ndarray) -> tuple[float, float, np.ndarray, int]:
        """Diameter; length, vector and slice of the long axis: all pairs of voxels at once."""
        squares, gains = _pairs((self.steps @ ends).T, slice(None), self.steps.T)
        in_plane = np.maximum(gains[1], gains[2])
        diameter = math.sqrt((squares + np.maximum(gains[0], in_plane)).max())
        in_plane += squares
        in_plane[ends[0][:, None] != ends[0]] = 0
        i, j = divmod(int(in_plane.argmax()), len(squares))
        extent = self.in_plane[:, int(gains[2][i, j] > gains[1][i, j])]
        line = _lengthened(self.in_plane @ (ends[1:, i] - ends[1:, j]), extent)
        return diameter, math.sqrt(in_plane[i, j]), line, int(ends[0, i])

    def _by_hulls(self, ends: np.ndarray) -> tuple[float, float, np.ndarray, int]:
        """The same for many voxels, of which those at the corners of convex hulls are compared."""
        diameter, _ = _longest((self.steps @ ends).T, self.steps.T)
        points = (self.in_plane @ ends[1:]).T
        starts = np.flatnonzero(np.diff(ends[0], prepend=-1))
        slices = np.split(points, starts[1:])
        # No slice is longer than its box's diagonal with a voxel on either side; the longest boxes first.
        extra = float(np.linalg.norm(self.in_plane, axis=0).sum())
        bounds = [float(np.linalg.norm(np.ptp(each, axis=0))) + extra for each in slices]
        longest, line, number = 0.0, np.zeros(2), 0
        for index in np.argsort(np.negative(bounds), kind="stable").tolist():
            if bounds[index] <= longest:
                break
            length, vector = _longest(slices[index], self.in_plane.T)
            if length > longest + 1e-9:
                longest, line, number = length, vector, int(ends[0, starts[index]])
        return diameter, longest, line, number


def _pairs(points: np.ndarray, chosen: slice, extents: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Squared distances of voxel centres, and what the square of opposite faces' is more, for each axis of a voxel.

    |d ± e|² = |d|² + 2 |d · e| + |e|² for the better sign.
    """
    from scipy.spatial.distance import cdist

    gains = []
    for extent in extents:
        along = points @ extent
        gains.append(2 * np.abs(along[chosen, None] - along) + extent @ extent)
    return cdist(points[chosen], points, "sqeuclidean"), gains


def _lengthened(line: np.ndarray, extent: np.ndarray) -> np.ndarray:
    return line + extent if line @ extent >= 0 else line - extent


def _longest(points: np.ndarray, extents: np.ndarray) -> tuple[float, np.ndarray]:
    """Length and vector of the longest line between opposite faces of two voxels.

    Args:
        points: (n, d), centres of the voxels in mm.
        extents: (d, d), a voxel's extent along each of its axes, one a row.
    """
    if len(points) > _FEW:
        points = _outermost(points, extents)
    longest, line = -1.0, points[0]
    for first in range(0, len(points), _CHUNK):
        squares, gains = _pairs(points, slice(first, first + _CHUNK), extents)
        squares += np.maximum.reduce(gains)
        i, j = divmod(int(squares.argmax()), len(points))
        if squares[i, j] > longest:
            longest = float(squares[i, j])
            axis = int(np.argmax([gain[i, j] for gain in gains]))
            line = _lengthened(points[first + i] - points[j], extents[axis])
    return math.sqrt(longest), line


def _outermost(points: np.ndarray, extents: np.ndarray) -> np.ndarray:
    """The corners of the points' convex hull."""
    from scipy.spatial import ConvexHull, QhullError

    try:
        return points[ConvexHull(points).vertices]
    except QhullError:  # all in one plane or line: make it thick, and then take the points that the corners came from
        around = np.concatenate([points + sign * extent / 2 for extent in extents for sign in (1, -1)])
        return points[np.unique(ConvexHull(around).vertices % len(points))]


def _widest_across(points: np.ndarray, extents: np.ndarray, along: np.ndarray) -> float:
    """The longest chord at right angles to a line in the convex outline of voxels in a plane (see :func:`_longest`)."""
    from scipy.spatial import ConvexHull

    around = np.concatenate([points + sign * extent / 2 for extent in extents for sign in (1, -1)])
    x, y = along / np.linalg.norm(along)
    outline = around[ConvexHull(around).vertices] @ np.array([[x, -y], [y, x]])  # counter-clockwise, the line along x
    outline = np.roll(outline, -int(outline[:, 0].argmin()), axis=0)
    turn = int(outline[:, 0].argmax())
    below, above = outline[: turn + 1], np.concatenate([outline[turn:], outline[:1]])[::-1]
    # The length of the chord is concave, so it is largest above or below a corner.
    at = outline[:, 0]
    return float((np.interp(at, *above.T) - np.interp(at, *below.T)).max())


def _kept(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
