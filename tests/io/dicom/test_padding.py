"""Padding that no scanner measured, and values that viewers show inverted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.data.windows import MRPercentiles
from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io import read_volume
from tests.io import dicom_codecs as codecs
from tests.io.conftest import SeriesWriter

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
ROUND = np.hypot(*(np.indices((20, 20)) - 9.5)) < 9  # the field of view


def kinds(volume: Any) -> dict[str, str]:
    return {caveat.kind: caveat.text for caveat in volume.caveats}


def write(
    write_series: SeriesWriter,
    stack: np.ndarray,
    padding: int | None,
    *,
    signed: bool = False,
    vr: str | None = None,
    limit: int | None = None,
    syntax: str = EXPLICIT,
    bits: int = 16,
    intercept: int = 0,
    raw: np.ndarray | None = None,
    photometric: str = "MONOCHROME2",
    **more: Any,
) -> Path:
    def change(dataset: Any, index: int) -> None:
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, int(signed)
        cells = stack[index].astype(np.int64) & 0xFFFF if raw is None else raw[index]
        dataset.is_implicit_VR = syntax == IMPLICIT
        codecs.store_cells(dataset, cells.astype(np.uint16), syntax)
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, intercept
        dataset.PhotometricInterpretation = photometric
        for tag, value in ((0x00280120, padding), (0x00280121, limit)):
            if value is not None:
                dataset.add_new(tag, vr or ("SS" if signed else "US"), value)

    return write_series(stack, change=change, **more)[0].parent


def measured(low: int, high: int, slices: int = 4) -> np.ndarray:
    """Return values of which the field of view holds every one from low to high."""
    stack = np.random.default_rng(0).integers(low, high + 1, (slices, 20, 20))
    stack[0, 10, 8:10] = low, high
    return stack


def test_high_padding_does_not_darken_an_mr(write_series: SeriesWriter) -> None:
    stack = np.where(ROUND, measured(5, 900), 65535)
    volume = read_volume(write(write_series, stack, 65535, modality="MR"))
    assert volume.array.max() == 900
    assert (volume.array[~ROUND.T] == 5).all()
    assert np.array_equal(volume.array[ROUND.T], stack.transpose(2, 1, 0)[ROUND.T])
    assert MRPercentiles().apply(volume.array)[ROUND.T].mean() > 100  # and not 0 as if 65535 were the white of it
    assert f"{4 * np.count_nonzero(~ROUND)} voxels" in kinds(volume)["padding"]


@pytest.mark.parametrize(
    ("padding", "vr", "syntax"),
    [(-2000, "SS", EXPLICIT), (63536, "US", EXPLICIT), (63536, "US", IMPLICIT), (-2000, "SS", codecs.BIG_ENDIAN)],
)
def test_padding_of_a_signed_ct_by_either_vr(write_series: SeriesWriter, padding: int, vr: str, syntax: str) -> None:
    stack = np.where(ROUND, measured(-1000, 1500), -2000)
    folder = write(write_series, stack, padding, signed=True, vr=vr, syntax=syntax, intercept=-24)
    assert read_volume(folder).array.min() == -1024
    assert "padding" in kinds(read_volume(folder))


def test_padding_whose_top_the_header_cuts_off(write_series: SeriesWriter) -> None:
    stack = measured(0, 4000)
    stack[:, 10, 10] = 2096  # the lower 12 bits of -2000
    raw = np.where(ROUND, stack, 63536)
    volume = read_volume(write(write_series, stack, 63536, bits=12, intercept=-1024, raw=raw))
    assert (volume.array[~ROUND.T] == -1024).all()
    assert (volume.array[10, 10] == 2096 - 1024).all()
    assert set(kinds(volume)) == {"padding"}


def test_a_range_of_padding(write_series: SeriesWriter) -> None:
    stack = np.where(ROUND, measured(10, 900), np.arange(3000, 3020))
    for limits in ((3000, 3019), (3019, 3000)):
        volume = read_volume(write(write_series, stack, limits[0], limit=limits[1], modality="MR"))
        assert (volume.array[~ROUND.T] == 10).all()
        assert volume.array.max() == 900


def test_a_padding_value_that_tissue_takes_too(write_series: SeriesWriter) -> None:
    stack = measured(-900, 900)
    stack[stack == 0] = 1
    stack[:, 9:11, 9:11] = 0  # water, in the middle
    stack = np.where(ROUND, stack, 0)
    volume = read_volume(write(write_series, stack, 0, signed=True))
    assert (volume.array[9:11, 9:11] == 0).all()
    assert (volume.array[~ROUND.T] == -900).all()
    assert "16 voxels" in kinds(volume)["padding value in tissue"]
    assert f"{4 * np.count_nonzero(~ROUND)} voxels" in kinds(volume)["padding"]


def test_tilt_does_not_mix_padding_into_tissue(write_series: SeriesWriter) -> None:
    stack = np.where(ROUND, np.full((4, 20, 20), 1064), 0)  # tissue of 40 HU, padding far below air
    stack[0, 10, 10] = 24  # air
    raw = np.where(ROUND, stack, 63536)
    folder = write(write_series, stack, -2000, signed=True, intercept=-1024, raw=raw, step=(0.0, 0.25, 2.5))
    volume = read_volume(folder, tilt="resample")
    assert volume.array.min() == -1000
    assert volume.array.max() == 40


def test_a_stated_padding_that_does_not_occur_changes_nothing(write_series: SeriesWriter) -> None:
    stack = measured(0, 900)
    volume = read_volume(write(write_series, stack, 4095, modality="MR"))
    assert np.array_equal(volume.array, stack.transpose(2, 1, 0))
    assert volume.caveats == ()


def test_nothing_but_padding_is_refused(write_series: SeriesWriter) -> None:
    with pytest.raises(VolumeError, match="no pixels but padding"):
        read_volume(write(write_series, np.zeros((3, 4, 4)), 0, modality="MR"))


@pytest.mark.parametrize("seed", range(8))
def test_random_padding_is_never_seen(write_series: SeriesWriter, tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for number in range(5):
        signed = bool(rng.integers(2))
        low, high = sorted(rng.integers(-2000 if signed else 0, 3000, 2).tolist())
        high += 2
        above = bool(rng.integers(2)) or low == 0
        padding = int(rng.integers(high + 1, 32767)) if above else int(rng.integers(-32768 if signed else 0, low))
        inside = rng.random((3, 8, 9)) < 0.7
        inside[0, 4, 4:6] = True
        values = rng.integers(low, high + 1, inside.shape)
        values[0, 4, 4:6] = low, high
        stack = np.where(inside, values, padding)
        modality, photometric = str(rng.choice(["CT", "MR"])), f"MONOCHROME{rng.integers(1, 3)}"
        folder = write(
            write_series, stack, padding, signed=signed, intercept=-1024, modality=modality, photometric=photometric,
            syntax=str(rng.choice([EXPLICIT, IMPLICIT, codecs.BIG_ENDIAN, codecs.RLE])),
            folder=tmp_path / str(number),
        )  # fmt: skip
        if (modality, photometric) == ("MR", "MONOCHROME1"):
            values = low + high - values
        expected = np.where(inside, values, low).transpose(2, 1, 0) - 1024
        volume = read_volume(folder)
        assert np.array_equal(volume.array, expected)
        assert ("padding" in kinds(volume)) == (not inside.all())
        assert ("inverted display" in kinds(volume)) == (photometric == "MONOCHROME1")


def inverted(write_series: SeriesWriter, modality: str, shapes: tuple[str, ...] = ("INVERSE",), **more: Any) -> Path:
    def change(dataset: Any, index: int) -> None:
        dataset.PhotometricInterpretation = "MONOCHROME1"
        dataset.PresentationLUTShape = shapes[index % len(shapes)]
        for name, value in more.items():
            setattr(dataset, name, value)

    stack = np.arange(48).reshape(3, 4, 4) * 10 + 100
    return write_series(stack, modality=modality, change=change)[0].parent


def test_an_mr_shown_inverted_is_turned_over(write_series: SeriesWriter) -> None:
    volume = read_volume(inverted(write_series, "MR"))
    shown = 100 + 570 - (np.arange(48).reshape(3, 4, 4) * 10 + 100) - 1024
    assert np.array_equal(volume.array, shown.transpose(2, 1, 0))
    assert "MONOCHROME1" in kinds(volume)["inverted display"]


@pytest.mark.parametrize("padding", [4095, 0])
def test_padding_of_an_mr_shown_inverted_is_dark(write_series: SeriesWriter, padding: int) -> None:
    tissue = measured(102, 163)
    stack = np.where(ROUND, tissue, padding)
    volume = read_volume(write(write_series, stack, padding, modality="MR", photometric="MONOCHROME1"))
    assert np.array_equal(volume.array.transpose(2, 1, 0), np.where(ROUND, 102 + 163 - tissue, 102))
    assert "lowest measured value, 102, of the scan turned over" in kinds(volume)["padding"]


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_that_only_one_slice_scales_into_tissue(write_series: SeriesWriter, photometric: str) -> None:
    stack = np.where(ROUND, measured(100, 1000), 4000)
    stack[:2, 8:10, 8:10] = 4000  # 4000 in one slice, 400 in the other: that may be tissue
    slopes = (1, 0.1, 1, 1)

    def change(dataset: Any, index: int) -> None:
        dataset.PhotometricInterpretation, dataset.PixelRepresentation = photometric, 0
        codecs.store_cells(dataset, stack[index].astype(np.uint16), EXPLICIT)
        dataset.RescaleSlope, dataset.RescaleIntercept = slopes[index], 0
        dataset.add_new(0x00280120, "US", 4000)

    volume = read_volume(write_series(stack, modality="MR", change=change)[0].parent)
    scaled = (stack * np.reshape(slopes, (4, 1, 1))).astype(np.float32)
    true = np.broadcast_to(ROUND, stack.shape).copy()
    true[0, 8:10, 8:10] = False
    low, high = scaled[true].min(), scaled[true].max()
    assert (high, scaled[1, 8, 8]) == (1000, 400)
    expected = np.where(true, low + high - scaled if photometric == "MONOCHROME1" else scaled, low)
    assert np.allclose(volume.array.transpose(2, 1, 0), expected, atol=1e-3)
    assert kinds(volume)["padding value in tissue"].startswith("4 voxels")


@pytest.mark.parametrize("shape", ["LIN OD", "lin od ", "SOMETHING"])
@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_a_shape_of_printers_says_nothing_of_inversion(write_series: SeriesWriter, modality: str, shape: str) -> None:
    plain, other = (read_volume(inverted(write_series, modality, (each,))) for each in ("INVERSE", shape))
    assert np.array_equal(other.array, plain.array)


def test_hounsfield_units_do_not_depend_on_the_display(write_series: SeriesWriter) -> None:
    volume = read_volume(inverted(write_series, "CT"))
    assert np.array_equal(volume.array, (np.arange(48).reshape(3, 4, 4) * 10 + 100 - 1024).transpose(2, 1, 0))
    assert "taken as they are" in kinds(volume)["inverted display"]


def test_contradictory_display_is_refused(write_series: SeriesWriter) -> None:
    with pytest.raises(VolumeError, match="contradict"):
        read_volume(inverted(write_series, "MR", ("IDENTITY",)))
    with pytest.raises(VolumeError, match="MONOCHROME2"):
        read_volume(mixed(write_series))


def mixed(write_series: SeriesWriter) -> Path:
    def change(dataset: Any, index: int) -> None:
        dataset.PhotometricInterpretation = f"MONOCHROME{1 + index % 2}"

    return write_series(np.zeros((3, 4, 4)), modality="MR", change=change)[0].parent
