"""The masks of a volume, slice by slice in any order, in little memory until they are looked at together."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np

from boltzformer_monai.errors import DatasetError

__all__ = ["PackedMasks"]


class _Packed(NamedTuple):
    """One slice's mask: what lies within its bounding box, eight pixels a byte, compressed."""

    box: tuple[slice, slice]
    data: bytes


class PackedMasks:
    """The slices of one mask. Empty slices take no memory, the others the compressed bits of their bounding box.

    Args:
        shape: ``(N, H, W)`` of the volume, slices first.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self._slices: dict[int, _Packed] = {}

    def put(self, index: int, mask: np.ndarray) -> None:
        """Take the mask ``(H, W)`` bool of a slice, instead of one that was there.

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
            self._slices[index] = _Packed(box, zlib.compress(np.packbits(mask[box]).tobytes(), 1))

    def keep(self, kept: np.ndarray) -> None:
        """Empty the slices that ``kept`` ``(N,)`` bool does not name."""
        self._slices = {index: packed for index, packed in self._slices.items() if kept[index]}

    @property
    def box(self) -> tuple[slice, slice, slice] | None:
        """Bounding box, None for an empty mask."""
        if not self._slices:
            return None
        boxes = [packed.box for packed in self._slices.values()]
        rows, columns = (
            slice(min(box[axis].start for box in boxes), max(box[axis].stop for box in boxes)) for axis in (0, 1)
        )
        return slice(min(self._slices), max(self._slices) + 1), rows, columns

    @property
    def nbytes(self) -> int:
        """Bytes that the packed masks take."""
        return sum(len(packed.data) for packed in self._slices.values())

    def within(self, box: tuple[slice, slice, slice]) -> np.ndarray:
        """The part of the mask in a box that contains it all, bool."""
        first, top, left = (part.start for part in box)
        dense = np.zeros([part.stop - part.start for part in box], bool)
        for index, (place, data) in self._slices.items():
            height, width = (part.stop - part.start for part in place)
            bits = np.frombuffer(zlib.decompress(data), np.uint8)
            mask = np.unpackbits(bits, count=height * width).view(bool).reshape(height, width)
            row, column = place[0].start - top, place[1].start - left
            dense[index - first, row : row + height, column : column + width] = mask
        return dense
