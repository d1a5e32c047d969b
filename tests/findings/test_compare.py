"""Lesions of bodies that were moved by a known transform: which are matched, which are new, gone, grown and shrunk."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import label

from boltzformer_monai.errors import ConfigError, VolumeError
from boltzformer_monai.findings.compare import compare_targets
from boltzformer_monai.findings.measure import MeasuredTarget, measure_targets
from boltzformer_monai.findings.registration import Registration, register
from boltzformer_monai.io.segmentation import Segmentation
from boltzformer_monai.io.volume import Volume
from tests.findings.bodies import body, rigid

EARLIER = [((45, 10, 60), 9.0), ((-48, 10, 20), 7.0), ((-40, 0, 70), 6.0), ((20, 40, -60), 11.0), ((-60, 10, -50), 8.0)]
# Grown, stable, gone, shrunk, stable; and a new one near the first.
LATER = [((45, 10, 60), 12.0), ((-48, 10, 20), 7.0), ((20, 40, -60), 8.0), ((-60, 10, -50), 8.0), ((60, -5, 30), 6.0)]
MOVES = [rigid((0.0, 0.0, 0.0), (0, 0, 0)), rigid((0.1, -0.12, 0.2), (14, -9, 11))]


def targets(volume: Volume, mask: np.ndarray, name: str = "lesion") -> list[MeasuredTarget]:
    drawn = Segmentation(Volume(mask.astype(np.uint8), volume.affine), {"1": name})
    return list(measure_targets(drawn, volume))


@pytest.mark.slow
def test_organs_count_where_noise_body_and_air_do_not_tell_the_place() -> None:
    """A thin piece of a long body, its modality unknown: along it only organs tell where it is."""
    place = rigid((0.15, -0.1, 0.2), (20, -10, 7))
    of_scan: dict[str, Any] = {"noise": 40.0, "modality": "unknown", "patient": 1, "size_mm": (260, 220, 100)}
    before, _ = body(EARLIER, place=np.eye(4), **of_scan)
    after, _ = body(LATER, place=place, **of_scan)
    points = np.array([[*centre, 1.0] for centre, _ in EARLIER if abs(centre[2]) < 50])
    errors = np.linalg.norm((points @ (register(before, after).matrix - place).T)[:, :3], axis=1)
    assert errors.max() < 2


@pytest.mark.slow
@pytest.mark.parametrize("move", MOVES)
def test_lesions_of_a_moved_body_are_matched_and_judged(move: np.ndarray) -> None:
    before, old = body(EARLIER, place=np.eye(4))
    after, young = body(LATER, place=move, spacing=(2.8, 2.8, 3.2))
    registration = register(before, after)
    points = np.array([[*centre, 1.0] for centre, _ in EARLIER])
    errors = np.linalg.norm((points @ (registration.matrix - move).T)[:, :3], axis=1)
    assert errors.max() < 3
    assert (registration.detail or 0) > 0.95
    result = compare_targets(targets(before, old), targets(after, young), (before, after), registration, days=100)
    where = move[:3, :3] @ np.array([centre for centre, _ in LATER]).T + move[:3, 3:]
    status = {}
    for pair in result.pairs:
        row = int(np.linalg.norm(np.array(pair.earlier.centre_mm) - [centre for centre, _ in EARLIER], axis=1).argmin())
        column = int(np.linalg.norm(np.array(pair.later.centre_mm) - where.T, axis=1).argmin())
        assert EARLIER[row][0] == LATER[column][0]
        status[row] = pair.status
        assert pair.volume_ratio == pytest.approx((LATER[column][1] / EARLIER[row][1]) ** 3, rel=0.2)
        if pair.status == "grown":
            expected = 100 * math.log(2) / math.log(pair.volume_ratio)
            assert pair.doubling_days == pytest.approx(expected, rel=1e-4)
        else:
            assert pair.doubling_days is None or pair.volume_ratio > 1
    assert status == {0: "grown", 1: "stable", 3: "shrunk", 4: "stable"}
    ((_, gone),) = result.gone
    assert gone.centre_mm == pytest.approx(EARLIER[2][0], abs=2)
    ((_, new),) = result.new
    assert new.centre_mm == pytest.approx(where[:, 4], abs=2)
    assert result.as_dict()["counts"] == {"new": 1, "gone": 1, "grown": 1, "shrunk": 1, "stable": 2, "not_compared": 0}


@pytest.mark.slow
def test_other_patients_do_not_agree() -> None:
    before, _ = body(EARLIER, place=np.eye(4))
    noise = Volume(np.random.default_rng(0).normal(0, 100, before.shape).astype(np.float32), before.affine, "CT")
    with pytest.raises(VolumeError, match="do not agree"):
        register(before, noise)


def test_a_scan_lies_on_itself_whatever_it_shows() -> None:
    # Noise, in which an optimizer gets lost
    noise = np.random.default_rng(0).integers(0, 100, (30, 30, 20)).astype(np.float32)
    scan = Volume(noise, np.eye(4), "CT")
    found = register(scan, scan)
    assert found.similarity == pytest.approx(1)
    np.testing.assert_array_equal(found.matrix, np.eye(4))


def test_scans_of_one_frame_of_reference_are_not_registered() -> None:
    one, _ = body([], place=np.eye(4), spacing=(8, 8, 8))
    both = [Volume(one.array, one.affine, "CT", frame_of_reference="1.2.3") for _ in range(2)]
    found = register(*both)
    assert found.method == "same frame of reference"
    np.testing.assert_array_equal(found.matrix, np.eye(4))


def _grid(mask_at: list[tuple[int, ...]], *, spacing: float = 1.0, start: float = 0.0) -> tuple[Volume, np.ndarray]:
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = start
    volume = Volume(np.zeros((60, 60, 60), np.float32), affine, "CT")
    mask = np.zeros(volume.shape, bool)
    for x, y, z, size in mask_at:
        mask[x : x + size, y : y + size, z : z + size] = True
    return volume, mask


def _compare(one: Any, other: Any, **settings: Any) -> Any:
    same = Registration(np.eye(4), "same frame of reference")
    return compare_targets(targets(*one), targets(*other), (one[0], other[0]), same, **settings)


def test_overlap_goes_before_the_nearer_centre_and_nobody_has_two_partners() -> None:
    """A large lesion that fell apart keeps its larger part; the other part is new."""
    one = _grid([(10, 10, 10, 12)])
    other = _grid([(10, 10, 10, 7), (19, 19, 19, 3)])
    result = _compare(one, other)
    (pair,) = result.pairs
    assert (pair.later.voxels, pair.status, pair.overlap) == (343, "shrunk", 1.0)
    assert [lesion.voxels for _, lesion in result.new] == [27]
    result = _compare(other, one)
    assert (len(result.pairs), len(result.gone), result.pairs[0].status) == (1, 1, "grown")


def test_small_lesions_that_moved_a_little_are_partners_and_far_ones_are_not() -> None:
    result = _compare(_grid([(10, 10, 10, 3), (40, 40, 40, 3)]), _grid([(15, 10, 10, 3), (40, 40, 53, 3)]))
    (pair,) = result.pairs
    assert (pair.distance_mm, pair.overlap) == (5, 0)
    assert (len(result.new), len(result.gone)) == (1, 1)


def test_a_fine_grid_and_a_coarse_one_share_what_they_share() -> None:
    fine, coarse = _grid([(20, 20, 20, 4)]), _grid([(9, 9, 9, 4)], spacing=2.0, start=0.5)
    for pair in (_compare(fine, coarse).pairs[0], _compare(coarse, fine).pairs[0]):
        assert pair.overlap == 1


def test_what_the_other_scan_does_not_show_is_neither_new_nor_gone() -> None:
    one = _grid([(5, 5, 5, 3), (30, 30, 30, 3)])
    other = _grid([(10, 10, 10, 3), (50, 50, 50, 3)], start=20.0)
    result = _compare(one, other)
    assert (len(result.pairs), len(result.new), len(result.gone)) == (1, 0, 0)
    assert [(lesion.number, time) for _, lesion, time, _ in result.not_compared] == [(2, "earlier"), (1, "later")]


def test_targets_are_matched_by_name_and_a_missing_one_is_not_judged() -> None:
    one, other = _grid([(5, 5, 5, 3)]), _grid([(5, 5, 5, 3)])
    same = Registration(np.eye(4), "same frame of reference")
    scans = (one[0], other[0])
    result = compare_targets(targets(*one, "Liver_Lesion"), targets(*other, "liver lesion"), scans, same)
    assert len(result.pairs) == 1
    result = compare_targets(targets(*one, "cyst"), targets(*other, "liver lesion"), scans, same)
    assert (result.pairs, result.new, result.gone) == ([], [], [])
    assert [why for *_, why in result.not_compared] == [
        "the target is not in the later annotation",
        "the target is not in the earlier annotation",
    ]


def test_segments_of_one_name_are_one_target_and_none_of_their_lesions_is_lost() -> None:
    """A DICOM SEG may have a segment for every lesion, all of them called "Lesion"."""
    one, other = _grid([(5, 5, 5, 3), (40, 40, 40, 4)]), _grid([(5, 5, 5, 3), (40, 40, 40, 6), (20, 20, 20, 2)])
    same = Registration(np.eye(4), "same frame of reference")
    sides = []
    for volume, mask in (one, other):
        labels, _ = label(mask)
        segments = {str(value): str(value) for value in np.unique(labels[labels > 0]).tolist()}
        drawn = Segmentation(
            Volume(labels.astype(np.uint8), volume.affine), {}, segments, dict.fromkeys(segments, "Lesion")
        )
        sides.append(list(measure_targets(drawn, volume)))
    result = compare_targets(*sides, (one[0], other[0]), same)
    assert {(pair.earlier.voxels, pair.later.voxels, pair.status) for pair in result.pairs} == {
        (27, 27, "stable"),
        (64, 216, "grown"),
    }
    assert [pair.earlier.number for pair in result.pairs] == [1, 2]
    assert [(lesion.voxels, lesion.number) for _, lesion in result.new] == [(8, 3)]


def test_an_empty_label_map_says_that_all_lesions_are_gone() -> None:
    one, empty = _grid([(5, 5, 5, 3), (30, 30, 30, 3)]), _grid([])
    same = Registration(np.eye(4), "same frame of reference")
    result = compare_targets(targets(*one), [], (one[0], empty[0]), same)
    assert result.counts == {"new": 0, "gone": 2, "grown": 0, "shrunk": 0, "stable": 0, "not_compared": 0}
    result = compare_targets([], targets(*one), (empty[0], one[0]), same)
    assert (result.counts["new"], result.counts["gone"]) == (2, 0)


def test_settings_that_make_no_sense_are_refused() -> None:
    one = _grid([(5, 5, 5, 3)])
    with pytest.raises(ConfigError, match="above 0"):
        _compare(one, one, change=0)
    with pytest.raises(ConfigError, match="swap"):
        _compare(one, one, days=-3)


def test_many_lesions_are_compared() -> None:
    random = np.random.default_rng(0)
    places = [(*place, 3) for place in np.argwhere(np.ones((10, 10, 10))).tolist() if random.random() < 0.8]
    where = [(x * 6, y * 6, z * 6, size) for x, y, z, size in places]
    result = _compare(_grid(where), _grid(where[:-20]))
    assert (len(result.pairs), len(result.gone)) == (len(where) - 20, 20)
    assert {pair.status for pair in result.pairs} == {"stable"}
    assert all(pair.distance_mm == 0 for pair in result.pairs)
