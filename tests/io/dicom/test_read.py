"""DICOM folders: read exactly what is one volume, refuse the rest in one line that names the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.errors import REASONS, VolumeError
from boltzformer_monai.io import read_volume
from boltzformer_monai.io.dicom.read import read_dicom_series
from boltzformer_monai.io.dicom.series import choose_series

SeriesWriter = Callable[..., list[Path]]
STACK = np.arange(5 * 4 * 3, dtype=np.uint16).reshape(5, 4, 3) * 7


def refusal(folder: Path, *, reason: str, **settings: Any) -> str:
    """Return the one-line message with which a folder is refused for this reason."""
    with pytest.raises(VolumeError) as caught:
        read_volume(folder, **settings)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert caught.value.reason == reason
    assert reason in REASONS
    return message


def test_series_is_ordered_by_position_and_rescaled(write_series: SeriesWriter) -> None:
    folder = write_series(STACK)[0].parent
    volume = read_volume(folder)
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, STACK.transpose(2, 1, 0).astype(np.float32) - 1024)
    assert volume.modality == "CT"
    assert volume.axis_codes == ("L", "P", "S")
    assert volume.spacing == pytest.approx((0.6, 0.8, 2.5))
    # DICOM positions are LPS, the affine is RAS
    assert np.allclose(volume.affine @ (0, 0, 0, 1), (100, 50, 10, 1))
    assert np.allclose(volume.affine @ (2, 3, 4, 1), (100 - 1.2, 50 - 2.4, 20, 1))


def test_each_slice_has_its_own_slope(write_series: SeriesWriter) -> None:
    def change(dataset: Any, index: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = f"{0.5 + index}", f"{-index}"

    volume = read_volume(write_series(STACK, modality="MR", change=change)[0].parent)
    expected = [plane * (0.5 + index) - index for index, plane in enumerate(STACK)]
    assert np.array_equal(volume.array, np.stack(expected).transpose(2, 1, 0).astype(np.float32))
    assert volume.modality == "MR"


def test_sagittal_series_and_gantry_tilt(write_series: SeriesWriter) -> None:
    folder = write_series(STACK, cosines=(0, 1, 0, 0, 0, -1), step=(-3, 0, 0), modality="MR")[0].parent
    volume = read_volume(folder)
    assert volume.axis_codes == ("P", "I", "R")
    assert np.array_equal(volume.array[:, :, 1], STACK[1].T.astype(np.float32) - 1024)
    folder = write_series(STACK, folder=folder.parent / "tilt", step=(0, 0.5, 2.5))[0].parent
    assert "--resample-tilt" in refusal(folder, reason="gantry tilt")
    tilted = read_volume(folder, tilt="keep")
    assert np.allclose(tilted.affine @ (0, 0, 4, 1), (100, 50 - 2, 20, 1))


def test_files_that_are_not_slices_are_skipped(write_series: SeriesWriter) -> None:
    import pydicom

    paths = write_series(STACK)
    folder = paths[0].parent
    (folder / "notes.txt").write_text("not DICOM")
    (folder / "empty").write_bytes(b"")
    (folder / "._hidden.dcm").write_bytes(b"resource fork")
    report = pydicom.dcmread(paths[0])
    for name in ("Rows", "Columns", "PixelData"):
        delattr(report, name)
    report.SOPClassUID, report.Modality, report.SeriesInstanceUID = "1.2.840.10008.5.1.4.1.1.88.11", "SR", "1.2.3.8"
    report.save_as(folder / "report.dcm", write_like_original=False)
    (folder / "deeper").mkdir()
    paths[4].rename(folder / "deeper" / "without_suffix")
    assert read_volume(folder).shape == (3, 4, 5)


def test_several_series_need_a_choice(write_series: SeriesWriter) -> None:
    folder = write_series(STACK)[0].parent
    write_series(STACK[:2] + 100, uid="1.2.3.4.2")
    message = refusal(folder, reason="several series")
    assert "1.2.3.4.1 (CT, 5 slices of 3x4), 1.2.3.4.2 (CT, 2 slices of 3x4)" in message
    assert "--series UID" in message
    assert read_volume(folder, series="1.2.3.4.2").shape == (3, 4, 2)
    assert "1.2.3.4.1" in refusal(folder, reason="missing", series="1.2.3.4.7")
    for number in range(3, 16):
        write_series(STACK[:1], uid=f"1.2.3.4.{number}")
    assert refusal(folder, reason="several series").endswith("and 5 more")


def test_missing_slice_names_its_neighbours(write_series: SeriesWriter) -> None:
    paths = write_series(STACK)
    paths[3].unlink()
    message = refusal(paths[0].parent, reason="uneven spacing")
    assert paths[2].name in message
    assert paths[4].name in message
    assert "5 mm" in message


@pytest.mark.parametrize(
    ("gaps", "said"),
    [
        ((5, 5, 10, 5), "perhaps a slice is missing (a guess"),
        ((5, 15, 10, 5, 5, 5), "perhaps 3 slices are missing (a guess"),
        ((5, 5, 5, 8, 8), "2 of 5 gaps differ, and not by whole steps, so perhaps no slice is missing (a guess)"),
    ],
)
@pytest.mark.parametrize("lean", [0.0, 0.25])
def test_uneven_slices_are_told_by_what_was_measured(
    write_series: SeriesWriter, gaps: tuple[float, ...], said: str, lean: float
) -> None:
    places = np.cumsum((0, *gaps))

    def change(dataset: Any, index: int) -> None:
        dataset.ImagePositionPatient = [0, lean * places[index], places[index]]

    stack = np.zeros((len(places), 4, 4), np.uint16)
    text = refusal(write_series(stack, change=change)[0].parent, reason="uneven spacing")
    assert said in text
    assert f"{max(gaps)} mm between" in text
    assert ("stacked 14 degrees off their normal (gantry tilt)" in text) == bool(lean)


def test_an_average_never_hides_uneven_gaps(write_series: SeriesWriter) -> None:
    def change(dataset: Any, index: int) -> None:
        dataset.ImagePositionPatient = [0, 0, (0, 2.5, 5.0, 7.46, 10.0)[index]]

    assert "7.46" not in refusal(write_series(STACK, change=change)[0].parent, reason="uneven spacing")


def test_positions_with_two_decimals_are_even_enough(write_series: SeriesWriter) -> None:
    def change(dataset: Any, index: int) -> None:  # 0.33 and 0.34 mm by turns
        dataset.ImagePositionPatient = [0, 0, f"{index / 3:.2f}"]

    volume = read_volume(write_series(np.zeros((10, 2, 2)), change=change)[0].parent)
    assert volume.spacing[2] == pytest.approx(1 / 3)


def test_slow_drift_is_refused(write_series: SeriesWriter) -> None:
    def change(dataset: Any, index: int) -> None:  # each gap within 1 %, the middle slice 0.3 mm from its place
        dataset.ImagePositionPatient = [0, 0, index * 2.5 + min(index, 60 - index) * 0.02]

    folder = write_series(np.zeros((61, 2, 2)), change=change)[0].parent
    assert "off the line" in refusal(folder, reason="off the line")


def test_skewed_rows_and_columns_are_refused(write_series: SeriesWriter) -> None:
    folder = write_series(STACK, cosines=(1, 0, 0, 0.1, 1, 0))[0].parent
    assert "right angle" in refusal(folder, reason="orientation")


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom on the values that are cut off
def test_truncated_last_file_is_never_skipped(write_series: SeriesWriter) -> None:
    paths = write_series(STACK)
    whole = paths[-1].read_bytes()
    for size in range(0, len(whole), 7):
        paths[-1].write_bytes(whole[:size])
        with pytest.raises(VolumeError, match=paths[-1].name) as caught:
            read_volume(paths[0].parent)
        assert caught.value.reason in ("truncated", "damaged", "no geometry", "no rescale"), size


def test_single_file_single_slice_and_empty_folder(write_series: SeriesWriter, tmp_path: Path) -> None:
    paths = write_series(STACK[:1])
    assert "pass the folder" in refusal(paths[0], reason="dimensions")
    volume = read_volume(paths[0].parent)  # SliceThickness gives the third spacing
    assert volume.shape == (3, 4, 1)
    assert volume.spacing[2] == pytest.approx(2.5)

    def change(dataset: Any, index: int) -> None:
        del dataset.SliceThickness

    bare = write_series(STACK[:1], folder=tmp_path / "bare", change=change)
    assert "SliceThickness" in refusal(bare[0].parent, reason="no geometry")
    (tmp_path / "nothing").mkdir()
    assert "no DICOM slices" in refusal(tmp_path / "nothing", reason="missing")
    with pytest.raises(VolumeError, match="no such folder"):
        read_dicom_series(tmp_path / "nowhere")


def test_modality_cannot_contradict_the_header(write_series: SeriesWriter) -> None:
    folder = write_series(STACK)[0].parent
    assert read_volume(folder, modality="ct").modality == "CT"
    assert "headers say CT" in refusal(folder, reason="modality", modality="MR")


def test_patient_id_is_read_apart(write_series: SeriesWriter) -> None:
    folder = write_series(STACK)[0].parent
    assert choose_series(folder, None)[0].patient_id == "phantom-1"
    volume = read_volume(folder)
    assert "phantom-1" not in repr(volume)
    assert volume.frame_of_reference == "1.2.3.9"


def test_floating_point_pixels(write_series: SeriesWriter) -> None:
    values = np.linspace(-3, 5, STACK.size, dtype=np.float32).reshape(STACK.shape)

    def change(dataset: Any, index: int) -> None:
        del dataset.PixelData
        if index % 2:
            dataset.BitsAllocated, dataset.FloatPixelData = 32, values[index].tobytes()
        else:
            dataset.BitsAllocated, dataset.DoubleFloatPixelData = 64, values[index].astype("<f8").tobytes()
        dataset.RescaleIntercept = 1

    volume = read_volume(write_series(STACK, change=change)[0].parent)
    assert np.allclose(volume.array, values.transpose(2, 1, 0) + 1, atol=1e-6)


def test_files_of_a_series_that_are_known(write_series: SeriesWriter) -> None:
    paths = write_series(STACK)
    folder = paths[0].parent
    other = write_series(STACK[:3], folder=folder, uid="1.2.3.4.2", modality="MR")
    (folder / "damaged.dcm").write_bytes(b"")
    assert "damaged.dcm" in refusal(folder, reason="truncated", series="1.2.3.4.1")
    for series in (None, "1.2.3.4.1"):
        volume = read_volume(folder, series=series, files=tuple(paths))
        assert np.array_equal(volume.array, STACK.transpose(2, 1, 0).astype(np.float32) - 1024)
    assert read_volume(folder, files=other[::-1]).modality == "MR"
    # A slice that is missing among them, or is none of the series, is not overlooked.
    assert paths[2].name not in refusal(folder, reason="uneven spacing", files=[*paths[:2], *paths[3:]])
    assert "holds 2 series" in refusal(folder, reason="several series", files=paths + other)
    assert other[-1].name in refusal(folder, reason="not an image", files=[*paths, other[-1]], series="1.2.3.4.1")
    (folder / "note.txt").write_text("x")
    assert "note.txt" in refusal(folder, reason="not an image", files=[*paths, folder / "note.txt"])
    gone = folder / "gone.dcm"
    assert "gone.dcm" in refusal(folder, reason="missing", files=[*paths, gone])


@pytest.mark.parametrize("name", ["RescaleSlope", "RescaleIntercept"])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_an_unusable_rescale_is_refused_whatever_the_modality(
    write_series: SeriesWriter, name: str, modality: str
) -> None:
    def change(dataset: Any, index: int) -> None:
        if index == 2:
            setattr(dataset, name, ["1", "2"])

    paths = write_series(STACK, modality=modality, change=change)
    message = refusal(paths[0].parent, reason="no rescale")
    assert name in message
    assert paths[2].name in message
