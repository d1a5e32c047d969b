"""Slices in radiological display, and back to the grid they came from, from all 48 orientations."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.data.planes import PLANE_AXES, extract_slices, slice_spacing, slices_to_volume
from boltzformer_monai.errors import ConfigError, VolumeError
from boltzformer_monai.io import Volume, read_label_map

ORIENTATIONS = [
    "".join(pairs[axis] for axis in order)
    for order in itertools.permutations(range(3))
    for pairs in itertools.product("LR", "PA", "IS")
]


def make_volume() -> Volume:
    """Return an LPS volume of 3 x 4 x 5 different voxels, oblique by a few degrees."""
    angle = 0.1
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1.0, -1, 1]) @ turn * (0.7, 0.9, 3.0)
    affine[:3, 3] = (10, -20, 30)
    return Volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5), affine)


@pytest.mark.parametrize("plane", list(PLANE_AXES))
@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_slices_do_not_depend_on_storage_and_go_back_exactly(plane: str, codes: str) -> None:
    lps = make_volume()
    stored = lps.reoriented(codes)
    slices = extract_slices(stored, plane)
    assert slices.flags.c_contiguous
    assert slices.dtype == np.int16
    assert np.array_equal(slices, extract_slices(lps, plane))
    assert slice_spacing(stored, plane) == pytest.approx(slice_spacing(lps, plane), abs=1e-12)
    back = slices_to_volume(slices, stored, plane)
    assert back.flags.c_contiguous
    assert np.array_equal(back, stored.array)
    assert np.array_equal(slices_to_volume(slices > 30, stored, plane), stored.array > 30)


def test_the_three_displays() -> None:
    volume = make_volume()
    array = volume.array
    axial, coronal, sagittal = (extract_slices(volume, plane) for plane in ("axial", "coronal", "sagittal"))
    assert all(np.array_equal(axial[k], array[:, :, k].T) for k in range(5))
    assert all(np.array_equal(coronal[j], array[:, j, ::-1].T) for j in range(4))
    assert all(np.array_equal(sagittal[i], array[i, :, ::-1].T) for i in range(3))
    assert slice_spacing(volume, "axial") == pytest.approx((0.9, 0.7, 3.0))
    assert slice_spacing(volume, "coronal") == pytest.approx((3.0, 0.7, 0.9))
    assert slice_spacing(volume, "sagittal") == pytest.approx((3.0, 0.9, 0.7))


def test_wrong_planes_and_shapes() -> None:
    volume = make_volume()
    for plane in ("", "Axial", "oblique"):
        with pytest.raises(ConfigError, match="axial, coronal, sagittal"):
            extract_slices(volume, plane)
    with pytest.raises(VolumeError, match="do not fit"):
        slices_to_volume(np.zeros((5, 3, 4)), volume, "axial")


def test_real_liver_is_on_the_left_of_the_picture(shared_data: Path) -> None:
    label = read_label_map(shared_data / "amos_0018" / "label.nii.gz")
    axial = extract_slices(label, "axial")
    middle = axial.shape[2] / 2
    assert np.argwhere(axial == 6)[:, 2].mean() < middle < np.argwhere(axial == 1)[:, 2].mean()
    coronal = extract_slices(label, "coronal")
    assert np.argwhere(coronal == 6)[:, 1].mean() < np.argwhere(coronal == 14)[:, 1].mean()  # liver above bladder
    sagittal = extract_slices(label, "sagittal")
    assert np.argwhere(sagittal == 6)[:, 2].mean() < np.argwhere(sagittal == 8)[:, 2].mean()  # liver before aorta
