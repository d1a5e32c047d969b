"""Real DICOM folders, sound and broken."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io import read_label_map, read_volume, reorient_label


def refusal(folder: Path) -> str:
    """Return the one-line message with which a folder is refused."""
    with pytest.raises(VolumeError) as caught:
        read_volume(folder)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def test_real_jpeg2000_series_with_a_flipped_label(shared_data: Path) -> None:
    image = read_volume(shared_data / "ts_ct_dicom" / "dicom")
    assert image.shape == (512, 512, 20)
    assert image.modality == "CT"
    assert -1100 < float(image.array.min()) <= -1000
    assert 20 < float(np.median(image.array[image.array > -200])) < 80  # soft tissue in HU
    label = read_label_map(shared_data / "ts_ct_dicom" / "label.nii.gz")
    assert label.axis_codes != image.axis_codes
    label = reorient_label(label, image)
    assert np.array_equal(label.affine, image.affine)
    centres = {name: np.argwhere(label.array == value).mean(axis=0) for name, value in (("liver", 5), ("spleen", 1))}
    right = {name: float((image.affine @ (*centre, 1))[0]) for name, centre in centres.items()}  # x of RAS, mm
    assert right["liver"] > right["spleen"] + 50
    assert centres["liver"][0] < 256 < centres["spleen"][0]  # the series is stored LPS
    assert 30 < float(np.median(image.array[label.array == 5])) < 200


def test_real_series_missing_slices_at_random(shared_data: Path, tmp_path: Path) -> None:
    files = sorted((shared_data / "ts_ct_dicom" / "dicom").iterdir())[:6]
    for path in files:
        shutil.copy(path, tmp_path)
    assert read_volume(tmp_path).shape[2] == 6
    (tmp_path / files[2].name).unlink()
    assert "perhaps a slice is missing" in refusal(tmp_path)


def test_both_decoders_agree(shared_data: Path) -> None:
    import pydicom

    path = min((shared_data / "ts_ct_dicom" / "dicom").iterdir())
    image = read_volume(path.parent)
    stored = pydicom.dcmread(path).pixel_array.astype(np.float32).T - 1024
    assert any(np.array_equal(stored, image.array[:, :, index]) for index in range(image.shape[2]))


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom on the missing end
def test_real_compressed_files_cut_short_are_refused(shared_data: Path, tmp_path: Path) -> None:
    files = sorted((shared_data / "ts_ct_dicom" / "dicom").iterdir())[:2]
    for path in files:
        shutil.copy(path, tmp_path)
    whole = files[1].read_bytes()
    for part in (0.005, 0.02, 0.5, 0.9999):
        (tmp_path / files[1].name).write_bytes(whole[: int(part * len(whole))])
        assert files[1].name in refusal(tmp_path)


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("failing_notavolume_001", "same position"),
        ("failing_sliceincrement_001", "10 mm between"),
        ("generic_rgb_001", "colour"),
    ],
)
def test_real_odd_series_are_refused(shared_data: Path, folder: str, words: str) -> None:
    assert words in refusal(shared_data / "odd_dicom" / folder)


def test_real_unusual_series_are_read(shared_data: Path) -> None:
    flat = read_volume(shared_data / "odd_dicom" / "generic_anatomical_002_non_isotropic")
    assert flat.shape == (64, 28, 4)
    assert flat.spacing == pytest.approx((6.39996, 4.0, 0.5), abs=1e-4)
    assert read_volume(shared_data / "odd_dicom" / "generic_compressed_j2k_001").axis_codes == ("P", "I", "R")


@pytest.mark.parametrize(
    ("place", "shape"),
    [
        ("odd_dicom/philips_enhanced_anatomical_001", (256, 256, 8)),
        ("odd_dicom/siemens_multiframe_anatomical_001", (256, 256, 8)),
        ("dcmqi/23x38x3/multiframe", (23, 38, 3)),
    ],
)
def test_real_multi_frame_files(shared_data: Path, place: str, shape: tuple[int, int, int]) -> None:
    import SimpleITK

    volume = read_volume(shared_data / place)
    assert volume.shape == shape
    path = next((shared_data / place).iterdir())
    assert np.array_equal(read_volume(path).array, volume.array)
    # A second opinion, which averages the spacing and may sort the frames the other way round.
    image = SimpleITK.ReadImage(str(path))
    theirs = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
    corners = []
    for index in ((0, 0, 0), (5, 7, 1), (22, 37, 2)):
        lps = np.array(image.TransformIndexToPhysicalPoint(index))
        ours = np.linalg.inv(volume.affine) @ (*(lps * (-1, -1, 1)), 1)
        assert np.allclose(ours, np.rint(ours), atol=1e-3)
        corners.append(theirs[index] == pytest.approx(volume.array[tuple(np.rint(ours[:3]).astype(int))], rel=1e-5))
    assert all(corners)


def test_a_multi_frame_file_equals_its_classic_series(shared_data: Path) -> None:
    multi, classic = (read_volume(shared_data / "dcmqi" / "23x38x3" / name) for name in ("multiframe", "image"))
    assert np.array_equal(multi.array, classic.array)
    assert np.allclose(multi.affine, classic.affine)


def test_other_objects_are_named(shared_data: Path) -> None:
    assert "DICOM Segmentation" in refusal(shared_data / "dcmqi" / "liver.dcm")
    assert "DICOM RT Structure Set" in refusal(shared_data / "rt_utils_mock" / "rt.dcm")
    assert "390 NIfTI files" in refusal(shared_data / "msd_hippocampus")


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("77654033/CT2", "uneven spacing"),
        ("98892001/CT2N", "orientation"),
        ("98892003/MR1", "several series"),
        ("98892003/MR2", "several series"),
        ("98892003/MR700", "orientation"),
    ],
)
def test_pydicom_ships_broken_series(folder: str, reason: str) -> None:
    import pydicom

    place = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests" / folder
    if not place.is_dir():
        pytest.skip("this pydicom has no test files")
    with pytest.raises(VolumeError) as caught:
        read_volume(place)
    assert caught.value.reason == reason
    sound = read_volume(place.parents[1] / "98892001" / "CT5N")
    assert sound.spacing[2] == pytest.approx(2.5)
