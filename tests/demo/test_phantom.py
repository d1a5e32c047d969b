"""Phantoms: anatomy on its right side, sizes as promised, the same patient for the same seed, files that read back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from boltzformer_monai.demo.phantom import ALL_PHANTOM_LABELS, CHEST_LABELS, PHANTOM_LABELS, labels_of, make_phantom
from boltzformer_monai.demo.phantom_files import write_phantom_dicom, write_phantom_nifti
from boltzformer_monai.demo.phantom_shapes import smooth_field
from boltzformer_monai.errors import ConfigError, VolumeError
from boltzformer_monai.io.label_map import reorient_label
from boltzformer_monai.io.read import read_label_map, read_volume
from boltzformer_monai.io.volume import Volume

SMALL = (64, 56, 10)
LIVER, SPLEEN, RIGHT_KIDNEY, LEFT_KIDNEY, AORTA, LESION = 1, 2, 3, 4, 5, 6
RIGHT_LUNG, LEFT_LUNG, HEART, NODULE = 7, 8, 9, 10


def _centre_mm(label: Volume, value: int) -> np.ndarray:
    """Centre of mass in RAS millimetres."""
    return label.affine[:3, :3] @ np.argwhere(label.array == value).mean(axis=0) + label.affine[:3, 3]


@pytest.fixture(scope="module", params=[0, 1, 2])
def abdomen(request: pytest.FixtureRequest) -> tuple[Volume, Volume]:
    return make_phantom("abdomen", seed=request.param)


@pytest.fixture(scope="module", params=[0, 1, 2])
def chest(request: pytest.FixtureRequest) -> tuple[Volume, Volume]:
    return make_phantom("chest", seed=request.param)


def test_types_and_geometry(abdomen: tuple[Volume, Volume]) -> None:
    image, label = abdomen
    assert image.array.dtype == np.float32
    assert label.array.dtype == np.uint8
    assert image.shape == label.shape == (192, 192, 24)
    assert image.axis_codes == label.axis_codes == ("L", "P", "S")
    np.testing.assert_allclose(image.spacing, (1.8, 1.8, 5.0))
    np.testing.assert_array_equal(image.affine, label.affine)
    assert image.modality == "CT"
    assert image.array.min() >= -1024
    np.testing.assert_array_equal(image.array, np.rint(image.array))


def test_every_abdominal_structure_is_there_and_on_its_side(abdomen: tuple[Volume, Volume]) -> None:
    _, label = abdomen
    assert set(np.unique(label.array)) == {0, *PHANTOM_LABELS}
    right, left = _centre_mm(label, RIGHT_KIDNEY), _centre_mm(label, LEFT_KIDNEY)
    assert right[0] > 30 > -30 > left[0]  # RAS: the patient's right is positive
    assert right[2] < left[2], "the right kidney lies lower"
    assert _centre_mm(label, LIVER)[0] > 20
    assert _centre_mm(label, SPLEEN)[0] < -60
    assert _centre_mm(label, AORTA)[0] < 0


def test_every_chest_structure_is_there_and_on_its_side(chest: tuple[Volume, Volume]) -> None:
    _, label = chest
    assert set(np.unique(label.array)) == {0, *CHEST_LABELS}
    assert _centre_mm(label, RIGHT_LUNG)[0] > 50
    assert _centre_mm(label, LEFT_LUNG)[0] < -50
    assert _centre_mm(label, HEART)[0] < 0


def test_densities_are_those_of_the_tissues(abdomen: tuple[Volume, Volume], chest: tuple[Volume, Volume]) -> None:
    image, label = abdomen
    liver = float(np.median(image.array[label.array == LIVER]))
    assert 85 < liver < 135
    # The edge of a lesion of a few pixels is blurred, so its median lies above its core.
    assert 20 < liver - float(np.median(image.array[label.array == LESION])) < 90
    image, label = chest
    assert -900 < float(np.median(image.array[label.array == RIGHT_LUNG])) < -800
    assert float(np.percentile(image.array[label.array == NODULE], 90)) > -60
    assert np.median(image.array[:2, :2]) == pytest.approx(-1000, abs=15)


def test_lesions_lie_inside_the_liver_and_are_small() -> None:
    fractions = []
    for seed in range(12):
        _, label = make_phantom("abdomen", seed=seed)
        area = (label.array == LESION).mean(axis=(0, 1))
        fractions += list(area[area > 0])
        marked = label.array == LESION
        for axis in (0, 1):
            for step in (-1, 1):
                neighbours = np.roll(label.array, step, axis)[marked]
                assert np.isin(neighbours, (LIVER, LESION)).all()
    assert 0.0008 < float(np.median(fractions)) < 0.0025
    assert min(fractions) < 0.0003
    assert max(fractions) < 0.02


def test_noise_is_about_twelve_hounsfield_units() -> None:
    image, _ = make_phantom("abdomen", seed=3)
    corner = image.array[:12, :12]
    assert 10 < float(corner[corner > -1024].std()) < 13


@pytest.mark.parametrize("kind", ["abdomen", "chest"])
def test_seed_decides_everything(kind: str) -> None:
    first, again, other = (make_phantom(kind, seed=seed, size=SMALL) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first[0].array, again[0].array)
    np.testing.assert_array_equal(first[1].array, again[1].array)
    assert (first[1].array != other[1].array).mean() > 0.02


def test_drawing_leaves_numpys_global_generator_alone() -> None:
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    make_phantom("chest", seed=0, size=SMALL)
    np.testing.assert_array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize(("kind", "value"), [("abdomen", LESION), ("chest", NODULE)])
@pytest.mark.parametrize("size", [SMALL, (32, 32, 4)])
def test_size_lesion_and_spacing_can_be_chosen(kind: str, value: int, size: tuple[int, int, int]) -> None:
    image, label = make_phantom(kind, seed=1, size=size, spacing=(2.0, 3.0, 4.0), lesion=False)
    assert image.shape == size
    np.testing.assert_allclose(image.spacing, (2.0, 3.0, 4.0))
    assert value not in label.array
    assert make_phantom(kind, seed=1, size=size)[0].spacing[2] == pytest.approx(120 / size[2])


def test_lesions_survive_coarse_grids() -> None:
    for seed in range(8):
        assert LESION in make_phantom("abdomen", seed=seed, size=(64, 64, 8))[1].array


def test_labels_of_both_kinds_share_one_table() -> None:
    assert dict(labels_of("abdomen")) == dict(PHANTOM_LABELS)
    assert dict(labels_of("chest")) == dict(CHEST_LABELS)
    assert PHANTOM_LABELS[AORTA] == CHEST_LABELS[AORTA]
    assert len(set(ALL_PHANTOM_LABELS.values())) == len(ALL_PHANTOM_LABELS) == 10


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "leg"},
        {"seed": -1},
        {"size": (16, 64, 8)},
        {"size": (64, 64)},
        {"spacing": (1.0, 0.0, 1.0)},
        {"spacing": (1.0, float("nan"), 1.0)},
    ],
)
def test_bad_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigError, match="phantom"):
        make_phantom(**{"kind": "abdomen", "seed": 0, **settings})
    with pytest.raises(ConfigError, match="'leg'"):
        labels_of("leg")


def test_smooth_field_is_smooth_and_normalised() -> None:
    field = smooth_field((60, 50, 12), (5, 5, 2), np.random.default_rng(0))
    assert field.dtype == np.float32
    assert abs(float(field.mean())) < 1e-3
    assert float(field.std()) == pytest.approx(1, abs=1e-3)
    assert float(np.abs(np.diff(field, axis=0)).max()) < 0.35


def test_nifti_reads_back_exactly(tmp_path: Path) -> None:
    image, label = make_phantom("abdomen", seed=2, size=SMALL)
    image_path, label_path = write_phantom_nifti(image, label, tmp_path / "new", "case")
    assert (image_path.name, label_path.name) == ("case.nii.gz", "case_label.nii.gz")
    read = read_volume(image_path, modality="CT")
    np.testing.assert_array_equal(read.array, image.array)
    np.testing.assert_allclose(read.affine, image.affine, atol=1e-5)
    np.testing.assert_array_equal(read_label_map(label_path).array, label.array)
    assert nib.load(image_path).get_data_dtype() == np.int16
    with pytest.raises(VolumeError, match="differ in shape"):
        write_phantom_nifti(image, make_phantom("abdomen", seed=2, size=(32, 32, 4))[1], tmp_path, "case")


def test_dicom_reads_back_exactly_and_fits_the_nifti_label(tmp_path: Path) -> None:
    image, label = make_phantom("abdomen", seed=2, size=SMALL)
    folder = write_phantom_dicom(image, tmp_path / "series", seed=7)
    _, label_path = write_phantom_nifti(image, label, tmp_path, "case")
    read = read_volume(folder)
    assert read.modality == "CT"
    moved = reorient_label(read_label_map(label_path), read)  # refuses a grid that is not the very same
    upright, upright_label = read.reoriented("LPS"), moved.reoriented("LPS")
    np.testing.assert_array_equal(upright.array, image.array)
    np.testing.assert_array_equal(upright_label.array, label.array)
    np.testing.assert_allclose(upright.affine, image.affine, atol=1e-4)


def test_dicom_from_another_axis_order_is_the_same_series(tmp_path: Path) -> None:
    image, _ = make_phantom("chest", seed=1, size=SMALL)
    write_phantom_dicom(image, tmp_path / "a", seed=1)
    write_phantom_dicom(image.reoriented("IRA"), tmp_path / "b", seed=1)
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_dicom_headers_are_complete_fictitious_and_fixed(tmp_path: Path) -> None:
    image, _ = make_phantom("abdomen", seed=2, size=SMALL)
    folder = write_phantom_dicom(image, tmp_path / "a", seed=7)
    other = write_phantom_dicom(image, tmp_path / "b", seed=8)
    headers = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    assert len(headers) == image.shape[2]
    assert len({header.SOPInstanceUID for header in headers}) == len(headers)
    assert len({header.SeriesInstanceUID for header in headers}) == 1
    first = headers[0]
    assert str(first.PatientName) == "PHANTOM^7"
    assert first.RescaleIntercept == -1024
    assert list(first.PixelSpacing) == pytest.approx([image.spacing[1], image.spacing[0]])
    assert first.ImageOrientationPatient == [1, 0, 0, 0, 1, 0]
    assert all(header.SOPInstanceUID.is_valid for header in headers)
    assert headers[1].ImagePositionPatient[2] - first.ImagePositionPatient[2] == pytest.approx(12.0)
    np.testing.assert_array_equal(first.pixel_array - 1024.0, image.array[:, :, 0].T)
    assert pydicom.dcmread(other / "slice_0001.dcm").StudyInstanceUID != first.StudyInstanceUID


def test_dicom_never_mixes_two_series_in_a_folder(tmp_path: Path) -> None:
    image, _ = make_phantom("abdomen", seed=2, size=(32, 32, 4))
    write_phantom_dicom(image, tmp_path, seed=7)
    with pytest.raises(VolumeError, match="empty folder"):
        write_phantom_dicom(image, tmp_path, seed=8)


def test_dicom_refuses_densities_that_do_not_fit(tmp_path: Path) -> None:
    image, _ = make_phantom("abdomen", seed=2, size=(32, 32, 4))
    with pytest.raises(VolumeError, match="intercept"):
        write_phantom_dicom(Volume(image.array - 500, image.affine, modality="CT"), tmp_path, seed=7)


def test_importing_phantoms_needs_no_reader() -> None:
    code = (
        "import sys, boltzformer_monai.demo.phantom, boltzformer_monai.demo.phantom_files, boltzformer_monai.demo.demo;"
        "sys.exit(','.join(m for m in ('pydicom', 'nibabel', 'SimpleITK', 'torch') if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
