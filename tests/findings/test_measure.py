"""Targets of a label map are measured where they lie, as they would be on the whole scan."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from boltzformer_monai.findings.lesions import label_lesions
from boltzformer_monai.findings.measure import measure_targets
from boltzformer_monai.io.segmentation import Segmentation
from boltzformer_monai.io.volume import Volume
from tests.findings.test_lesions import rotation


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("largest", [9, 70_000])
@pytest.mark.parametrize("spacing", [(0.8, 0.9, 2.0), (3.0, 0.9, 1.0)])
def test_targets_are_those_of_the_whole_scan(order: str, largest: int, spacing: tuple[float, float, float]) -> None:
    random = np.random.default_rng(0)
    affine = np.eye(4)
    affine[:3, :3] = rotation(0.2, -0.3, 0.4) @ np.diag(spacing)
    affine[:3, 3] = -40, 12, 7
    labels = np.zeros((24, 20, 16), np.uint32)
    # At every edge, in the middle, in one slice, and in parts far from each other.
    labels[0:3, 4:9, 5:7], labels[20:24, 15:20, 14:16], labels[10:14, 8:12, 6:10] = 1, 2, 3
    labels[5, 5, 3], labels[18:20, 2:4, 0], labels[6:9, 15:18, 12] = 4, 4, largest
    array = random.normal(0, 50, labels.shape).astype(np.float32)
    scan = Volume(array, affine, "CT")
    drawn = Segmentation(Volume(np.asarray(labels, order=order), affine), {"1+4": "both", "7": "nothing"})
    targets = list(measure_targets(drawn, scan))
    assert [target.value for target in targets] == ["1+4", 2, 3, 7, largest]
    for target, values in zip(targets, ([1, 4], [2], [3], [7], [largest]), strict=True):
        lesions, numbers = label_lesions(np.isin(labels, values), scan)
        np.testing.assert_array_equal(target.numbers, numbers)
        assert target.voxels == np.isin(labels, values).sum()
        for found, expected in zip(target.lesions, lesions, strict=True):
            assert found.centre_mm == pytest.approx(expected.centre_mm, abs=2e-3)
            assert replace(found, centre_mm=expected.centre_mm) == expected


@pytest.mark.slow
def test_a_label_map_with_a_value_for_every_lesion_is_quick() -> None:
    labels = np.zeros((160, 160, 80), np.uint16)
    corners = np.argwhere(np.ones([length // 8 for length in labels.shape])) * 8
    for value, (x, y, z) in enumerate(corners, 1):
        labels[x : x + 3, y : y + 4, z : z + 2] = value
    scan = Volume(np.zeros(labels.shape, np.float32), np.diag([0.7, 0.7, 1.2, 1]), "CT")
    started = time.process_time()
    drawn = Segmentation(replace(scan, array=labels))
    assert [target.voxels for target in measure_targets(drawn, scan)] == [24] * len(corners)
    assert time.process_time() - started < 20
