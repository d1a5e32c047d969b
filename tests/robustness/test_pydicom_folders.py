"""The six folders that come with pydicom, of which most readers make garbage: one is a scan, five are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io import read_volume
from tests.robustness.dicom_grid import dicom_grid


@pytest.fixture(scope="module")
def studies() -> Path:
    import pydicom

    folder = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests"
    if not folder.is_dir():
        pytest.skip("this pydicom ships no test files")
    return folder


def series_of(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each series."""
    import pydicom

    groups: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        groups.setdefault(str(pydicom.dcmread(path, stop_before_pixels=True).SeriesInstanceUID), []).append(path)
    return groups


def refusal(folder: Path, **settings: Any) -> tuple[str, str]:
    """Return the reason and the one-line message with which a folder is refused."""
    with pytest.raises(VolumeError) as caught:
        read_volume(folder, **settings)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return caught.value.reason, message


def test_the_one_sound_scan_reads_as_its_headers_say(studies: Path) -> None:
    import pydicom

    files = sorted((studies / "98892001" / "CT5N").iterdir())
    volume = read_volume(studies / "98892001" / "CT5N")
    assert volume.modality == "CT"
    assert volume.shape == (16, 16, 5)
    assert volume.spacing == pytest.approx((0.488281, 0.488281, 2.5), abs=1e-5)
    assert volume.axis_codes == ("L", "P", "S")
    shape, affine = dicom_grid(files)
    assert volume.shape == shape
    assert np.allclose(volume.affine, affine, rtol=0, atol=1e-5)
    headers = sorted(
        (pydicom.dcmread(path) for path in files), key=lambda slice_: float(slice_.ImagePositionPatient[2])
    )
    for index, header in enumerate(headers):
        expected = header.pixel_array.T * float(header.RescaleSlope) + float(header.RescaleIntercept)
        assert np.array_equal(volume.array[:, :, index], expected)
        place = np.array(header.ImagePositionPatient, dtype=float) * (-1, -1, 1)
        assert np.allclose((volume.affine @ (0, 0, index, 1))[:3], place, atol=1e-4)


@pytest.mark.parametrize(
    ("folder", "reason", "words"),
    [
        ("77654033/CT2", "uneven spacing", "202.5 mm"),
        ("98892001/CT2N", "orientation", "localizer"),
        ("98892003/MR700", "orientation", "4467"),
        ("98892003/MR1", "several series", "3 series"),
        ("98892003/MR2", "several series", "3 series"),
    ],
)
def test_what_is_no_volume_is_refused_for_the_right_reason(studies: Path, folder: str, reason: str, words: str) -> None:
    given, message = refusal(studies / folder)
    assert given == reason
    assert words in message
    if reason == "several series":
        for uid in series_of(studies / folder):
            assert uid in message


@pytest.mark.parametrize("folder", ["98892003/MR1", "98892003/MR2"])
def test_a_chosen_series_reads_only_where_it_is_sound(studies: Path, folder: str) -> None:
    """One picture with a stated thickness is a volume of one slice; three planes in one series are none."""
    groups = series_of(studies / folder)
    assert len(groups) == 3
    for uid, files in groups.items():
        if len(files) > 1:
            reason, message = refusal(studies / folder, series=uid)
            assert reason in ("orientation", "localizer")
            assert any(path.name in message for path in files)
            continue
        volume = read_volume(studies / folder, series=uid)
        shape, affine = dicom_grid(files)
        assert volume.shape == shape == (16, 16, 1)
        assert np.allclose(volume.affine, affine, rtol=0, atol=1e-5)
        assert volume.spacing == pytest.approx((1.367188, 1.367188, 10.0), abs=1e-5)
        assert volume.axis_codes == ("P", "I", "R")  # a sagittal picture
        assert volume.modality == "MR"
    reason, message = refusal(studies / folder, series="1.2.3")
    assert reason in ("several series", "missing")
    assert "1.2.3" in message


def test_a_series_of_a_sound_folder_can_be_named(studies: Path) -> None:
    (uid,) = series_of(studies / "98892001" / "CT5N")
    assert read_volume(studies / "98892001" / "CT5N", series=uid).shape == (16, 16, 5)
