"""A point of a request: the lesion there, and the region around it that is decoded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.data.planes import radiological
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.inferers import RunSettings, VolumeSegmenter
from boltzformer_monai.inferers.point import (
    DEPTH_MM,
    LEAST_ZOOM,
    REACH_MM,
    LesionAtPoint,
    lesion_at,
    region_at,
    voxel_at,
)
from boltzformer_monai.io.volume import Volume

OBLIQUE = np.array([[-1.8, 0.3, 0.2, 20.0], [0.4, 1.9, -0.1, -30.0], [0.1, 0.2, 4.0, 5.0], [0, 0, 0, 1]])


def _world(volume: Volume, voxel: tuple[float, ...]) -> list[float]:
    return [float(each) for each in volume.affine[:3, :3] @ voxel + volume.affine[:3, 3]]


@pytest.fixture
def scan() -> Volume:
    values = np.random.default_rng(1).normal(40, 150, (40, 50, 9)).astype(np.float32)
    return Volume(values, OBLIQUE, "CT")


@pytest.mark.parametrize(
    "point", ["1,2,3", [1, 2], [1, 2, 3, 4], [1, 2, "3"], [1, 2, True], [1, 2, float("nan")], [1, 2, float("inf")], 5],
    ids=str,
)  # fmt: skip
def test_what_is_no_point(point: object) -> None:
    with pytest.raises(ConfigError, match="a point is three numbers") as caught:
        RunSettings(prompts=["liver"], point=point)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"keep_lesions": "at_point"}, {"look_closer": True}], ids=str)
def test_what_needs_a_point(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="needs a point"):
        RunSettings(prompts=["liver"], **settings)  # type: ignore[arg-type]


def test_the_voxel_is_the_one_that_holds_the_point(scan: Volume) -> None:
    assert voxel_at(scan, _world(scan, (3.4, 7.6, 2.0))) == (3, 8, 2)
    assert voxel_at(scan, _world(scan, (-0.49, 49.49, 8.49))) == (0, 49, 8)
    for outside in ((-0.51, 3, 3), (3, 49.51, 3), (3, 3, 8.51)):
        with pytest.raises(ConfigError, match=r"lies outside of the scan, which has R -?\d+ to -?\d+, A "):
            voxel_at(scan, _world(scan, outside))


def test_the_lesion_at_a_point_or_the_nearest(scan: Volume) -> None:
    mask = np.zeros(scan.shape, bool)
    mask[5:9, 10:14, 2:4] = True
    mask[9, 14, 4] = True  # touches it by a corner
    mask[20, 30, 6] = mask[30, 40, 1] = True
    found = lesion_at(mask, scan, _world(scan, (6, 11, 3)))
    assert found is not None
    assert (found.voxel, found.distance_mm, found.others) == ((6, 11, 3), 0.0, 2)
    assert int(found.only(mask).sum()) == 4 * 4 * 2 + 1
    near = lesion_at(mask, scan, _world(scan, (22, 30, 6)))
    assert near is not None
    assert near.voxel == (20, 30, 6)
    assert near.distance_mm == pytest.approx(2 * np.linalg.norm(OBLIQUE[:3, 0]), abs=1e-3)
    assert int(near.only(mask).sum()) == 1
    assert lesion_at(mask, scan, _world(scan, (20 + 1.1 * REACH_MM / np.linalg.norm(OBLIQUE[:3, 0]), 30, 6))) is None
    assert lesion_at(np.zeros_like(mask), scan, _world(scan, (6, 11, 3))) is None


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_the_region_holds_the_point_at_full_resolution(plane: str) -> None:
    volume = Volume(np.zeros((400, 300, 60), np.float32), np.diag([-0.8, 0.8, 2.5, 1.0]), "CT")
    slicing = radiological(volume, plane)
    numbers = np.arange(volume.array.size).reshape(volume.shape)
    count, height, width = slicing.shape(volume)
    row, column, across = slicing.spacing(volume)
    for voxel in ((200, 150, 30), (1, 299, 59), (399, 0, 0)):
        region = region_at(volume, slicing, _world(volume, voxel), 96)
        assert 0 <= region.slices[0] < region.slices[1] <= count
        part = slicing.extract(numbers)[slice(*region.slices)][(slice(None), *region.box)]
        assert numbers[voxel] in part
        # A square of 96 of the finest pixels, where the slice is as long.
        edges = [n * mm for n, mm in zip(region.shape, (row, column), strict=True)]
        for edge, whole in zip(edges, (height * row, width * column), strict=True):
            assert edge == pytest.approx(min(96 * min(row, column), whole), abs=max(row, column))
        assert (region.slices[1] - region.slices[0] - 1) * across <= 2 * DEPTH_MM
        weights = region.weights((height, width))
        assert weights.shape == region.shape
        assert weights.max() == 1
        assert weights.min() > 0
    # A slice that the square shows larger than it is already is magnified all the same.
    region = region_at(volume, slicing, _world(volume, (200, 150, 30)), 1024)
    longest = max(height * row, width * column)
    edge = max(region.shape[0] * row, region.shape[1] * column)
    assert edge == pytest.approx(longest / LEAST_ZOOM, abs=max(row, column))


def test_looking_closer_changes_the_region_alone(checkpoint: Path, scan: Volume) -> None:
    segmenter = VolumeSegmenter.from_checkpoint(checkpoint, precision="fp32")
    point = _world(scan, (20, 25, 4))
    common = {"prompts": ["left kidney", "lung nodule"], "presence": False, "point": point}
    results = []
    for settings in ({}, {"look_closer": True}, {"look_closer": True, "keep_lesions": "at_point"}):
        inferer = segmenter.inferer(RunSettings(**common, **settings), slices_together=4)
        with inferer.segment(scan, segmenter.network) as result:
            results.append(([result.probability(index) for index in (0, 1)], result.label_map(), result.at_point(0),
                            [each.kind for each in result.caveats]))  # fmt: skip
    (whole, *_), (closer, labels, at_point, caveats), (kept, kept_labels, _, kept_caveats) = results
    assert "looked closer" in caveats
    assert {"looked closer", "only at the point"} <= set(kept_caveats)
    slicing = radiological(scan, "axial")
    region = region_at(scan, slicing, point, segmenter.description.network.image_size)
    outside = np.ones(slicing.shape(scan), bool)
    outside[(slice(*region.slices), *region.box)] = False
    for one, other in zip(whole, closer, strict=True):
        before, after = slicing.extract(one), slicing.extract(other)
        np.testing.assert_array_equal(before[outside], after[outside])
        assert (before[~outside] != after[~outside]).mean() > 0.2
    # Only the component at the point is left, in the map as well; prompts compete for the voxels as before.
    assert at_point is not None
    expected = np.where(at_point.only(closer[0] >= 128), closer[0], 0)
    np.testing.assert_array_equal(kept[0], expected)
    assert ((kept_labels == 1) <= (kept[0] >= 128)).all()
    assert (kept_labels == 1).any()
    assert (kept_labels > 0).sum() < (labels > 0).sum()


def test_keeping_a_lesion_of_a_closer_look_changes_nothing_but_drops_the_others(checkpoint: Path, scan: Volume) -> None:
    segmenter = VolumeSegmenter.from_checkpoint(checkpoint, precision="fp32")
    first = _world(scan, (20, 25, 4))

    def closer(**settings: Any) -> tuple[np.ndarray, LesionAtPoint | None]:
        run = RunSettings(prompts=["left kidney"], presence=False, look_closer=True, **settings)
        with segmenter.inferer(run, slices_together=4).segment(scan, segmenter.network) as result:
            return result.probability(0), result.at_point(0)

    shown, _ = closer(point=first)
    voxels = np.argwhere(shown >= 128)
    second = _world(scan, voxels[np.abs(voxels - (20, 25, 4)).sum(axis=1).argmax()])
    kept, lesion = closer(point=second, keep_lesions="at_point", closer_point=first)
    assert lesion is not None
    np.testing.assert_array_equal(kept, lesion.only(np.where(shown >= 128, shown, 0)))
    around_the_second, _ = closer(point=second)
    assert (around_the_second != shown).any()


def test_a_point_outside_is_refused_before_the_work(checkpoint: Path, scan: Volume) -> None:
    segmenter = VolumeSegmenter.from_checkpoint(checkpoint, precision="fp32")
    inferer = segmenter.inferer(RunSettings(prompts=["left kidney"], point=(900, 0, 0)))
    with pytest.raises(ConfigError, match=r"the point \(900, 0, 0\) mm lies outside of the scan"):
        inferer.segment(scan, segmenter.network)


@pytest.mark.parametrize("settings", [{"least_zoom": 0.5}, {"least_zoom": "2"}, {"least_zoom": True}], ids=str)
def test_a_zoom_that_is_none(checkpoint: Path, settings: dict[str, object]) -> None:
    segmenter = VolumeSegmenter.from_checkpoint(checkpoint, precision="fp32")
    for more in ({"point": (0, 0, 0), "look_closer": True}, {}):
        with pytest.raises(ConfigError, match="least_zoom"):
            segmenter.inferer(RunSettings(prompts=["left kidney"], protocol_settings=settings, **more))
