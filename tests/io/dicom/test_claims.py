"""DICOM files that claim, or unfold into, more than they hold: refused before anything is allocated for it."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, RLELossless

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io.read import read_volume
from boltzformer_monai.limits import MEMORY_VARIABLE
from tests.io.conftest import SeriesWriter

_STACK = np.arange(3 * 6 * 7, dtype=np.uint16).reshape(3, 6, 7)
_DEFLATED = "1.2.840.10008.1.2.1.99"


def _deflated(path: Path, more: bytes) -> None:
    """Turn an explicit little endian file into a deflated one, with more bytes after its last element."""
    content = path.read_bytes()
    start = 144 + struct.unpack_from("<I", content, 140)[0]
    preface = content[132:start].replace(b"1.2.840.10008.1.2.1\0", _DEFLATED.encode())
    preface = preface.replace(b"UI\x14\0" + _DEFLATED.encode(), b"UI\x16\0" + _DEFLATED.encode())
    head = b"\x02\0\0\0UL\x04\0" + struct.pack("<I", len(preface) - 12) + preface[12:]
    packer = zlib.compressobj(9, wbits=-15)
    packed = packer.compress(content[start:]) + packer.compress(more) + packer.flush()
    path.write_bytes(content[:132] + head + packed)


def test_a_deflated_series_is_read(write_series: SeriesWriter) -> None:
    paths = write_series(_STACK)
    for path in paths:
        _deflated(path, b"")
    np.testing.assert_array_equal(read_volume(paths[0].parent).array, _STACK.transpose(2, 1, 0) - 1024.0)


def test_a_deflated_file_that_unfolds_into_too_much_is_refused(
    write_series: SeriesWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MEMORY_VARIABLE, "0.016")
    paths = write_series(_STACK)
    padding = 9_000_000
    _deflated(paths[1], b"\xfc\xff\xfc\xffOB\0\0" + struct.pack("<I", padding) + bytes(padding))
    assert paths[1].stat().st_size < 20_000
    with pytest.raises(VolumeError, match="inflates to more than 0.008 GB") as caught:
        read_volume(paths[0].parent)
    assert caught.value.reason == "too large"


def _claiming(rows: int, columns: int, data: bytes, syntax: str) -> Any:
    def change(dataset: Any, index: int) -> None:
        dataset.Rows, dataset.Columns = rows, columns
        dataset.PixelData = encapsulate([data])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax

    return change


def test_slices_that_claim_more_than_the_memory_are_refused(write_series: SeriesWriter) -> None:
    rle = struct.pack("<16I", 2, 64, 66, *[0] * 13) + b"\x81\0" * 200
    folder = write_series(_STACK, change=_claiming(65535, 65535, rle, RLELossless))[0].parent
    with pytest.raises(VolumeError, match=r"reading it would take \d+ GB of memory .* --memory-gb") as caught:
        read_volume(folder)
    assert caught.value.reason == "too large"


@pytest.mark.parametrize(
    ("syntax", "pixels"), [(RLELossless, 64 * 200), (JPEGLosslessSV1, 8 * 200), ("1.2.840.10008.1.2.4.51", 256 * 200)]
)
def test_slices_that_claim_more_than_their_bytes_can_hold_are_refused(
    write_series: SeriesWriter, syntax: str, pixels: int
) -> None:
    folder = write_series(_STACK, change=_claiming(pixels // 32, 40, b"\0" * 180, syntax))[0].parent
    with pytest.raises(VolumeError, match=r"claims \d+ pixels, more than its \d+ compressed bytes can hold") as caught:
        read_volume(folder)
    assert caught.value.reason == "truncated"


_J2K = b"\xff\x4f\xff\x51\0\x29\0\0" + struct.pack(">4I", 60_000, 60_000, 0, 0) + b"\0" * 30
_JPEG = b"\xff\xd8\xff\xe0\0\x04ab\xff\xc3\0\x0b\x10" + struct.pack(">2H", 60_000, 60_000) + b"\x01\x01\x11\0" * 9


@pytest.mark.parametrize(("syntax", "data"), [(JPEG2000Lossless, _J2K), (JPEGLosslessSV1, _JPEG)])
def test_a_compressed_picture_of_another_size_than_the_header_says_is_refused(
    write_series: SeriesWriter, syntax: str, data: bytes
) -> None:
    folder = write_series(_STACK, change=_claiming(6, 7, data, syntax))[0].parent
    with pytest.raises(VolumeError, match="compressed image of 60000x60000 pixels, its header says 7x6"):
        read_volume(folder)


def test_pipes_among_the_slices_are_no_slices(write_series: SeriesWriter) -> None:
    folder = write_series(_STACK)[0].parent
    os.mkfifo(folder / "pipe")
    assert read_volume(folder).shape == (7, 6, 3)
    with pytest.raises(VolumeError, match="pipe"):
        read_volume(folder / "pipe")


def test_a_header_of_more_items_than_the_memory_holds_is_refused(
    write_series: SeriesWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_series(_STACK)
    content = paths[1].read_bytes()
    items = b"\x08\0\x15\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\0\0\0\0" * 20_000 + b"\xfe\xff\xdd\xe0\0\0\0\0"
    place = content.index(b"\x08\0\x60\0CS")  # Modality, the next element
    paths[1].write_bytes(content[:place] + items + content[place:])
    monkeypatch.setenv(MEMORY_VARIABLE, "0.016")
    with pytest.raises(VolumeError, match="its header has more elements than fit into the memory") as caught:
        read_volume(paths[0].parent)
    assert caught.value.reason == "too large"
