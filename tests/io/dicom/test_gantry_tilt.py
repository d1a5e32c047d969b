"""Gantry tilt: refused unless asked for; resampling moves slices in their planes and loses nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.errors import ConfigError, VolumeError
from boltzformer_monai.io import Volume, read_volume
from boltzformer_monai.io.dicom.gantry_tilt import resample_tilt, tilt_degrees
from tests.io.cases import ORIENTATIONS, TILT

SHAPE = (7, 8, 6)
SHEARS = [(0.0, 0.37), (-0.52, 0.0), (0.3, -0.44)]  # mm per mm of slice distance along both axes of the plane


def sheared(first: float, second: float, *, dtype: type = np.float32) -> Volume:
    """Return a stack whose slices (the last axis) slide by that many mm per mm; every voxel has its own value."""
    affine = np.eye(4)
    spacing = np.array([0.7, 0.9, 3.0])
    affine[:3, :3] = TILT @ np.array([[1, 0, first], [0, 1, second], [0, 0, 1]]) * spacing
    affine[:3, 3] = (-101.25, 33.1, -7.3)
    values = np.arange(1, np.prod(SHAPE) + 1).reshape(SHAPE)
    return Volume(values.astype(dtype), affine, modality="CT", source="made here", frame_of_reference="1.2.3")


def worlds(volume: Volume) -> np.ndarray:
    """Return the world coordinates of all voxels (I, J, K, 3)."""
    index = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), axis=-1)
    return index @ volume.affine[:3, :3].T + volume.affine[:3, 3]


@pytest.mark.parametrize("shear", SHEARS)
@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_a_linear_field_stays_where_it_is(shear: tuple[float, float], codes: str) -> None:
    volume = sheared(*shear).reoriented(codes)
    slope, offset = np.array([0.31, -0.22, 0.17]), 500.0

    def field(place: Volume) -> np.ndarray:
        return (worlds(place) @ slope + offset).astype(np.float32)

    volume = Volume(field(volume), volume.affine, modality="CT", source="made here", frame_of_reference="1.2.3")
    straight = resample_tilt(volume)
    assert straight.array.dtype == np.float32
    assert straight.array.flags.c_contiguous
    assert (straight.modality, straight.source, straight.frame_of_reference) == ("CT", "made here", "1.2.3")
    directions = straight.affine[:3, :3] / straight.spacing
    assert np.allclose(directions.T @ directions, np.eye(3), atol=1e-9)
    assert tilt_degrees(straight) == 0.0
    # Linear interpolation of a linear field is exact, wherever all four neighbours lie in the scan.
    index = (worlds(straight) - volume.affine[:3, 3]) @ np.linalg.inv(volume.affine[:3, :3]).T
    last = np.array(volume.shape) - 1
    inside = ((index >= -1e-6) & (index <= last + 1e-6)).all(axis=-1)
    assert np.allclose(straight.array[inside], field(straight)[inside], atol=1e-3)
    outside = ((index <= -1) | (index >= last + 1)).any(axis=-1)
    assert (straight.array[outside] == volume.array.min()).all()
    assert inside.sum() > 0.5 * volume.array.size
    # Nothing is lost: what is above the padding has the same sum.
    excess = [float((v.array.astype(np.float64) - volume.array.min()).sum()) for v in (volume, straight)]
    assert excess[0] == pytest.approx(excess[1], rel=1e-5)


@pytest.mark.parametrize("shear", SHEARS)
@pytest.mark.parametrize("codes", ORIENTATIONS[::7])
def test_labels_keep_every_voxel_and_follow_their_image(shear: tuple[float, float], codes: str) -> None:
    label = sheared(*shear, dtype=np.uint16).reoriented(codes)
    straight = resample_tilt(label)
    assert straight.array.dtype == np.uint16
    values, counts = np.unique(straight.array, return_counts=True)
    assert values[0] == 0
    assert np.array_equal(values[1:], np.arange(1, label.array.size + 1))
    assert (counts[1:] == 1).all()
    # Each voxel moved to the nearest place on the new grid: by up to half a voxel along two axes, not along the third.
    for index in np.argwhere(straight.array):
        stored = np.argwhere(label.array == straight.array[tuple(index)])[0]
        shift = np.linalg.inv(label.affine) @ straight.affine @ (*index, 1) - (*stored, 1)
        assert np.abs(shift).max() <= 0.5 + 1e-6
        assert np.abs(shift[:3]).min() <= 1e-9
    image = resample_tilt(Volume(label.array.astype(np.float32), label.affine))
    assert image.shape == straight.shape
    assert np.array_equal(image.affine, straight.affine)


def test_first_slice_is_untouched_and_whole_shifts_are_exact() -> None:
    volume = sheared(0.0, 0.3)  # 0.9 mm per slice: exactly one voxel
    straight = resample_tilt(volume)
    assert straight.shape == (7, 8 + 5, 6)
    for index in range(6):
        assert np.array_equal(straight.array[:, index : index + 8, index], volume.array[:, :, index])
    assert np.array_equal(straight.array[:, 8:, 0], np.ones((7, 5)))


def test_right_angles_pass() -> None:
    upright = sheared(0.0, 0.0)
    assert resample_tilt(upright) is upright
    assert tilt_degrees(sheared(0.0, 0.0017)) == 0.0
    assert tilt_degrees(sheared(0.0, 0.0018)) == pytest.approx(np.degrees(0.0018), rel=1e-3)
    assert tilt_degrees(sheared(0.0, 0.37)) == pytest.approx(np.degrees(np.arctan(0.37)))


def save(volume: Volume, path: Path) -> Path:
    import nibabel

    nibabel.save(nibabel.Nifti1Image(volume.array, volume.affine), path)
    return path


def test_every_file_format_is_treated_alike(write_series: Callable[..., list[Path]], tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(0, 2000, (6, 8, 7)).astype(np.uint16)
    folder = write_series(stack, step=(0.1, 0.5, 2.5))[0].parent
    kept = read_volume(folder, tilt="keep")
    assert [caveat.kind for caveat in kept.caveats] == ["gantry tilt"]
    file = save(kept, tmp_path / "tilted.nii.gz")
    for place in (folder, file):
        with pytest.raises(VolumeError, match="--resample-tilt") as caught:
            read_volume(place)
        assert caught.value.reason == "gantry tilt"
        assert "12 degrees" in str(caught.value)
        assert np.array_equal(read_volume(place, tilt="keep").array, kept.array)
        straight = read_volume(place, tilt="resample")
        assert np.allclose(straight.array, resample_tilt(kept).array, atol=1e-3)
        assert np.allclose(straight.spacing, (0.6, 0.8, 2.5), atol=1e-6)
        assert straight.caveats == resample_tilt(kept).caveats == ()
        with pytest.raises(ConfigError, match="ignore"):
            read_volume(place, tilt="ignore")


def test_a_skewed_grid_is_no_stack_of_slices(tmp_path: Path) -> None:
    affine: Any = np.eye(4)
    affine[:3, :3] = [[1, 0.2, 0.3], [0, 1, 0.4], [0, 0, 1]]
    skewed = Volume(np.zeros((3, 4, 5), np.float32), affine)
    assert tilt_degrees(skewed) > 1
    path = save(skewed, tmp_path / "skewed.nii")
    assert read_volume(path, tilt="keep").shape == (3, 4, 5)
    for tilt in ("refuse", "resample"):
        with pytest.raises(VolumeError) as caught:
            read_volume(path, tilt=tilt)
        assert caught.value.reason == "gantry tilt"


def test_a_tilt_whose_grid_would_fill_the_memory_is_refused() -> None:
    affine: Any = np.diag([0.001, 0.001, 9000.0, 1.0])
    affine[0, 2] = 100.0  # 100,000 voxels from slice to slice
    flat = Volume(np.zeros((4, 5, 100_000), np.float32), affine)
    with pytest.raises(VolumeError, match="--memory-gb") as caught:
        resample_tilt(flat)
    assert caught.value.reason == "too large"
