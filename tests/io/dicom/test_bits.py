"""BitsStored, HighBit and PixelRepresentation decide what a pixel is, whatever decoder and transfer syntax."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io import Volume, read_volume
from boltzformer_monai.io.dicom.seg_reader import read_dicom_seg
from tests.io import dicom_codecs as codecs
from tests.io.conftest import FileWriter, SeriesWriter
from tests.io.dicom_objects import write_seg

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
PLAIN = (IMPLICIT, EXPLICIT, codecs.BIG_ENDIAN, codecs.DEFLATED, codecs.RLE)
HAS_JPEG_LS = importlib.util.find_spec("jpeg_ls") is not None
# An image of 4 x 4 pixels of 12 bits, 0, 250, …, 3750, as CharLS writes it.
JPEG_LS_RAMP = bytes.fromhex(
    "ffd8fff7000b0c0004000401011100ffda0008010100000000807301cc07300000001400747c80740000000141f07b9f27ce7b1ea7c0ffd9"
)


def set_bits(dataset: Any, allocated: int, stored: int, high: int, signed: int) -> None:
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, stored, high
    dataset.PixelRepresentation = signed


def random_slice(dataset: Any, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """Give a slice random pixels in a random layout and transfer syntax; returns them, and what was drawn."""
    images = [codecs.JPEG_LOSSLESS, codecs.JPEG_2000, *([codecs.JPEG_LS] if HAS_JPEG_LS else [])]
    syntax = str(rng.choice([*PLAIN, *images]))
    signed = int(rng.integers(2))
    allocated = int(rng.choice([8, 16] if syntax in images else [8, 16, 32]))
    stored = int(rng.integers(8 if syntax in images else 2, allocated + 1))
    high = stored - 1 if syntax in images or rng.random() < 0.5 else int(rng.integers(stored - 1, allocated))
    low = -(1 << (stored - 1)) if signed else 0
    values = rng.integers(low, low + (1 << stored), (dataset.Rows, dataset.Columns))
    junk = rng.integers(0, 1 << 32, values.shape)
    if syntax == codecs.JPEG_LS:  # whose encoder has no room for what cannot be compressed
        values[1:], junk[1:] = values[0, -1], junk[0, -1]
    drawn = f"{syntax}: {allocated} allocated, {stored} stored, high bit {high}, signed {signed}"
    set_bits(dataset, allocated, stored, high, signed)
    if syntax in PLAIN:
        if syntax == IMPLICIT:
            dataset.is_implicit_VR = True
        cells = codecs.cells_of(values, allocated=allocated, stored=stored, high=high, junk=junk)
        codecs.store_cells(dataset, cells, syntax)
        return values, drawn
    precision = int(rng.integers(stored, allocated + 1))  # some encoders keep all bits of the cell
    drawn += f", {precision} bits in the image"
    if syntax == codecs.JPEG_2000 and rng.random() < 0.5:
        half = 1 << (precision - 1)  # signed, whatever the header says
        wide = codecs.cells_of(values, allocated=32, stored=stored, high=high, junk=junk).astype(np.int64)
        inside = (wide + half) % (2 * half) - half
        codecs.store_image(dataset, [codecs.jpeg_2000(inside, precision, signed=True)], syntax)
        return values, drawn + ", signed there"
    cells = codecs.cells_of(values, allocated=16, stored=stored, high=high, junk=junk).astype(np.int64)
    cells &= (1 << precision) - 1
    if syntax == codecs.JPEG_2000:
        code = codecs.jpeg_2000(cells, precision, signed=False)
    else:
        code = (codecs.jpeg_lossless if syntax == codecs.JPEG_LOSSLESS else codecs.jpeg_ls)(cells, precision)
    codecs.store_image(dataset, [code], syntax)
    return values, drawn


@pytest.mark.parametrize("seed", range(10))
def test_random_layouts_give_the_values_that_were_stored(write_series: SeriesWriter, seed: int) -> None:
    rng = np.random.default_rng(seed)
    expected, drawn = [], []

    def change(dataset: Any, index: int) -> None:
        values, words = random_slice(dataset, rng)
        slope, intercept = float(rng.choice([1.0, 0.5, 2.25, -1.0])), int(rng.integers(-2000, 2000))
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        expected.append(values * slope + intercept)
        drawn.append(words)

    folder = write_series(np.zeros((50, 5, 7)), change=change)[0].parent
    read = read_volume(folder).array
    for index, values in enumerate(expected):
        assert np.array_equal(read[:, :, index], values.T.astype(np.float32)), drawn[index]


@pytest.mark.parametrize("syntax", [EXPLICIT, codecs.BIG_ENDIAN, codecs.RLE])
@pytest.mark.parametrize(("stored", "signed"), [(12, 0), (12, 1), (9, 1), (16, 1)])
def test_frames_of_one_file(write_enhanced: FileWriter, syntax: str, stored: int, signed: int) -> None:
    rng = np.random.default_rng(stored)
    low = -(1 << (stored - 1)) if signed else 0
    values = rng.integers(low, low + (1 << stored), (4, 3, 5))
    cells = codecs.cells_of(
        values, allocated=16, stored=stored, high=stored - 1, junk=rng.integers(0, 1 << 16, values.shape)
    )

    def change(dataset: Any) -> None:
        set_bits(dataset, 16, stored, stored - 1, signed)
        codecs.store_cells(dataset, cells, syntax)

    path = write_enhanced(values, np.arange(4)[:, None] * (0.0, 0.0, 2.0), change=change)
    assert np.array_equal(read_volume(path).array, values.transpose(2, 1, 0) - 1024)


def test_an_overlay_beside_the_pixel_is_no_tissue(write_series: SeriesWriter) -> None:
    import SimpleITK

    values = np.random.default_rng(0).integers(0, 4096, (3, 6, 6))

    def change(dataset: Any, index: int) -> None:
        set_bits(dataset, 16, 12, 11, 0)
        cells = codecs.cells_of(values[index], allocated=16, stored=12, high=11, junk=np.eye(6, dtype=int) << 12)
        codecs.store_cells(dataset, cells, EXPLICIT)
        for element, vr, value in ((0x100, "US", 16), (0x102, "US", 12), (0x10, "US", 6), (0x11, "US", 6)):
            dataset.add_new((0x6000, element), vr, value)

    files = write_series(values, change=change)
    read = read_volume(files[0].parent).array
    assert np.array_equal(read, values.transpose(2, 1, 0) - 1024)
    by_itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage([str(path) for path in files]))
    assert np.array_equal(read, by_itk.transpose(2, 1, 0))


def test_an_overlay_with_data_of_its_own_is_beside_the_pixels(write_series: SeriesWriter) -> None:
    def change(dataset: Any, index: int) -> None:
        dataset.add_new((0x6000, 0x100), "US", 1)
        dataset.add_new((0x6000, 0x102), "US", 0)
        dataset.add_new((0x6000, 0x3000), "OW", b"\xff" * 4)

    folder = write_series(np.full((3, 4, 4), 1000), change=change)[0].parent
    assert (read_volume(folder).array == 1000 - 1024).all()


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        ((16, 17, 16, 0), "BitsStored 17"),
        ((16, 0, 0, 0), "BitsStored 0"),
        ((16, 12, 16, 0), "HighBit 16"),
        ((16, 12, 10, 0), "HighBit 10"),
        ((16, 16, 15, 2), "PixelRepresentation 2"),
        ((12, 12, 11, 0), "12 bits allocated"),
        ((64, 64, 63, 0), "64 bits allocated"),
        ((16, None, 15, 0), "no BitsStored"),
        ((16, 16, 15, None), "no PixelRepresentation"),
    ],
)
def test_impossible_headers_are_refused(write_series: SeriesWriter, bits: tuple[Any, ...], words: str) -> None:
    def change(dataset: Any, index: int) -> None:
        names = ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
        dataset.PixelData = bytes(8 * 16)
        for name, value in zip(names, bits, strict=True):
            setattr(dataset, name, value)
            if value is None:
                delattr(dataset, name)

    folder = write_series(np.zeros((3, 4, 4)), change=change)[0].parent
    with pytest.raises(VolumeError, match=words):
        read_volume(folder)


def test_the_message_names_a_deflated_file(write_series: SeriesWriter) -> None:
    def change(dataset: Any, index: int) -> None:
        set_bits(dataset, 16, 17, 16, 0)
        codecs.store_cells(dataset, np.zeros((4, 4), np.uint16), codecs.DEFLATED)

    path = write_series(np.zeros((1, 4, 4)), change=change)[0]
    with pytest.raises(VolumeError, match=path.name):
        read_volume(path.parent)


def test_more_pixels_than_the_header_says(write_series: SeriesWriter) -> None:
    def change(dataset: Any, index: int) -> None:
        dataset.PixelData += bytes(extra)

    extra = 2  # some writers fill up a word
    assert read_volume(write_series(np.ones((3, 20, 18)), change=change)[0].parent).shape == (18, 20, 3)
    extra = 2 * 20  # a column more than the header says would shear the picture
    with pytest.raises(VolumeError, match="more pixels than the 1 x 20 x 18 of its header"):
        read_volume(write_series(np.ones((3, 20, 18)), change=change)[0].parent)


def test_an_overlay_inside_the_pixel_is_refused(write_series: SeriesWriter) -> None:
    def change(dataset: Any, index: int) -> None:
        dataset.add_new((0x6002, 0x100), "US", 16)
        dataset.add_new((0x6002, 0x102), "US", 13)

    folder = write_series(np.zeros((3, 4, 4)), change=change)[0].parent
    with pytest.raises(VolumeError, match="overlay lies in bit 13"):
        read_volume(folder)


@pytest.mark.parametrize(
    ("code", "syntax", "bits", "words"),
    [
        # The sign bit of the image is not the header's: is 4095 that, or -1?
        (codecs.jpeg_2000(np.full((4, 4), 4095), 12, signed=False), "90", (16, 16, 15, 1), "12 unsigned bits"),
        (codecs.jpeg_2000(np.full((4, 4), -1), 12, signed=True), "90", (16, 16, 15, 0), "12 signed bits"),
        (codecs.jpeg_lossless(np.full((4, 4), 4095), 12), "70", (16, 16, 15, 1), "12 unsigned bits"),
        # As many pixels, in other rows.
        (codecs.jpeg_2000(np.zeros((2, 8)), 12, signed=False), "90", (16, 12, 11, 0), "image of 8x2"),
        (codecs.jpeg_lossless(np.zeros((8, 2)), 12), "70", (16, 12, 11, 0), "image of 2x8"),
        (codecs.jpeg_lossless(np.zeros((5, 4)), 12), "70", (16, 12, 11, 0), "image of 4x5"),
        # What lies beside the pixel does not survive lossy compression.
        (codecs.jpeg_2000(np.full((4, 4), 4096), 16, signed=False), "91", (16, 12, 11, 0), "16 unsigned bits"),
        (codecs.jpeg_2000(np.full((4, 4), -1), 16, signed=True), "91", (16, 12, 11, 0), "16 signed bits"),
        (codecs.jpeg_2000(np.zeros((4, 4)), 12, signed=False), "90", (16, 12, 12, 0), "HighBit 12"),
        (codecs.jpeg_2000(np.zeros((4, 4)), 12, signed=False), "90", (8, 8, 7, 0), "BitsAllocated 8"),
    ],
)
def test_compressed_images_that_contradict_their_header(
    write_series: SeriesWriter, code: bytes, syntax: str, bits: tuple[int, ...], words: str
) -> None:
    def change(dataset: Any, index: int) -> None:
        set_bits(dataset, *bits)
        codecs.store_image(dataset, [code], f"1.2.840.10008.1.2.4.{syntax}")

    folder = write_series(np.zeros((3, 4, 4)), change=change)[0].parent
    with pytest.raises(VolumeError, match=words):
        read_volume(folder)


def test_fewer_bits_in_the_image_than_in_the_header(write_series: SeriesWriter) -> None:
    values = np.arange(16).reshape(4, 4) * 250  # below 4096

    def change(dataset: Any, index: int) -> None:
        set_bits(dataset, 16, 16, 15, index % 2)  # signed too, where no value reaches the sign of 13 bits
        code = codecs.jpeg_2000(values, 13, signed=False) if index < 2 else codecs.jpeg_lossless(values, 13)
        codecs.store_image(dataset, [code], codecs.JPEG_2000 if index < 2 else codecs.JPEG_LOSSLESS)

    volume = read_volume(write_series(np.zeros((4, 4, 4)), change=change)[0].parent)
    assert all(np.array_equal(volume.array[:, :, index], values.T - 1024) for index in range(4))


@pytest.mark.parametrize(("stored", "signed", "last"), [(12, 0, 3750), (12, 1, 3750 - 4096), (16, 0, 3750)])
def test_jpeg_ls(write_series: SeriesWriter, stored: int, signed: int, last: int) -> None:
    def change(dataset: Any, index: int) -> None:
        set_bits(dataset, 16, stored, stored - 1, signed)
        codecs.store_image(dataset, [JPEG_LS_RAMP], codecs.JPEG_LS)

    read = read_volume(write_series(np.zeros((3, 4, 4)), change=change)[0].parent).array
    assert read[1, 0, 0] == 250 - 1024
    assert (read[3, 3] == last - 1024).all()


def test_frames_of_different_precision_are_refused(write_enhanced: FileWriter) -> None:
    codes = [codecs.jpeg_2000(np.zeros((4, 4)), precision, signed=False) for precision in (12, 13)]

    def change(dataset: Any) -> None:
        set_bits(dataset, 16, 12, 11, 0)
        codecs.store_image(dataset, codes, codecs.JPEG_2000)

    path = write_enhanced(np.zeros((2, 4, 4)), np.arange(2)[:, None] * (0.0, 0.0, 2.0), change=change)
    with pytest.raises(VolumeError, match="different numbers of bits"):
        read_volume(path)


@pytest.mark.parametrize("syntax", [EXPLICIT, codecs.BIG_ENDIAN, codecs.RLE])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_segment_numbers_of_a_label_map_seg(tmp_path: Path, syntax: str, dtype: type) -> None:
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    numbers = np.random.default_rng(0).integers(0, 4, (6, 4, 3)).astype(dtype)
    stored = 2

    def change(dataset: Any) -> None:
        allocated = 8 * numbers.dtype.itemsize
        set_bits(dataset, allocated, stored, stored - 1, 0)
        frames = numbers.transpose(2, 1, 0)
        cells = codecs.cells_of(frames, allocated=allocated, stored=stored, high=stored - 1, junk=0b11010100)
        codecs.store_cells(dataset, cells, syntax)

    path = write_seg(tmp_path / "map.dcm", {0: numbers}, affine, kind="LABELMAP", change=change)
    read = read_dicom_seg(path, Volume(np.zeros((6, 4, 3), np.float32), affine))
    assert np.array_equal(read.array, numbers)
