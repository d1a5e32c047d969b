"""Components matched one to one: the obvious cases, all matchings tried, and what panoptica found."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.evaluation.components import IOU_THRESHOLDS, Components, find_components
from boltzformer_monai.evaluation.mask_pair import MaskPair
from boltzformer_monai.evaluation.metrics import METRICS, measure

RECORDING = Path(__file__).with_name("panoptica.json")
NAMES = ("precision", "recall", "f1", "sq", "pq")


def _boxes(shape: tuple[int, ...], boxes: list[list[int]]) -> np.ndarray:
    """A mask of boxes, each its first corner and its size."""
    mask = np.zeros(shape, bool)
    for box in boxes:
        corner, size = box[: len(shape)], box[len(shape) :]
        mask[tuple(slice(start, start + length) for start, length in zip(corner, size, strict=True))] = True
    return mask


def _values(prediction: np.ndarray, truth: np.ndarray, suffix: str) -> list[float | None]:
    """Precision, recall, F1, SQ and PQ of a case."""
    masks = MaskPair(prediction=prediction, truth=truth, spacing=(1.0,) * truth.ndim)
    values: dict[str, Any] = measure(masks, [METRICS[truth.ndim, f"{name}_{suffix}"] for name in NAMES])
    pairs = list(values.values())
    return [None if pair is None else pair[0] / pair[1] for pair in pairs]


CUBE = _boxes((20, 20, 20), [[4, 4, 4, 6, 6, 6]])
EMPTY = np.zeros_like(CUBE)


@pytest.mark.parametrize("suffix", IOU_THRESHOLDS)
def test_obvious_predictions(suffix: str) -> None:
    assert _values(CUBE, CUBE, suffix) == [1, 1, 1, 1, 1]
    assert _values(CUBE[6], CUBE[6], suffix) == [1, 1, 1, 1, 1]
    assert _values(EMPTY, CUBE, suffix) == [None, 0, 0, None, 0]  # nothing to be right or wrong, nothing matched
    assert _values(CUBE, EMPTY, suffix) == [0, None, 0, None, 0]
    assert _values(EMPTY, EMPTY, suffix) == [None] * 5
    assert _values(np.roll(CUBE, 10, 0), CUBE, suffix) == [0, 0, 0, None, 0]
    assert _values(np.roll(CUBE, 1, 0), CUBE, suffix) == pytest.approx([1, 1, 1, 5 / 7, 5 / 7])


def test_the_iou_must_exceed_the_threshold() -> None:
    half = np.roll(CUBE, 3, 0)  # 3 of 9 layers
    assert _values(half, CUBE, "iou10") == pytest.approx([1, 1, 1, 1 / 3, 1 / 3])
    assert _values(half, CUBE, "iou50") == [0, 0, 0, None, 0]
    two, one = _boxes((4, 4), [[0, 0, 1, 2]]), _boxes((4, 4), [[0, 0, 1, 1]])
    assert _values(one, two, "iou50") == [0, 0, 0, None, 0]  # exactly 0.5


def test_a_component_has_one_partner_at_most() -> None:
    truth = _boxes((1, 40), [[0, 0, 1, 10], [0, 20, 1, 10]])
    bridge = _boxes((1, 40), [[0, 0, 1, 30]])  # one component over both
    assert _values(bridge, truth, "iou0") == pytest.approx([1, 0.5, 2 / 3, 1 / 3, 2 / 9])
    parts = _boxes((1, 40), [[0, 0, 1, 4], [0, 5, 1, 5]])  # two on the first
    assert _values(parts, truth, "iou0") == pytest.approx([0.5, 0.5, 0.5, 0.5, 0.25])


def test_the_matching_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    several = 0
    for _ in range(200):
        pairs = np.array([(i, j) for i in range(4) for j in range(4) if rng.random() < 0.5], int).reshape(-1, 2)
        iou = rng.random(len(pairs)) * 0.4
        weights = np.zeros((4, 4))
        weights[pairs[:, 0], pairs[:, 1]] = np.where(iou > 0.1, iou, 0)
        best = max(sum(weights[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(4)))
        found = Components(np.ones(4), np.ones(4), pairs, iou).match(0.1)
        assert found.iou.sum() == pytest.approx(best)
        assert (found.iou > 0.1).all()
        assert len(set(found.predicted)) == len(set(found.truth)) == len(found.iou)
        several += len(found.iou) > 2
    assert several > 20


def test_components_are_joined_by_corners_in_2d_and_3d() -> None:
    for dimensions in (2, 3):
        mask = np.zeros((6,) * dimensions, bool)
        mask[(1,) * dimensions] = mask[(2,) * dimensions] = mask[(5,) * dimensions] = True
        assert sorted(find_components(mask, mask).truth) == [1, 2]


def test_a_volume_of_noise_is_matched_in_no_time() -> None:
    truth, prediction = np.random.default_rng(0).random((2, 48, 48, 48)) < 0.02
    found = find_components(prediction, truth)
    assert len(found.truth) > 1000
    assert 0 < len(found.match(0).iou) <= len(found.pairs)


def test_equal_to_what_panoptica_found() -> None:
    """200 random volumes, see ``record_panoptica.py``."""
    recorded = json.loads(RECORDING.read_text(encoding="utf-8"))
    assert len(recorded["cases"]) == 200
    matched = 0
    for case in recorded["cases"]:
        prediction, truth = (_boxes(tuple(recorded["shape"]), case[name]) for name in ("prediction", "truth"))
        for suffix, (tp, predicted, true, sq, pq) in case["found"].items():
            matched += tp
            values = _values(prediction, truth, suffix)
            expected = [tp / predicted if predicted else None, tp / true if true else None]
            expected += [2 * tp / (predicted + true) if predicted + true else None]
            expected += [sq if tp else None, pq if predicted + true else None]
            assert values == pytest.approx(expected, abs=1e-9), (case, suffix)
    assert matched > 1000
