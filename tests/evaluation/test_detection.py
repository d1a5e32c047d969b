"""Objects one by one: candidates of a mask and of what is too faint for it, their sizes, and tables that read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.errors import DatasetError
from boltzformer_monai.evaluation.bootstrap import Bootstrap
from boltzformer_monai.evaluation.detection import (
    ObjectScore,
    find_objects,
    found_by_size,
    highest_confidence,
    read_objects_csv,
    write_objects_csv,
)
from boltzformer_monai.evaluation.mask_pair import MaskPair


def _find(levels: np.ndarray, truth: np.ndarray, *, known: bool = True, **settings: Any) -> list[ObjectScore]:
    """Objects of one slice or volume, of which the mask is the levels from 128 on."""
    masks = MaskPair(prediction=levels >= 128, truth=truth, spacing=(2.0,) * truth.ndim, **settings)
    part = "slices" if truth.ndim == 2 else "volumes"
    return find_objects(masks, part=part, case="c", patient="p", target="t", levels=levels if known else None)  # type: ignore[arg-type]


@pytest.fixture
def row() -> tuple[np.ndarray, np.ndarray]:
    """Levels and truth of 2 × 30 pixels: an object with two candidates, a faint one, a missed one, a false one."""
    levels, truth = np.zeros((2, 30), np.uint8), np.zeros((2, 30), bool)
    truth[0, 0:6] = True
    levels[0, 0:2], levels[0, 3:7] = 200, 150  # IoU 2/6 and 3/7
    levels[0, 2] = levels[0, 7] = 60  # the soft edge of both: no candidate of its own
    truth[:, 10:12] = True
    levels[:, 10:13] = 60
    truth[0, 16] = True
    levels[1, 20:22] = 255
    levels[1, 25] = 25  # below FAINT
    return levels, truth


def test_objects_and_candidates(row: tuple[np.ndarray, np.ndarray]) -> None:
    found = _find(*row)
    truth = [each for each in found if each.kind == "truth"]
    assert [(each.size, each.iou0, each.iou10, each.iou50) for each in truth] == [
        (6, True, True, False),
        (4, False, False, False),  # found by a faint candidate only, which is not in the mask
        (1, False, False, False),
    ]
    assert [each.area_fraction for each in truth] == [6 / 60, 4 / 60, 1 / 60]
    assert truth[0].diameter_mm == pytest.approx(2 * (6 * 4 / np.pi) ** 0.5)
    candidates = [each for each in found if each.kind != "truth"]
    assert [(each.kind, each.size, each.iou0, each.iou10, each.iou50) for each in candidates] == [
        ("mask", 2, False, False, False),  # the false one is the surest
        ("mask", 2, True, True, False),
        ("mask", 4, False, False, False),  # the object is taken
        ("faint", 6, True, True, True),
    ]
    assert [each.confidence for each in candidates] == [255.5 / 256, 200.5 / 256, 150.5 / 256, 60.5 / 256]
    assert highest_confidence(found) == 255.5 / 256
    assert {(each.part, each.case, each.patient, each.target) for each in found} == {("slices", "c", "p", "t")}


def test_a_volume_and_pictures_without_a_scale(row: tuple[np.ndarray, np.ndarray]) -> None:
    levels, truth = (np.stack([each, np.zeros_like(each)]) for each in row)
    flat, solid = _find(*row), _find(levels, truth)
    for one, other in zip(flat, solid, strict=True):
        assert other == replace(one, part="volumes", area_fraction=None, diameter_mm=other.diameter_mm)
    assert solid[0].diameter_mm == pytest.approx((6 * 6 * 8 / np.pi) ** (1 / 3))
    assert {each.diameter_mm for each in _find(*row, in_mm=False)} == {None}


def test_without_probabilities_the_mask_alone_counts(row: tuple[np.ndarray, np.ndarray]) -> None:
    found = _find(*row, known=False)
    candidates = [each for each in found if each.kind != "truth"]
    assert [(each.kind, each.size, each.iou0) for each in candidates] == [
        ("mask", 2, False),
        ("mask", 4, True),  # the partner, one to one
        ("mask", 2, False),
    ]
    assert {each.confidence for each in found} == {None}
    assert highest_confidence(found) is None


def test_empty_masks_have_no_objects() -> None:
    nothing = np.zeros((5, 5), np.uint8)
    assert _find(nothing, nothing > 0) == []
    assert [each.kind for each in _find(nothing, nothing == 0)] == ["truth"]


def test_found_by_size(row: tuple[np.ndarray, np.ndarray]) -> None:
    found = found_by_size(_find(*row), bootstrap=Bootstrap())
    assert (found["from_1_percent"]["iou0"]["mean"], found["from_1_percent"]["iou0"]["total"]) == (1 / 3, 3)
    assert found["below_1_percent"]["iou0"]["mean"] is None
    assert [found[name]["iou10"]["mean"] for name in ("below_3_mm", "3_to_6_mm", "6_to_10_mm")] == [0, 0.5, None]
    volumes = [replace(each, area_fraction=None) for each in _find(*row)]
    assert list(found_by_size(volumes, bootstrap=Bootstrap()))[0] == "below_3_mm"
    assert found_by_size([], bootstrap=Bootstrap()) == {}


def test_the_table_reads_back(tmp_path: Path, row: tuple[np.ndarray, np.ndarray]) -> None:
    found = [*_find(*row), replace(_find(*row, in_mm=False)[0], target='=odd, "name"', area_fraction=None)]
    path = write_objects_csv(found, tmp_path / "deep" / "objects.csv")
    assert read_objects_csv(path) == found
    assert "'=odd" in path.read_text()


@pytest.mark.parametrize("text", ["", "part,case\n", "{head}\nslices,c,p,t,truth,x,,,,1,1,1\n", "{head}\nslices,c\n"])
def test_a_damaged_table_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = write_objects_csv([], tmp_path / "objects.csv")
    path.write_text(text.replace("{head}", path.read_text().strip()))
    with pytest.raises(DatasetError, match=r"objects\.csv"):
        read_objects_csv(path)
