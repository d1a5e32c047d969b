"""What compressed DICOM pixels say of themselves, read without decoding them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["CompressedImage", "images_in"]

_ITEM = b"\xfe\xff\x00\xe0"
_START = 1 << 17  # bytes in which an image must say what it is; marker segments before that take up to 64 KiB each
_JPEG, _JPEG_2000 = b"\xff\xd8", b"\xff\x4f\xff\x51"  # how images begin
# Frame headers of JPEG and JPEG-LS: all SOF markers but DHT, JPG and DAC, which share their range.
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class CompressedImage:
    """An image of the JPEG family; ``rows`` is 0 where a JPEG states them only behind its first scan."""

    rows: int
    columns: int
    precision: int
    signed: bool


def images_in(data: bytes) -> Iterator[CompressedImage]:
    """Yield what the images in compressed pixel data state; fragments in which none begins are passed over."""
    at = 0
    while at + 8 <= len(data):
        tag, length = struct.unpack_from("<4sI", data, at)
        if tag != _ITEM:
            return
        image = _stated(data[at + 8 : at + 8 + min(length, _START)])
        if image is not None:
            yield image
        at += 8 + length


def _stated(start: bytes) -> CompressedImage | None:
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
