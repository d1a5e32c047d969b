"""How many pixels a DICOM header claims, compared with the memory and with what its compressed data can unfold into."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom.codestream import images_in
from boltzformer_monai.limits import require_room

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from boltzformer_monai.io.dicom.files import SliceHeader

__all__ = ["COPIES", "check_compressed_claim", "check_room_for_slices"]

_VALUE = 8  # bytes of a voxel: of the result, float32, and of up to four masks of its padding
COPIES = 4
"""Of the pixels of one file while it is decoded: as read, as decoded, and two on the way."""
_SCALED = 8  # bytes of a pixel while one picture is rescaled
_MOST_PIXELS = {
    "1.2.840.10008.1.2.5": 64,  # RLE: two bytes repeat one byte up to 128 times
    "1.2.840.10008.1.2.4.50": 256,  # JPEG baseline and extended: 64 pixels take at least two bits
    "1.2.840.10008.1.2.4.51": 256,
    "1.2.840.10008.1.2.4.57": 8,  # JPEG lossless: a pixel takes at least one bit
    "1.2.840.10008.1.2.4.70": 8,
}
"""Transfer syntax → the most pixels that a byte can unfold into (JPEG-LS and JPEG 2000 have no such bound)."""


def check_room_for_slices(slices: Sequence[SliceHeader]) -> None:
    """Refuse a series whose voxels, with those of its largest file while it is decoded, exceed the memory budget.

    Raises:
        VolumeError: reason ``"too large"``.
    """
    voxels = sum(header.rows * header.columns for header in slices)
    largest = max(slices, key=lambda header: header.frames * header.rows * header.columns * header.bits)
    picture = largest.rows * largest.columns
    decoding = COPIES * largest.frames * picture * max(1, largest.bits // 8) + _SCALED * picture
    require_room(voxels * _VALUE + decoding, 1, largest.path.parent if len(slices) > 1 else largest.path)


def check_compressed_claim(dataset: Dataset, path: Path) -> None:
    """Refuse compressed pixels that cannot be as many as the header says; decoders allocate before they look.

    Raises:
        VolumeError: there are too few bytes, or a picture in them states another size.
    """
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None or not syntax.is_transfer_syntax or not syntax.is_compressed or "PixelData" not in dataset:
        return
    rows, columns, data = int(dataset.Rows), int(dataset.Columns), dataset.PixelData
    claimed = rows * columns * int(dataset.get("SamplesPerPixel", 1)) * int(dataset.get("NumberOfFrames") or 1)
    most = _MOST_PIXELS.get(str(syntax))
    if most is not None and claimed > most * len(data):
        msg = f"{path}: its header claims {claimed} pixels, more than its {len(data)} compressed bytes can hold; "
        raise VolumeError(msg + "it is cut off or damaged, copy or export it again", reason="truncated")
    for image in images_in(data):
        if (image.rows or rows, image.columns) != (rows, columns):
            msg = f"{path}: holds a compressed picture of {image.columns}x{image.rows} pixels, its header says "
            msg += f"{columns}x{rows}; "
            raise VolumeError(msg + "the file is damaged, export it again", reason="damaged")
