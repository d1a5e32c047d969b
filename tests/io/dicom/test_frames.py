"""Enhanced multi-frame files: every frame goes to its own place in the patient, with its own scale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io import read_volume
from boltzformer_monai.io.dicom import pixels as dicom_pixels
from boltzformer_monai.io.dicom.frames import FrameGeometry, frame_geometries
from boltzformer_monai.io.dicom.series import choose_series

FileWriter = Callable[..., Path]
STACK = np.arange(5 * 4 * 3, dtype=np.uint16).reshape(5, 4, 3) * 7
SHUFFLED = [3, 0, 4, 1, 2]  # the place of each stored frame
_TURN = np.linalg.qr(np.array([[5.0, 2, 1], [-1, 4, 2], [0.5, -2, 6]]))[0]
OBLIQUE = _TURN * np.sign(np.linalg.det(_TURN))
ORIGIN = np.array([-100.5, 20.25, 33.125])


def refusal(path: Path, reason: str) -> str:
    """Return the one-line message with which a file is refused for this reason."""
    with pytest.raises(VolumeError) as caught:
        read_volume(path)
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)
    return str(caught.value)


def oblique(write_enhanced: FileWriter, **settings: Any) -> Path:
    """Write an oblique stack whose frames are stored in a shuffled order, 1.7 mm apart."""
    positions = ORIGIN + np.array(SHUFFLED)[:, None] * 1.7 * OBLIQUE[:, 2]
    return write_enhanced(STACK, positions, cosines=(*OBLIQUE[:, 0], *OBLIQUE[:, 1]), **settings)


def test_frames_go_where_they_say(write_enhanced: FileWriter) -> None:
    slopes = (0.5, 1.5, 2.5, 3.5, 4.5)
    path = oblique(write_enhanced, slopes=slopes)
    for place in (path, path.parent):
        volume = read_volume(place)
        assert volume.shape == (3, 4, 5)
        assert volume.array.dtype == np.float32
        assert (volume.modality, volume.frame_of_reference) == ("MR", "1.2.3.9")
        assert volume.spacing == pytest.approx((0.6, 0.8, 1.7))
        for stored, layer in enumerate(SHUFFLED):
            expected = STACK[stored].T.astype(np.float64) * slopes[stored] - stored
            assert np.array_equal(volume.array[:, :, layer], expected.astype(np.float32))
        for index in np.ndindex(volume.shape):
            lps = ORIGIN + OBLIQUE @ (np.array(index) * (0.6, 0.8, 1.7))
            assert np.allclose((volume.affine @ (*index, 1))[:3], lps * (-1, -1, 1), atol=1e-6)


def test_a_second_reader_sees_the_same(write_enhanced: FileWriter) -> None:
    import SimpleITK

    positions = ORIGIN + np.arange(5)[:, None] * 1.7 * OBLIQUE[:, 2]
    path = write_enhanced(STACK, positions, cosines=(*OBLIQUE[:, 0], *OBLIQUE[:, 1]))
    volume, image = read_volume(path), SimpleITK.ReadImage(str(path))
    for index in ((0, 0, 0), (2, 3, 4), (1, 2, 3)):
        lps = np.array(image.TransformIndexToPhysicalPoint(index))
        assert np.allclose((volume.affine @ (*index, 1))[:3], lps * (-1, -1, 1), atol=1e-4)
        assert image.GetPixel(*index) == volume.array[index]


def test_a_frame_outranks_what_is_shared(write_enhanced: FileWriter) -> None:
    from pydicom import Dataset, Sequence, dcmread

    def change(dataset: Any) -> None:
        measures = Dataset()
        measures.PixelSpacing, measures.SpacingBetweenSlices, measures.SliceThickness = [1.5, 1.25], "3", "4"
        dataset.PerFrameFunctionalGroupsSequence[1].PixelMeasuresSequence = Sequence([measures])

    path = write_enhanced(STACK[:2], np.eye(3)[:2], change=change)
    shared, own = frame_geometries(dcmread(path))
    scale = {"slope": 1.0, "intercept": -1024.0, "rescaled": True, "rescale_type": "US"}
    cosines = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    assert shared == FrameGeometry((1.0, 0.0, 0.0), cosines, (0.8, 0.6), 2.5, **scale)
    assert own == FrameGeometry((0.0, 1.0, 0.0), cosines, (1.5, 1.25), 3.0, **scale)
    assert "pixel spacings" in refusal(path, "pixel spacing")


def test_a_file_is_decoded_once(write_enhanced: FileWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    decode = dicom_pixels._decode_file
    monkeypatch.setattr(dicom_pixels, "_decode_file", lambda header: calls.append(header.path) or decode(header))
    path = oblique(write_enhanced)
    assert read_volume(path).shape[2] == 5
    assert calls == [path]


def test_one_stack_in_two_files(write_enhanced: FileWriter, tmp_path: Path) -> None:
    positions = np.arange(5)[:, None] * (0.0, 0.0, 2.0)
    write_enhanced(STACK[3:], positions[3:], path=tmp_path / "parts" / "a.dcm", number=2)
    write_enhanced(STACK[:3], positions[:3], path=tmp_path / "parts" / "b.dcm")
    assert np.array_equal(read_volume(tmp_path / "parts").array, STACK.transpose(2, 1, 0).astype(np.float32) - 1024)


def test_time_points_at_one_place_are_refused(write_enhanced: FileWriter, tmp_path: Path) -> None:
    positions = np.arange(5)[:, None] * (0.0, 0.0, 2.0)
    twice = write_enhanced(np.concatenate([STACK, STACK]), np.concatenate([positions, positions]))
    message = refusal(twice, "same position")
    assert "enhanced.dcm frame 1 and enhanced.dcm frame 6" in message
    for name in ("a", "b"):
        write_enhanced(STACK, positions, path=tmp_path / "two" / f"{name}.dcm")
    assert "pass one of its files" in refusal(tmp_path / "two", "same position")
    assert read_volume(tmp_path / "two" / "a.dcm").shape == (3, 4, 5)


def without_place(dataset: Any) -> None:
    del dataset.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence


def without_groups(dataset: Any) -> None:
    del dataset.PerFrameFunctionalGroupsSequence
    del dataset.SharedFunctionalGroupsSequence


def without_per_frame_groups(dataset: Any) -> None:
    del dataset.PerFrameFunctionalGroupsSequence


def with_a_lost_item(dataset: Any) -> None:
    dataset.PerFrameFunctionalGroupsSequence.pop()


def with_too_many_frames(dataset: Any) -> None:
    dataset.NumberOfFrames = 2_000_000_000


def with_a_turned_frame(dataset: Any) -> None:
    from pydicom import Dataset, Sequence

    turn = Dataset()
    turn.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    dataset.PerFrameFunctionalGroupsSequence[4].PlaneOrientationSequence = Sequence([turn])


def with_a_missing_frame(dataset: Any) -> None:
    dataset.PerFrameFunctionalGroupsSequence[4].PlanePositionSequence[0].ImagePositionPatient = [0, 0, 99]


def with_a_zero_slope(dataset: Any) -> None:
    dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0].RescaleSlope = 0


def with_short_pixels(dataset: Any) -> None:
    dataset.PixelData = dataset.PixelData[:-24]


@pytest.mark.parametrize(
    ("spoil", "words", "reason"),
    [
        (without_place, "frame 3 lacks a usable ImagePositionPatient", "no geometry"),
        (without_groups, "multi-frame object (5 frames)", "no geometry"),
        (without_per_frame_groups, "5 frames but the places of 0", "damaged"),
        (with_a_lost_item, "5 frames but the places of 4", "damaged"),
        (with_too_many_frames, "2000000000 frames", "damaged"),
        (with_a_turned_frame, "enhanced.dcm frame 5 have different orientations", "orientation"),
        (with_a_missing_frame, "enhanced.dcm frame 5", "uneven spacing"),
        (with_a_zero_slope, "RescaleSlope '0", "no rescale"),
        (with_short_pixels, "truncated", "truncated"),
    ],
)
def test_a_spoilt_file_is_refused(
    write_enhanced: FileWriter, spoil: Callable[[Any], None], words: str, reason: str
) -> None:
    path = write_enhanced(STACK, np.arange(5)[:, None] * (0.0, 0.0, 2.0), change=spoil)
    assert words in refusal(path, reason)
    assert words in refusal(path.parent, reason)


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom on the values that are cut off
def test_a_truncated_file_is_refused(write_enhanced: FileWriter) -> None:
    path = oblique(write_enhanced)
    whole = path.read_bytes()
    for size in range(0, len(whole), 31):
        path.write_bytes(whole[:size])
        with pytest.raises(VolumeError, match="enhanced.dcm|lacks"):
            read_volume(path)


def test_compressed_frames(write_enhanced: FileWriter) -> None:
    from pydicom import dcmread
    from pydicom.uid import RLELossless

    path = oblique(write_enhanced)
    expected = read_volume(path).array
    dataset = dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(path)
    assert np.array_equal(read_volume(path).array, expected)


def test_patient_and_units(write_enhanced: FileWriter, caplog: pytest.LogCaptureFixture) -> None:
    path = oblique(write_enhanced, modality="CT")
    assert {choose_series(place, None)[0].patient_id for place in (path, path.parent)} == {"phantom-1"}
    assert read_volume(path).modality == "CT"
    assert "RescaleType is not HU" in caplog.text
