"""Anatomical axes of a voxel grid, and exact flips and permutations between them (numpy only).

An axis is named by the side of the patient that it increases towards: L/R, P/A, I/S. World coordinates are RAS+.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

from boltzformer_monai.errors import ConfigError

_POSITIVE = "RAS"
_NEGATIVE = "LPI"

LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
"""Factors of DICOM's and ITK's world coordinates (mm) that make them those of NIfTI, and back."""
LPS_TO_RAS_AFFINE = np.diag([*LPS_TO_RAS, 1.0])
"""The same as a matrix (4, 4), to be put before an affine."""


@dataclass(frozen=True)
class AxisMap:
    """A signed permutation: output axis ``a`` is input axis ``order[a]``, reversed where ``flip[a]``."""

    order: tuple[int, ...]
    flip: tuple[bool, ...]

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Return the 3-D array in the output's axes, as a view."""
        steps = tuple(slice(None, None, -1 if flipped else 1) for flipped in self.flip)
        return array.transpose(self.order)[steps]

    def inverse(self) -> AxisMap:
        """Return the map that undoes this one."""
        back = tuple(self.order.index(axis) for axis in range(3))
        return AxisMap(back, tuple(self.flip[axis] for axis in back))

    def apply_to_affine(self, affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Return the affine of the output grid, given the affine (4, 4) and the shape of the input grid."""
        moved = np.array(affine, dtype=np.float64)
        for axis, (source, flipped) in enumerate(zip(self.order, self.flip, strict=True)):
            column = affine[:, source]
            moved[:, axis] = -column if flipped else column
            if flipped:
                moved[:, 3] += column * (shape[source] - 1)
        return moved


def axis_codes(affine: np.ndarray) -> tuple[str, str, str]:
    """Name the axes of a grid, e.g. ``("L", "P", "S")``; oblique axes get the name of the nearest one.

    The names are always three different directions: the assignment with the largest sum of direction cosines wins.
    """
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    best = max(permutations(range(3)), key=lambda world: sum(abs(cosines[world[axis], axis]) for axis in range(3)))
    codes = [_POSITIVE[best[axis]] if cosines[best[axis], axis] > 0 else _NEGATIVE[best[axis]] for axis in range(3)]
    return codes[0], codes[1], codes[2]


def parse_codes(codes: str) -> tuple[str, str, str]:
    """Check an orientation such as ``"LPS"``: three letters, one of L/R, one of P/A, one of I/S.

    Raises:
        ConfigError: anything else.
    """
    upper = codes.upper() if isinstance(codes, str) else ""
    if len(upper) != 3 or sorted(_world_axis(code) for code in upper) != [0, 1, 2]:
        msg = f"orientation {codes!r} is not three letters naming one of L/R, one of P/A and one of I/S, e.g. 'LPS'"
        raise ConfigError(msg)
    return upper[0], upper[1], upper[2]


def axis_map(start: tuple[str, str, str], end: tuple[str, str, str]) -> AxisMap:
    """Return the map that brings a grid with the axes ``start`` to the axes ``end``."""
    world = [_world_axis(code) for code in start]
    order = tuple(world.index(_world_axis(code)) for code in end)
    return AxisMap(order, tuple(start[source] != code for source, code in zip(order, end, strict=True)))


def signed_permutation(matrix: np.ndarray) -> AxisMap | None:
    """Return the axis map of a (3, 3) voxel-to-voxel matrix that is nearly one, or None."""
    rounded = np.rint(matrix)
    ones = np.abs(rounded)
    if not ((ones.sum(axis=0) == 1).all() and (ones.sum(axis=1) == 1).all()):
        return None
    order = tuple(ones.argmax(axis=1).tolist())
    return AxisMap(order, tuple(bool(rounded[axis, source] < 0) for axis, source in enumerate(order)))


def _world_axis(code: str) -> int:
    """Return 0, 1, 2 for the x, y, z axis of the patient, -1 for a letter that names none."""
    return _POSITIVE.find(code) if code in _POSITIVE else _NEGATIVE.find(code)
