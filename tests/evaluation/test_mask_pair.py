"""Masks of cubes whose distances are known, and every kind of empty mask."""

from __future__ import annotations

import numpy as np
import pytest

from boltzformer_monai.errors import ConfigError, DatasetError
from boltzformer_monai.evaluation.mask_pair import MaskPair, dice
from boltzformer_monai.evaluation.metrics import measure, metrics_for

SHAPE = (20, 24, 28)


def _cube(start: tuple[int, int, int], size: int = 6) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(first, first + size) for first in start)] = True
    return mask


def _pair(predicted: np.ndarray, truth: np.ndarray, **changes: object) -> MaskPair:
    return MaskPair(prediction=predicted, truth=truth, **{"spacing": (5.0, 1.0, 2.0), **changes})


def _values(predicted: np.ndarray, truth: np.ndarray) -> list[object]:
    """All metrics of a volume in the main table's order."""
    return list(measure(_pair(predicted, truth), [each for each in metrics_for(3) if not each.section]).values())


@pytest.mark.parametrize(
    ("counts", "expected"),
    [((5, 5, 5), 1.0), ((0, 5, 5), 0.0), ((1, 1, 3), 0.5), ((0, 0, 7), 0.0), ((0, 7, 0), 0.0), ((0, 0, 0), None)],
)
def test_dice(counts: tuple[int, int, int], expected: float | None) -> None:
    assert dice(*counts) == expected


@pytest.mark.parametrize("counts", [(6, 5, 9), (6, 9, 5), (-1, 5, 5)])
def test_impossible_counts_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(DatasetError, match="contradict"):
        dice(*counts)


def test_masks_of_a_slice() -> None:
    predicted, truth = np.random.default_rng(0).random((2, 30, 40)) < 0.3
    pair = _pair(predicted, truth, spacing=(1.0, 2.0))
    both = int((predicted & truth).sum())
    assert pair.dice == pytest.approx(1 / (1 + ((predicted ^ truth).sum()) / (2 * both)))
    assert (pair.truth_size, pair.predicted_size, pair.intersection) == (truth.sum(), predicted.sum(), both)
    assert pair.surface_dice > 0.9
    assert pair.hausdorff95_mm > 0


def test_a_perfect_prediction() -> None:
    mask = _cube((4, 5, 6))
    pair = _pair(mask, mask)
    assert (pair.truth_ml, pair.predicted_ml) == (2.16, 2.16)
    assert _values(mask, mask) == [1.0, 1.0, 0.0, 0.0, (1, 1), 0, None, None]


@pytest.mark.parametrize(("axis", "mm"), [(0, 5.0), (1, 1.0), (2, 2.0)])
def test_distances_are_in_mm_along_every_axis(axis: int, mm: float) -> None:
    truth = _cube((4, 5, 6))
    predicted = np.roll(truth, 1, axis)
    found = _pair(predicted, truth)
    assert found.dice == pytest.approx(5 / 6)
    assert found.hausdorff95_mm == pytest.approx(mm)
    assert found.surface_dice == 1.0 if mm <= 2 else found.surface_dice < 1


def test_the_tolerance_decides_which_surface_counts() -> None:
    truth = _cube((4, 5, 6), 2)  # every voxel of a cube of edge 2 is surface
    predicted = np.roll(truth, 1, 0)
    # Half of the prediction lies on the truth, and the other way round; the rest is 5 mm away.
    assert _pair(predicted, truth, tolerance_mm=4.9).surface_dice == pytest.approx(0.5)
    assert _pair(predicted, truth, tolerance_mm=5).surface_dice == 1.0


def test_the_95th_percentile_ignores_a_stray_voxel_but_the_components_do_not() -> None:
    truth = _cube((2, 2, 2), 14)
    predicted = truth.copy()
    predicted[19, 23, 27] = True
    found = _pair(predicted, truth)
    assert found.hausdorff95_mm == 0.0
    assert found.false_components == 1
    assert found.lesions == (1, 1)


def test_objects_at_the_border_of_the_volume_have_a_surface_there() -> None:
    corner = _cube((0, 0, 0))
    inside = _cube((5, 5, 5))
    moved = np.roll(inside, 1, 0)
    assert _values(np.roll(corner, 1, 0), corner) == _values(moved, inside)


def test_a_crop_that_holds_both_masks_changes_nothing() -> None:
    truth, predicted = _cube((4, 5, 6)), _cube((7, 6, 4))
    box = (slice(4, 13), slice(5, 12), slice(4, 12))
    assert _values(predicted[box], truth[box]) == _values(predicted, truth)


