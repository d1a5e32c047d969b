"""Means over volumes, worked out by hand."""

from __future__ import annotations

import json

import pytest

from boltzformer_monai.evaluation.bootstrap import Bootstrap
from boltzformer_monai.evaluation.volume_metrics import VolumeMeasures
from boltzformer_monai.evaluation.volume_summary import VolumeScore, summarise_volumes


def score(volume: str, target: str, measures: VolumeMeasures, patient: str = "") -> VolumeScore:
    return VolumeScore(volume, patient or f"p-{volume}", target, f"{target} in CT", measures)


def hit(dice: float, lesions: int = 1, found: int = 1, false: int = 0) -> VolumeMeasures:
    return VolumeMeasures(dice, dice / 2, 4.0 * (1 - dice), 3.0, 3.0, lesions, found, false)


MISSED = VolumeMeasures(0.0, 0.0, None, 3.0, 0.0, 2, 0, 0)
SILENT = VolumeMeasures(None, None, None, 0.0, 0.0, 0, 0, 0)
FALSE = VolumeMeasures(None, None, None, 0.0, 1.5, 0, 0, 3)
SCORES = [
    score("v1", "liver", hit(1.0)),
    score("v2", "liver", hit(0.75)),
    score("v3", "liver", hit(0.5)),
    score("v1", "lesion", hit(0.5, lesions=4, found=3, false=1)),
    score("v2", "lesion", MISSED),
    score("v3", "lesion", SILENT),
    score("v4", "lesion", FALSE),
]


def test_means_by_target() -> None:
    lesion = summarise_volumes(SCORES)["by_target"]["lesion"]
    assert (lesion["present"], lesion["absent"], lesion["unanswered"]) == (2, 2, 1)
    assert lesion["dice"]["mean"] == pytest.approx(0.25)  # the missed one counts as 0
    assert lesion["surface_dice"]["mean"] == pytest.approx(0.125)
    assert (lesion["hausdorff95_mm"]["mean"], lesion["hausdorff95_mm"]["cases"]) == (2.0, 1)  # it has no distance
    assert lesion["lesion_detection_rate"]["mean"] == pytest.approx(3 / 6)
    assert lesion["false_components"]["mean"] == pytest.approx((1 + 0 + 0 + 3) / 4)
    assert lesion["false_positive_rate"]["mean"] == 0.5
    assert lesion["false_positive_ml"]["mean"] == pytest.approx(0.75)


def test_a_target_that_is_always_present_has_no_false_positives() -> None:
    liver = summarise_volumes(SCORES)["by_target"]["liver"]
    assert liver["false_positive_rate"] == {"mean": None, "low": None, "high": None, "cases": 0, "patients": 0}


def test_over_all_targets_weigh_alike_in_overlap_and_cases_in_rates() -> None:
    overall = summarise_volumes(SCORES)["overall"]
    assert overall["dice"]["mean"] == pytest.approx((0.75 + 0.25) / 2)
    assert overall["hausdorff95_mm"]["mean"] == pytest.approx((1.0 + 2.0) / 2)
    assert overall["lesion_detection_rate"]["mean"] == pytest.approx(6 / 9)
    assert overall["false_components"]["mean"] == pytest.approx(4 / 7)
    assert (overall["present"], overall["absent"], overall["unanswered"]) == (5, 2, 1)


def test_intervals_are_by_patient() -> None:
    liver = summarise_volumes(SCORES)["by_target"]["liver"]["dice"]
    assert liver["low"] == 0.5
    assert liver["high"] == 1.0
    assert liver["patients"] == 3
    of_one = [score(case.volume, case.target, case.measures, patient="p") for case in SCORES]
    assert summarise_volumes(of_one)["by_target"]["liver"]["dice"]["low"] is None


def test_cases_say_everything_and_order_does_not_matter() -> None:
    summary = summarise_volumes(SCORES, bootstrap=Bootstrap(resamples=50, seed=3))
    assert summary == summarise_volumes(SCORES[::-1], bootstrap=Bootstrap(resamples=50, seed=3))
    assert summary["bootstrap"] == {"resamples": 50, "seed": 3, "level": 0.95}
    assert len(summary["cases"]) == 7
    assert summary["cases"][0] == {
        "volume": "v1",
        "patient": "p-v1",
        "target": "lesion",
        "prompt": "lesion in CT",
        "presence": None,
        "dice": 0.5,
        "surface_dice": 0.25,
        "hausdorff95_mm": 2.0,
        "truth_ml": 3.0,
        "predicted_ml": 3.0,
        "lesions": 4,
        "lesions_found": 3,
        "false_components": 1,
    }
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_no_volumes() -> None:
    summary = summarise_volumes([])
    assert summary["by_target"] == {}
    assert summary["overall"]["dice"]["mean"] is None
