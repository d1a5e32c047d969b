"""The mask of a volume, or its probabilities, collected slice by slice in compressed form."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np

from boltzformer_monai.errors import DatasetError

__all__ = ["PackedLevels", "PackedMasks"]


class _Packed(NamedTuple):
    """A slice within its bounding box, deflated."""

    box: tuple[slice, slice]
    data: bytes


class PackedMasks:
    """Slices of one mask in any order; empty ones take no memory.

    Args:
        shape: ``(N, H, W)`` of the volume, slices first.
    """

    dtype: type = bool

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self._slices: dict[int, _Packed] = {}

    def put(self, index: int, mask: np.ndarray) -> None:
        """Store the mask ``(H, W)`` bool of a slice, replacing an earlier one.

        Raises:
            DatasetError: it is no slice of this volume.
        """
        if mask.shape != self.shape[1:] or not 0 <= index < self.shape[0]:
            msg = f"slice {index} of {mask.shape} pixels is none of a volume {self.shape}; slice the volume again"
            raise DatasetError(msg)
        self._slices.pop(index, None)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            box = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
            self._slices[index] = _Packed(box, zlib.compress(self._bytes(mask[box]), 1))

    def keep(self, kept: np.ndarray) -> None:
        """Empty the slices where ``kept`` ``(N,)`` is False."""
        self._slices = {index: packed for index, packed in self._slices.items() if kept[index]}

    @property
    def nbytes(self) -> int:
        """Size of the packed masks."""
        return sum(len(packed.data) for packed in self._slices.values())

    def dense(self) -> np.ndarray:
        """The whole mask ``(N, H, W)`` bool."""
        dense: np.ndarray = np.zeros(self.shape, self.dtype)
        for index, (box, data) in self._slices.items():
            height, width = (part.stop - part.start for part in box)
            values = np.frombuffer(zlib.decompress(data), np.uint8)
            dense[index][box] = self._values(values, height * width).reshape(height, width)
        return dense

    def _bytes(self, part: np.ndarray) -> bytes:
        return np.packbits(part).tobytes()

    def _values(self, stored: np.ndarray, count: int) -> np.ndarray:
        return np.unpackbits(stored, count=count).view(bool)


class PackedLevels(PackedMasks):
    """Slices of 8-bit probabilities ``(H, W)`` in any order."""

    dtype = np.uint8

    def _bytes(self, part: np.ndarray) -> bytes:
        return part.tobytes()

    def _values(self, stored: np.ndarray, count: int) -> np.ndarray:
        return stored
