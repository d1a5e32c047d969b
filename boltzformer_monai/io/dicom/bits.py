"""Which bits of a decoded DICOM pixel are its value: BitsStored, HighBit and PixelRepresentation, never the decoder.

A pixel cell may hold more than its pixel: overlay planes in the upper bits, a sign that was not extended, leftovers of
an older format. Decoders differ in what they do about it, so they return whole cells, and the header is applied here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from boltzformer_monai.errors import VolumeError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

BITS_TAGS = ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
OVERLAY_TAGS = tuple(
    0x60000000 + (group << 16) + element for group in range(0, 0x20, 2) for element in (0x100, 0x102, 0x3000)
)
_ALLOCATED = (1, 8, 16, 32)


@dataclass(frozen=True)
class PixelBits:
    """Where the pixel lies in its cell.

    Attributes:
        allocated: bits of a cell: 1, 8, 16 or 32.
        stored: bits of the pixel.
        high: number of the pixel's highest bit in the cell, from 0.
        signed: whether the pixel is a two's complement.
    """

    allocated: int
    stored: int
    high: int
    signed: bool

    @classmethod
    def of(cls, dataset: Dataset, path: Path) -> PixelBits:
        """Read them from the header of a file.

        Raises:
            VolumeError: BitsAllocated, BitsStored or PixelRepresentation is missing, they contradict each other, or an
                overlay plane lies within the pixel's own bits.
        """
        for name in ("BitsAllocated", "BitsStored", "PixelRepresentation"):
            if dataset.get(name) is None:
                msg = f"{path}: states no {name}, so its pixels are undefined; export it again"
                raise VolumeError(msg, reason="damaged")
        allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
        high = stored - 1 if dataset.get("HighBit") is None else int(dataset.HighBit)
        if allocated not in _ALLOCATED:
            msg = f"{path}: has {allocated} bits allocated per pixel; 8, 16 and 32 are read, export it again"
            raise VolumeError(msg, reason="unsupported format")
        if not (1 <= stored <= allocated and stored - 1 <= high < allocated and dataset.PixelRepresentation in (0, 1)):
            msg = (
                f"{path}: its header is impossible (BitsAllocated {allocated}, BitsStored {stored}, HighBit "
                f"{high}, PixelRepresentation {dataset.PixelRepresentation}); export it again"
            )
            raise VolumeError(msg, reason="damaged")
        bits = cls(allocated, stored, high, bool(dataset.PixelRepresentation))
        plane = next((bit for bit in _overlay_bits(dataset) if high - stored < bit <= high), None)
        if plane is not None:
            msg = f"{path}: an overlay lies in bit {plane}, which its header counts as pixel; export it again"
            raise VolumeError(msg, reason="damaged")
        return bits

    @property
    def dtype(self) -> np.dtype:
        """The unsigned type of a cell in native byte order; one byte for single bits."""
        return np.dtype(f"u{max(self.allocated, 8) // 8}")

    @property
    def whole(self) -> PixelBits:
        """The same with all bits of the cell for the pixel."""
        width = 8 * self.dtype.itemsize
        return PixelBits(width, width, width - 1, self.signed)

    def values(self, cells: np.ndarray) -> np.ndarray:
        """Return the pixels of cells of any shape, uint or int of the cells' width; higher bits are ignored."""
        width = 8 * self.dtype.itemsize
        cells = cells.astype(self.dtype, copy=False).view(f"{'i' if self.signed else 'u'}{self.dtype.itemsize}")
        if self.stored == width:
            return cells
        # The highest bit goes to the top, and comes back with its sign.
        return (cells << (width - 1 - self.high)) >> (width - self.stored)

    def holds(self, values: np.ndarray) -> np.ndarray:
        """Tell which whole numbers ``stored`` bits can hold; booleans of the same shape."""
        low = -(1 << (self.stored - 1)) if self.signed else 0
        wide = values.astype(np.int64, copy=False)
        return (wide >= low) & (wide < low + (1 << self.stored))


def _overlay_bits(dataset: Dataset) -> list[int]:
    """Return the bits of the cells that hold overlay planes; a plane with data of its own is not among them."""
    bits = []
    for group in range(0x6000, 0x6020, 2):
        position, allocated = dataset.get((group, 0x102)), dataset.get((group, 0x100))
        if (group, 0x3000) in dataset or position is None or allocated is None or int(allocated.value or 1) == 1:
            continue
        bits.append(int(position.value))
    return bits