def test_absent_and_not_predicted() -> None:
    empty = np.zeros(SHAPE, bool)
    pair = _pair(empty, empty)
    assert (pair.present, pair.predicted, pair.dice, pair.truth_ml) == (False, False, None, 0)
    assert _values(empty, empty) == [None, None, None, None, None, 0, 0, 0]


def test_absent_and_predicted() -> None:
    pair = _pair(_cube((4, 5, 6)), np.zeros(SHAPE, bool))
    assert (pair.present, pair.predicted) == (False, True)
    assert _values(pair.prediction, pair.truth) == [None, None, None, None, None, 1, 1, 2.16]


def test_present_and_missed() -> None:
    pair = _pair(np.zeros(SHAPE, bool), _cube((4, 5, 6)))
    assert (pair.present, pair.predicted) == (True, False)
    assert _values(pair.prediction, pair.truth) == [0.0, 0.0, None, 1.0, (0, 1), 0, None, None]


def test_present_and_predicted_elsewhere() -> None:
    found = _pair(_cube((13, 5, 6)), _cube((4, 5, 6)))
    assert (found.dice, found.lesions, found.false_components) == (0.0, (0, 1), 1)
    assert found.hausdorff95_mm > 5


def test_lesions_are_counted_one_by_one() -> None:
    truth = _cube((0, 0, 0), 3) | _cube((8, 8, 8), 3) | _cube((14, 14, 14), 3)
    predicted = _cube((2, 2, 2), 1) | _cube((8, 8, 8), 1) | _cube((10, 10, 10), 1) | _cube((0, 20, 20), 2)
    found = _pair(predicted, truth)
    assert (found.lesions, found.false_components) == ((2, 3), 1)


def test_components_that_touch_at_a_corner_are_one() -> None:
    truth = _cube((4, 4, 4), 2) | _cube((6, 6, 6), 2)
    assert _pair(truth, truth).lesions == (1, 1)


def test_the_diameter_is_that_of_a_ball_or_circle_of_the_size() -> None:
    truth = _cube((4, 5, 6), 4) | _cube((12, 12, 12), 2)
    pair = _pair(truth, truth)
    assert pair.diameter_mm == pytest.approx((6 * 64 * 10 / np.pi) ** (1 / 3))  # of the larger component, 64 × 10 mm³
    flat = _pair(truth[5], truth[5], spacing=(1.0, 2.0))
    assert flat.diameter_mm == pytest.approx(2 * (16 * 2 / np.pi) ** 0.5)
    assert _pair(truth[5], truth[5], spacing=(1.0, 2.0), in_mm=False).diameter_mm is None
    assert _pair(truth, np.zeros_like(truth)).diameter_mm is None


def test_what_cannot_be_compared_is_refused() -> None:
    mask = _cube((4, 5, 6))
    with pytest.raises(DatasetError, match="one shape"):
        _pair(mask[1:], mask)
    with pytest.raises(DatasetError, match="one shape"):
        _pair(mask.astype(np.uint8), mask)
    for spacing in ((1.0, 1.0), (0.0, 1.0, 1.0), (float("nan"), 1.0, 1.0)):
        with pytest.raises(DatasetError, match="spacing"):
            _pair(mask, mask, spacing=spacing)
    for tolerance in (0, -1.0, float("inf"), "2", True):
        with pytest.raises(ConfigError, match="tolerance"):
            _pair(mask, mask, tolerance_mm=tolerance)


def _surface(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Voxels with a neighbour by face outside of the mask, in mm."""
    padded = np.pad(mask, 1)
    inner = padded.copy()
    for axis in range(3):
        for step in (1, -1):
            inner &= np.roll(padded, step, axis)
    return np.argwhere(padded & ~inner) * spacing


def test_surfaces_agree_with_all_pairs_of_distances() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        truth, predicted = np.kron(rng.random((2, 4, 5, 6)) < 0.4, np.ones((1, 3, 2, 3))).astype(bool)
        spacing = rng.uniform(0.5, 5, 3)
        pairs = _surface(predicted, spacing)[:, None] - _surface(truth, spacing)[None]
        distances = np.sqrt((pairs**2).sum(-1))
        ways = distances.min(0), distances.min(1)
        found = _pair(predicted, truth, spacing=tuple(spacing))
        assert found.surface_dice == pytest.approx((np.concatenate(ways) <= 2).mean(), abs=1e-5)
        assert found.hausdorff95_mm == pytest.approx(max(np.quantile(way, 0.95) for way in ways), abs=1e-3)
