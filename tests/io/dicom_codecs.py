"""Small encoders of DICOM pixel data: cells of any layout, and compressed images that state any precision and sign."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np

JPEG_LOSSLESS, JPEG_LS, JPEG_2000 = (f"1.2.840.10008.1.2.4.{end}" for end in ("70", "80", "90"))
RLE, BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"


def cells_of(values: np.ndarray, *, allocated: int, stored: int, high: int, junk: np.ndarray | int = 0) -> np.ndarray:
    """Return cells with the pixels at their place and ``junk`` in all other bits."""
    mask = ((1 << stored) - 1) << (high + 1 - stored)
    pixels = (values.astype(np.int64) << (high + 1 - stored)) & mask
    return (pixels | (np.asarray(junk, np.int64) & ~mask & ((1 << allocated) - 1))).astype(f"u{allocated // 8}")


def jpeg_lossless(values: np.ndarray, precision: int) -> bytes:
    """Encode an image (rows, columns) of unsigned numbers: process 14, the left neighbour predicts."""
    values = values.astype(np.int64)
    predicted = np.empty_like(values)
    predicted[0, 0], predicted[0, 1:] = 1 << (precision - 1), values[0, :-1]
    predicted[1:, 0], predicted[1:, 1:] = values[:-1, 0], values[1:, :-1]
    bits = []
    for difference in ((values - predicted + 32768) % 65536 - 32768).ravel().tolist():
        size = 16 if difference == -32768 else abs(difference).bit_length()
        bits.append(f"{size:05b}")
        if 0 < size < 16:
            bits.append(f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    body = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\x00")
    table = b"\xff\xc4" + struct.pack(">HB", 36, 0) + bytes([0, 0, 0, 0, 17, *[0] * 11]) + bytes(range(17))
    frame = b"\xff\xc3" + struct.pack(">HBHHB", 11, precision, *values.shape, 1) + b"\x01\x11\x00"
    scan = b"\xff\xda" + struct.pack(">HB", 8, 1) + b"\x01\x00\x01\x00\x00"
    return b"\xff\xd8" + frame + table + scan + body + b"\xff\xd9"


def jpeg_2000(values: np.ndarray, precision: int, *, signed: bool) -> bytes:
    """Encode an image (rows, columns) losslessly; Pillow writes 16 bits, so its header is changed, the zero moved."""
    from PIL import Image

    shift = (1 << 15) - (0 if signed else 1 << (precision - 1))
    file = io.BytesIO()
    Image.fromarray((values.astype(np.int64) + shift).astype(np.uint16)).save(file, "JPEG2000", no_jp2=True)
    code = bytearray(file.getvalue())
    assert code[42] == 15  # 16 bits, unsigned
    code[42] = (precision - 1) | (0x80 if signed else 0)
    return bytes(code)


def jpeg_ls(values: np.ndarray, precision: int) -> bytes:
    """Encode an image (rows, columns) of unsigned numbers without loss; needs pyjpegls."""
    from jpeg_ls import encode_buffer

    data = np.ascontiguousarray(values.astype("<u2" if precision > 8 else "u1")).tobytes()
    return bytes(encode_buffer(data, *values.shape, 1, precision))


def store_cells(dataset: Any, cells: np.ndarray, syntax: str) -> None:
    """Put cells, (rows, columns) or (frames, rows, columns), into a dataset, plain or packed by RLE."""
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    width = cells.dtype.itemsize
    if syntax == RLE:
        frames = cells[None] if cells.ndim == 2 else cells
        dataset.PixelData = encapsulate([_run_lengths(frame) for frame in frames])
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
        return
    if syntax == BIG_ENDIAN:
        dataset.is_little_endian = False
        data = cells.astype(f">u{width}").tobytes()
        if width == 1:  # bytes in words
            data = np.frombuffer(data + b"\0" * (len(data) % 2), np.uint8).reshape(-1, 2)[:, ::-1].tobytes()
    else:
        data = cells.astype(f"<u{width}").tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OW"


def store_image(dataset: Any, codes: list[bytes], syntax: str) -> None:
    """Put compressed images, one a frame, into a dataset."""
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.PixelData = encapsulate(codes)
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True


def _run_lengths(cells: np.ndarray) -> bytes:
    """Pack one frame by RLE: a segment a byte of the cells, the highest first, every run literal."""
    planes = cells.astype(f">u{cells.dtype.itemsize}").reshape(cells.size, 1).view(np.uint8).T
    segments = []
    for plane in planes:
        data = plane.tobytes()
        packed = b"".join(
            bytes([len(data[at : at + 128]) - 1]) + data[at : at + 128] for at in range(0, len(data), 128)
        )
        segments.append(packed + b"\0" * (len(packed) % 2))
    offsets = np.cumsum([64, *map(len, segments)])[:-1].tolist()
    return struct.pack("<16L", len(segments), *offsets, *[0] * (15 - len(segments))) + b"".join(segments)
