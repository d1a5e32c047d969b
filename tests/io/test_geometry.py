"""Reorientation moves no voxel in the patient; geometry that cannot be trusted is refused."""

from __future__ import annotations

import numpy as np
import pytest

from boltzformer_monai.errors import ConfigError, VolumeError
from boltzformer_monai.io import Volume, reorient_label
from tests.io.cases import ORIENTATIONS, TILT, make_volume


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("tilt", [None, TILT])
@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_reorienting_moves_no_voxel_in_the_patient(codes: str, tilt: np.ndarray | None) -> None:
    volume = make_volume(tilt=tilt)
    turned = volume.reoriented(codes)
    assert "".join(turned.axis_codes) == codes
    assert (turned.modality, turned.source) == (volume.modality, volume.source)
    assert all(stride > 0 for stride in turned.array.strides)  # torch.from_numpy wants that
    for index in np.ndindex(turned.shape):
        world = turned.affine @ (*index, 1)
        original = np.linalg.inv(volume.affine) @ world
        nearest = np.rint(original).astype(int)
        assert np.allclose(original, nearest, atol=1e-9)
        assert turned.array[index] == volume.array[tuple(nearest[:3])]
    back = turned.reoriented("".join(volume.axis_codes))
    assert np.array_equal(back.array, volume.array)
    assert np.allclose(back.affine, volume.affine, rtol=0, atol=1e-12)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_axis_codes_agree_with_nibabel(codes: str) -> None:
    import nibabel

    affine = make_volume(tilt=TILT).reoriented(codes).affine
    assert "".join(nibabel.aff2axcodes(affine)) == codes


@pytest.mark.parametrize("codes", ["", "LP", "LPSS", "LRS", "XYZ", "LLL", "L S"])
def test_an_orientation_is_checked(codes: str) -> None:
    with pytest.raises(ConfigError, match="orientation"):
        make_volume().reoriented(codes)


@pytest.mark.parametrize(
    "affine",
    [
        np.zeros((4, 4)),
        np.diag([1.0, 1, 0, 1]),
        np.diag([1.0, 1, np.nan, 1]),
        np.diag([1.0, np.inf, 1, 1]),
        np.diag([1.0, 1, 1, 2]),
        np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        np.eye(3),
    ],
)
def test_an_unusable_affine_is_refused(affine: np.ndarray) -> None:
    with pytest.raises(VolumeError, match="affine"):
        Volume(np.zeros((2, 2, 2), np.float32), affine)


def test_a_volume_is_three_dimensional_and_known() -> None:
    for shape in [(2, 2), (2, 2, 2, 2), (2, 0, 2)]:
        with pytest.raises(VolumeError, match="three non-empty axes"):
            Volume(np.zeros(shape, np.float32), np.eye(4))
    with pytest.raises(VolumeError, match="modality"):
        Volume(np.zeros((2, 2, 2), np.float32), np.eye(4), modality="PET")


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_a_label_in_another_order_follows_its_image(codes: str) -> None:
    image = make_volume(tilt=TILT)
    stored = Volume(image.array.astype(np.uint8), image.affine).reoriented(codes)
    label = reorient_label(stored, image)
    assert np.array_equal(label.array, image.array.astype(np.uint8))
    assert np.array_equal(label.affine, image.affine)


def test_a_label_elsewhere_is_refused() -> None:
    image = make_volume()
    array = np.zeros(image.shape, np.uint8)
    shifted = image.affine.copy()
    shifted[0, 3] += 0.11 * 0.7  # of a voxel
    coarser = image.affine @ np.diag([1.06, 1, 1, 1])
    cases = [Volume(array, shifted), Volume(array, coarser), Volume(array[1:], image.affine)]
    cases += [Volume(array, image.affine @ np.diag([3.0, 1, 1, 1])), Volume(array, make_volume(tilt=TILT).affine)]
    for label in cases:
        with pytest.raises(VolumeError, match=r"3x4x5 voxels of 0\.7x0\.9x3 mm RAS"):
            reorient_label(label, image)


@pytest.mark.parametrize(
    ("share", "said"),
    [(0.0005, ""), (0.005, "0.0035 mm (0.5 % of a voxel)"), (0.09, "0.063 mm (9 % of a voxel)"), (0.3, "")],
)
def test_a_near_miss_is_put_on_the_grid_and_told(share: float, said: str) -> None:
    image = make_volume(tilt=TILT)
    array = image.array.astype(np.uint8)
    close = image.affine.copy()
    close[:3, 3] += share * image.affine[:3, 0]
    label = reorient_label(Volume(array, close).reoriented("ALI"), image, tolerance=0.5 if share > 0.1 else 0.1)
    assert np.array_equal(label.affine, image.affine)
    assert np.array_equal(label.array, array)
    assert [caveat.kind for caveat in label.caveats] == ["grid"] * (share > 0.001)
    assert said in "".join(caveat.text for caveat in label.caveats)
    for tolerance in (0.9 * share, 0.0):
        with pytest.raises(VolumeError, match="of a voxel") as caught:
            reorient_label(Volume(array, close), image, tolerance=tolerance)
        assert caught.value.reason == "grid"


@pytest.mark.parametrize("tolerance", [-0.1, 0.51, float("nan")])
def test_a_tolerance_is_less_than_half_a_voxel(tolerance: float) -> None:
    image = make_volume()
    with pytest.raises(ConfigError, match="half|share of a voxel"):
        reorient_label(Volume(image.array.astype(np.uint8), image.affine), image, tolerance=tolerance)
