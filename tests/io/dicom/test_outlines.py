from __future__ import annotations

import time

import numpy as np
import pytest
from matplotlib.path import Path as Polygon

from boltzformer_monai.io.dicom.contours import fill_contours, fill_region
from boltzformer_monai.io.dicom.outlines import outlines

_RING_WITH_ISLAND = np.pad(np.pad(np.pad(np.ones((1, 1), bool), 1), 1, constant_values=True), 1)


def _mask(*rows: str) -> np.ndarray:
    return np.array([[letter == "#" for letter in row] for row in rows])


def _area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _winding(polygon: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """How often a polygon runs round each pixel centre: the sum of the angles in which it is seen from there."""
    centres = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)[..., None, :]
    x, y = np.moveaxis(polygon - centres, -1, 0)
    turn = np.arctan2(y, x)
    return np.rint(_wrapped(np.roll(turn, -1, axis=-1) - turn).sum(axis=-1) / (2 * np.pi)).astype(int)


def _wrapped(angle: np.ndarray) -> np.ndarray:
    return (angle + np.pi) % (2 * np.pi) - np.pi


MASKS = {
    "one pixel": _mask("#"),
    "touching at a corner": _mask("#.", ".#"),
    "touching at a side": _mask("##.", ".##"),
    "a hole": _mask("###", "#.#", "###"),
    "two holes in a row": _mask("#####", "#.#.#", "#####"),
    "holes that touch at a corner": _mask("#####", "#.###", "##.##", "#####"),
    "a hole that touches the outside at a corner": _mask("###.", "#.##", "##.#", "####"),
    "an island in a hole": _RING_WITH_ISLAND,
    "nothing": np.zeros((3, 4), bool),
}


@pytest.mark.parametrize("name", MASKS)
def test_every_rule_of_filling_gives_the_mask_back(name: str) -> None:
    mask = MASKS[name]
    found = outlines(mask)
    if not found:
        assert not mask.any()
        return
    windings = [_winding(polygon, mask.shape) for polygon in found]
    assert {int(each) for each in np.unique(windings)} <= {0, 1, -1}  # no polygon runs round a pixel twice
    np.testing.assert_array_equal(np.any(windings, axis=0), mask)  # nonzero winding, united
    np.testing.assert_array_equal(np.sum(np.abs(windings), axis=0), mask)  # and no pixel is in two of them
    np.testing.assert_array_equal(fill_contours(found, mask.shape), mask)  # even-odd over all of them
    region = fill_region(found, mask.shape)
    np.testing.assert_array_equal(region.mask, mask)
    assert (region.repeated, region.crossing) == (0, 0)
    assert sum(map(_area, found)) == mask.sum()


def test_parts_and_corners_are_counted() -> None:
    assert [len(each) for each in outlines(MASKS["one pixel"])] == [4]
    assert [len(each) for each in outlines(np.ones((5, 9), bool))] == [4]
    assert len(outlines(MASKS["touching at a corner"])) == 2
    assert len(outlines(MASKS["touching at a side"])) == 1
    assert len(outlines(MASKS["a hole"])) == 1
    assert len(outlines(MASKS["an island in a hole"])) == 2


def test_random_masks_come_back_by_an_independent_filler() -> None:
    random = np.random.default_rng(18)
    for _ in range(200):
        mask = random.random(tuple(random.integers(1, 14, 2))) < random.choice([0.2, 0.5, 0.8, 0.95])
        found = outlines(mask)
        centres = np.argwhere(mask | True)
        times = sum((Polygon(each).contains_points(centres).astype(int) for each in found), np.zeros(mask.size, int))
        np.testing.assert_array_equal(times.reshape(mask.shape), mask)
        assert sum(map(_area, found)) == pytest.approx(mask.sum())
        for each in found:
            assert _distance(centres, each) >= 0.25 - 1e-9


def _distance(points: np.ndarray, polygon: np.ndarray) -> float:
    """The least distance of points from the sides of a polygon."""
    along = np.roll(polygon, -1, axis=0) - polygon
    away = points[:, None] - polygon
    share = np.clip((away * along).sum(axis=2) / (along**2).sum(axis=1), 0, 1)
    return float(np.hypot(*np.moveaxis(away - share[..., None] * along, -1, 0)).min())


def test_the_time_is_proportional_to_parts_and_holes() -> None:
    """Rings with holes and channels: four times as many must not take sixteen times as long."""
    ring = np.pad(MASKS["two holes in a row"], ((0, 1), (0, 1)))

    def seconds(count: int) -> float:
        mask = np.tile(ring, (count, count))
        best = np.inf
        for _ in range(3):
            start = time.process_time()
            assert len(outlines(mask)) == count**2
            best = min(best, time.process_time() - start)
        return float(best)

    assert seconds(60) < 8 * seconds(30)
