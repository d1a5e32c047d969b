"""Pictures that claim more pixels than any slice has are refused from their header."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boltzformer_monai.data.slices.reader import read_png
from boltzformer_monai.errors import DatasetError
from boltzformer_monai.io.pictures import open_picture
from boltzformer_monai.limits import MEMORY_VARIABLE


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png_bomb(path: Path, width: int, height: int) -> None:
    """Write a small file that is a grey picture of this size as far as its header goes."""
    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(100_000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b""))


@pytest.mark.parametrize("size", [(60_000, 60_000), (10_000, 10_000), (2**31 - 1, 2**31 - 1), (1, 1 << 27)])
def test_a_picture_of_more_pixels_than_are_read_is_one_line(tmp_path: Path, size: tuple[int, int]) -> None:
    write_png_bomb(tmp_path / "bomb.png", *size)
    with pytest.raises(DatasetError, match=f"it claims {size[0]}x{size[1]} pixels, more than are read of an image"):
        read_png(tmp_path / "bomb.png")


def test_the_memory_budget_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_png_bomb(tmp_path / "large.png", 4000, 4000)
    monkeypatch.setenv(MEMORY_VARIABLE, "0.064")
    with pytest.raises(ValueError, match="it claims 4000x4000 pixels"), open_picture(tmp_path / "large.png"):
        pass


def test_a_picture_is_read(tmp_path: Path) -> None:
    pixels = np.arange(60, dtype=np.uint8).reshape(6, 10)
    Image.fromarray(pixels).save(tmp_path / "slice.png")
    np.testing.assert_array_equal(read_png(tmp_path / "slice.png"), pixels)


def test_another_format_is_no_slice_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "slice.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(DatasetError, match="cannot be read as PNG"):
        read_png(tmp_path / "slice.png")


def test_a_pipe_is_no_picture(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "slice.png")
    with pytest.raises(DatasetError, match="pipe, socket or device"):
        read_png(tmp_path / "slice.png")
