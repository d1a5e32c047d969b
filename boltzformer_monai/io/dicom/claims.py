"""What a DICOM header claims of its pixels, checked against memory and file before anything is decoded."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.dicom.files import SliceHeader
from boltzformer_monai.limits import require_room

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

VALUE_TAGS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_VALUE = 8  # bytes per voxel: of the result, float32, and of up to four masks of its padding
COPIES = 4
"""Of the pixels of one file while it is decoded: as read, as decoded, and two on the way."""
_SCALED = 8  # bytes per pixel while one frame is rescaled
_MOST_PIXELS = {
    "1.2.840.10008.1.2.5": 64,  # RLE: two bytes repeat one byte up to 128 times
    "1.2.840.10008.1.2.4.50": 256,  # JPEG baseline and extended: 64 pixels take at least two bits
    "1.2.840.10008.1.2.4.51": 256,
    "1.2.840.10008.1.2.4.57": 8,  # JPEG lossless: a pixel takes at least one bit
    "1.2.840.10008.1.2.4.70": 8,
}
"""Transfer syntax → the most pixels that a byte can decode to (JPEG-LS and JPEG 2000 have no such bound)."""
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"  # of a fragment, and after the last
_START = 1 << 17  # bytes in which an image must say what it is; marker segments before that take up to 64 KiB each
_JPEG, _JPEG_2000 = b"\xff\xd8", b"\xff\x4f\xff\x51"  # how images begin
# Frame headers of JPEG and JPEG-LS: all SOF markers but DHT, JPG and DAC, which share their range.
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


def check_room_for_slices(slices: Sequence[SliceHeader]) -> None:
    """Refuse a series whose voxels, with those of its largest file while it is decoded, exceed the memory budget.

    Raises:
        VolumeError: reason ``"too large"``.
    """
    voxels = sum(header.rows * header.columns for header in slices)
    largest = max(slices, key=lambda header: header.frames * header.rows * header.columns * header.bits)
    frame = largest.rows * largest.columns
    decoding = COPIES * largest.frames * frame * max(1, largest.bits // 8) + _SCALED * frame
    require_room(voxels * _VALUE + decoding, 1, largest.path.parent if len(slices) > 1 else largest.path)


def check_compressed_claim(dataset: Dataset, path: Path) -> None:
    """Refuse compressed pixels that cannot be as many as the header says; decoders allocate before they look.

    Raises:
        VolumeError: there are too few bytes, or an image in them states another size.
    """
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None or not syntax.is_transfer_syntax or not syntax.is_compressed or "PixelData" not in dataset:
        return
    rows, columns, data = int(dataset.Rows), int(dataset.Columns), dataset.PixelData
    claimed = rows * columns * int(dataset.get("SamplesPerPixel", 1)) * int(dataset.get("NumberOfFrames") or 1)
    most = _MOST_PIXELS.get(str(syntax))
    if most is not None and claimed > most * len(data):
        msg = (
            f"{path}: its header claims {claimed} pixels, more than its {len(data)} compressed bytes can hold; "
            "it is cut off or damaged, copy or export it again"
        )
        raise VolumeError(msg, reason="truncated")
    for image in images_in(data):
        if (image.rows or rows, image.columns) != (rows, columns):
            size = f"{image.columns}x{image.rows} pixels, its header says {columns}x{rows}"
            msg = f"{path}: holds a compressed image of {size}; the file is damaged, export it again"
            raise VolumeError(msg, reason="damaged")


def check_not_cut_off(dataset: Dataset, path: Path) -> None:
    """Refuse pixel data that are missing or shorter than the header, or an item of theirs, says.

    Raises:
        VolumeError: reason ``"truncated"``.
    """
    values = next((dataset[name].value for name in VALUE_TAGS if name in dataset), None)
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if not values:  # pydicom leaves compressed data out altogether where they end early
        whole = False
    elif syntax is not None and (not syntax.is_transfer_syntax or syntax.is_compressed):
        # GDCM would allocate what a false length asks for.
        whole = all(tag == _END or (tag == _ITEM and end <= len(values)) for tag, _, end in _items(values))
    else:
        samples = int(dataset.get("SamplesPerPixel", 1)) * int(dataset.get("NumberOfFrames") or 1)
        whole = len(values) * 8 >= dataset.Rows * dataset.Columns * samples * dataset.BitsAllocated
    if not whole:
        msg = f"{path}: its pixel data are missing or end early (truncated); copy or export the file again"
        raise VolumeError(msg, reason="truncated")


@dataclass(frozen=True)
class CompressedImage:
    """An image of the JPEG family; ``rows`` is 0 where a JPEG states them only behind its first scan."""

    rows: int
    columns: int
    precision: int
    signed: bool


def images_in(data: bytes) -> Iterator[CompressedImage]:
    """Yield what the images in compressed pixel data state; fragments in which none begins are passed over."""
    for tag, start, end in _items(data):
        if tag == _ITEM and (image := _stated(data[start : min(end, start + _START)])) is not None:
            yield image


def _items(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield tag, start and end of each item of encapsulated pixel data, up to the first that is no fragment."""
    tag, at = _ITEM, 0
    while tag == _ITEM and at + 8 <= len(data):
        tag, length = struct.unpack_from("<4sI", data, at)
        yield tag, at + 8, at + 8 + length
        at += 8 + length


def _stated(start: bytes) -> CompressedImage | None:
    """Return what the first bytes of an image state."""
    at = start.find(_JPEG_2000, 0, 256)  # some writers leave the boxes of a JP2 file around it
    if at >= 0 and len(start) > at + 42:
        right, bottom, left, top = struct.unpack_from(">4I", start, at + 8)
        depth = start[at + 42]
        return CompressedImage(bottom - top, right - left, (depth & 0x7F) + 1, depth > 0x7F)
    at = 2
    while start[:2] == _JPEG and at + 9 <= len(start) and start[at] == 0xFF:
        if start[at + 1] in _FRAME_MARKERS:
            precision, rows, columns = struct.unpack_from(">B2H", start, at + 4)
            return CompressedImage(rows, columns, precision, signed=False)
        at += 1 if start[at + 1] == 0xFF else 2 + int.from_bytes(start[at + 2 : at + 4], "big")
    return None
