"""A network that returns its input thresholded gives the thresholded volume back, exactly, on the scan's grid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from boltzformer_monai.data.windows import Window
from boltzformer_monai.io.read import read_volume
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.transforms import PromptTokenizer
from tests.inferers.stubs import Stub, inferer
from tests.io.cases import ORIENTATIONS, TILT

ALL = ("axial", "coronal", "sagittal")
CHOICES = [*((plane,) for plane in ALL), ("axial", "coronal"), ALL]


def _noise(*, tilt: np.ndarray) -> Volume:
    """Random voxels of -100 and 100 HU, every axis of another length and spacing."""
    affine = np.eye(4)
    affine[:3, :3] = tilt * (0.7, 0.9, 3.0)
    affine[:3, 3] = (-101.25, 33.1, -7.3)
    values = np.where(np.random.default_rng(0).random((6, 7, 4)) > 0.6, 100.0, -100.0)
    return Volume(values.astype(np.float32), affine, "CT")


@pytest.mark.parametrize("planes", CHOICES, ids="+".join)
@pytest.mark.parametrize("tilt", [np.eye(3), TILT], ids=["straight", "oblique"])
def test_every_orientation(tokenizer: PromptTokenizer, tilt: np.ndarray, planes: tuple[str, ...]) -> None:
    straight = _noise(tilt=tilt)
    for codes in ORIENTATIONS:
        volume = straight.reoriented(codes)
        assert "".join(volume.axis_codes) == codes
        with inferer(tokenizer, 64, planes=planes).segment(volume, Stub()) as result:
            wanted = volume.array > 0
            np.testing.assert_array_equal(result.mask(0), wanted)
            np.testing.assert_array_equal(result.probability(0), np.where(wanted, 255, 0))
            np.testing.assert_array_equal(result.label_map(), wanted)
            np.testing.assert_array_equal(result.label_map("first"), wanted)
            finding = result.findings[0]
        assert finding.voxels == np.count_nonzero(wanted)
        assert finding.slices == 4  # of 3 mm, wherever that axis went
        assert finding.volume_ml == pytest.approx(finding.voxels * 0.7 * 0.9 * 3.0 / 1000)


@pytest.mark.parametrize("planes", CHOICES, ids="+".join)
def test_tiles_of_an_oblique_volume(tokenizer: PromptTokenizer, planes: tuple[str, ...]) -> None:
    """Blocks of voxels, since a coronal slice of thick slices is stretched to square pixels."""
    volume = _noise(tilt=TILT)
    values = np.kron(volume.array[:, :, :2], np.ones((14, 14, 3), np.float32))
    volume = replace(volume, array=values, affine=volume.affine @ np.diag([1, 7 / 9, 1, 1]))
    assert volume.spacing[0] == pytest.approx(volume.spacing[1])
    found = inferer(tokenizer, 32, planes=planes, in_plane="tiles").label_map(volume, Stub())
    np.testing.assert_array_equal(found, values > 0)


def test_a_dicom_series(tokenizer: PromptTokenizer, shared_data: Path) -> None:
    volume = read_volume(shared_data / "ts_ct_dicom" / "dicom", tilt="keep")
    window = Window(40, 400)
    wanted = window.apply(volume.array) > 127
    assert 0.05 < wanted.mean() < 0.95
    network = Stub(lambda image: torch.where(image > 0.5, 1e4, -1e4))
    for in_plane, size in (("fit", max(volume.shape)), ("tiles", 256)):  # pixels are not resized in either
        found = inferer(tokenizer, size, window=window, in_plane=in_plane).label_map(volume, network)
        np.testing.assert_array_equal(found, wanted)


def test_a_dicom_series_across_its_slices(tokenizer: PromptTokenizer, shared_data: Path) -> None:
    volume = read_volume(shared_data / "ts_ct_dicom" / "dicom", tilt="keep")
    near = tuple(slice(n // 2 - min(n, 40) // 2, n // 2 - min(n, 40) // 2 + min(n, 40)) for n in volume.shape)
    values = np.where(volume.array[near] > 40, 100, -100).astype(np.float32)
    volume = replace(volume, array=values)
    for planes in CHOICES:
        found = inferer(tokenizer, 384, planes=planes).label_map(volume, Stub())
        np.testing.assert_array_equal(found, values > 0)
