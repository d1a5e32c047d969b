"""A file that is written fast holds the same voxels on the same grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.io.formats import read_image_file, write_image_file

AFFINE = np.array([[-1.5, 0, 0, 3], [0, 2, 0, -4], [0, 0, 5, 6], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd"])
@pytest.mark.parametrize("turned", [False, True])
def test_same_voxels(tmp_path: Path, ending: str, turned: bool) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (40, 30, 20)).astype(np.uint8)
    given = labels.T.copy().T[:, ::-1] if turned else labels  # as it lies in memory makes no difference
    for fast in (False, True):
        path = tmp_path / f"{fast}{ending}"
        write_image_file(given, AFFINE, path, fast=fast)
        array, affine = read_image_file(path)
        np.testing.assert_array_equal(array, given)
        np.testing.assert_allclose(affine, AFFINE, atol=1e-6)
    if ending == ".nrrd":
        sizes = [(tmp_path / f"{fast}{ending}").stat().st_size for fast in (False, True)]
        assert sizes[0] < sizes[1] < labels.size  # less, but compressed
