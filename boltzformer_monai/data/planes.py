"""Volumes as stacks of slices in radiological display, and back to their grid.

Every plane is a signed permutation of the volume's axes, so both directions are exact:

======== ===================== ===================== =====================
plane    slice index rises to  rows run              columns run
======== ===================== ===================== =====================
axial    superior              anterior → posterior  right → left
coronal  posterior             superior → inferior   right → left
sagittal left                  superior → inferior   anterior → posterior
======== ===================== ===================== =====================

The patient's right is on the left of an axial or coronal slice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from boltzformer_monai.errors import ConfigError, VolumeError
from boltzformer_monai.io.orientation import AxisMap, axis_map, parse_codes
from boltzformer_monai.io.volume import Volume

PLANE_AXES: Mapping[str, str] = MappingProxyType({"axial": "SPL", "coronal": "PIL", "sagittal": "LIP"})
"""For each plane the side of the patient that (slice index, row, column) increase towards."""
_ACROSS = {"axial": "SI", "coronal": "PA", "sagittal": "LR"}


@dataclass(frozen=True)
class Slicing:
    """Parallel slices of a volume: along which plane, and which way they are turned.

    Attributes:
        plane: the nearest anatomical plane.
        axes: from the volume's axes to (slice, row, column).
    """

    plane: str
    axes: AxisMap

    def shape(self, volume: Volume) -> tuple[int, int, int]:
        """(N, H, W) of the slices."""
        across, row, column = (volume.shape[axis] for axis in self.axes.order)
        return across, row, column

    def spacing(self, volume: Volume) -> tuple[float, float, float]:
        """Millimetres (from row to row, from column to column, from slice to slice)."""
        across, row, column = (volume.spacing[axis] for axis in self.axes.order)
        return row, column, across

    def extract(self, array: np.ndarray) -> np.ndarray:
        """The slices (N, H, W) of an array (I, J, K), contiguous."""
        return np.ascontiguousarray(self.axes.apply(array))

    def restore(self, slices: np.ndarray) -> np.ndarray:
        """Undo :meth:`extract`, as a view of the slices."""
        return self.axes.inverse().apply(slices)


def checked_planes(planes: Any) -> tuple[str, ...]:
    """Different planes, given as a list, or as a text with commas between them.

    Raises:
        ConfigError: one is unknown or given twice, or there are none.
    """
    named = planes.split(",") if isinstance(planes, str) else planes
    chosen = tuple(each.strip() for each in named) if _are_texts(named) else ()
    if not chosen or not set(chosen) <= PLANE_AXES.keys() or len(set(chosen)) < len(chosen):
        raise ConfigError(f"planes must be different ones of {', '.join(PLANE_AXES)}, got {ascii(planes)[:80]}")
    return chosen


def _are_texts(values: Any) -> bool:
    return isinstance(values, Sequence) and all(isinstance(each, str) for each in values)


def radiological(volume: Volume, plane: str) -> Slicing:
    """The slices of a plane in radiological display, as :func:`extract_slices` has them.

    Raises:
        ConfigError: the plane is not axial, coronal or sagittal.
    """
    return Slicing(plane, _to_plane(volume, plane))


def plane_of_axis(volume: Volume, axis: int) -> str:
    """The plane of the slices along an axis of the array."""
    code = volume.axis_codes[axis]
    return next(plane for plane, side in _ACROSS.items() if code in side)


def extract_slices(volume: Volume, plane: str) -> np.ndarray:
    """All slices of a plane, (N, H, W), of the volume's dtype, contiguous.

    Raises:
        ConfigError: the plane is not axial, coronal or sagittal.
    """
    return np.ascontiguousarray(_to_plane(volume, plane).apply(volume.array))


def stack_shape(volume: Volume, plane: str) -> tuple[int, int, int]:
    """Shape (N, H, W) of :func:`extract_slices`.

    Raises:
        ConfigError: the plane is not axial, coronal or sagittal.
    """
    across, row, column = (volume.shape[axis] for axis in _to_plane(volume, plane).order)
    return across, row, column


def slices_to_volume(slices: np.ndarray, like: Volume, plane: str, *, view: bool = False) -> np.ndarray:
    """Inverse of :func:`extract_slices`: the array (I, J, K) on the grid of ``like``.

    Args:
        slices: (N, H, W), any dtype, in the order and display of ``extract_slices(like, plane)``.
        like: the volume of the slices.
        plane: of the slices.
        view: return a view of the slices instead of a contiguous copy.

    Raises:
        ConfigError: the plane is not axial, coronal or sagittal.
        VolumeError: the slices do not fit the grid of ``like``.
    """
    axes = _to_plane(like, plane)
    expected = stack_shape(like, plane)
    if slices.shape != expected:
        msg = f"{plane} slices of shape {slices.shape} do not fit {like.source or 'their volume'}: it has {expected}"
        raise VolumeError(msg)
    volume = axes.inverse().apply(slices)
    return volume if view else np.ascontiguousarray(volume)


def slice_spacing(volume: Volume, plane: str) -> tuple[float, float, float]:
    """Spacing in mm (from row to row, from column to column, from slice to slice).

    Raises:
        ConfigError: the plane is not axial, coronal or sagittal.
    """
    across, row, column = (volume.spacing[axis] for axis in _to_plane(volume, plane).order)
    return row, column, across


def _to_plane(volume: Volume, plane: str) -> AxisMap:
    if plane not in PLANE_AXES:
        raise ConfigError(f"unknown plane {plane!r}; known are {', '.join(PLANE_AXES)}")
    return axis_map(volume.axis_codes, parse_codes(PLANE_AXES[plane]))
