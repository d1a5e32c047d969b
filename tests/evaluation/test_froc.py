"""FROC against one worked out by hand, and what a perfect, an empty and a useless prediction get."""

from __future__ import annotations

import json

import numpy as np
import pytest

from boltzformer_monai.evaluation.bootstrap import Bootstrap
from boltzformer_monai.evaluation.detection import ObjectScore
from boltzformer_monai.evaluation.froc import FALSE_POSITIVES, fractions, sensitivities, summarise_froc

# By hand: five objects in four scans; F is false. The three of 0.3 come together.
#   0.9 · 0.8 F · 0.7 · 0.6 F · 0.5 · 0.4 F · 0.3 · 0.3 F · 0.3 F
CONFIDENCE = np.array([0.3, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.3])
HIT = np.array([False, True, False, True, False, True, False, True, False])
BY_HAND = [1 / 5, 2 / 5, 3 / 5, 3 / 5, 4 / 5, 4 / 5, 4 / 5]  # at 0.5, 1, 2, 4, 8, 16, 32 false positives in all


def test_equal_to_one_by_hand() -> None:
    assert FALSE_POSITIVES == (0.125, 0.25, 0.5, 1, 2, 4, 8)
    assert sensitivities(CONFIDENCE, HIT, objects=5, scans=4) == pytest.approx(BY_HAND)
    assert sensitivities(CONFIDENCE, HIT, objects=5, scans=4, at=[0, 1.25]) == pytest.approx([1 / 5, 4 / 5])


def test_the_ends() -> None:
    nothing = np.empty(0)
    assert sensitivities(nothing, nothing.astype(bool), objects=3, scans=2) == [0] * 7
    assert sensitivities(np.ones(3), np.ones(3, bool), objects=3, scans=2) == [1] * 7
    assert sensitivities(np.ones(3), np.zeros(3, bool), objects=3, scans=2) == [0] * 7
    assert sensitivities(np.ones(3), np.zeros(3, bool), objects=0, scans=2) is None


def _object(patient: str, kind: str, confidence: float | None, found: bool, target: str = "lesion") -> ObjectScore:
    return ObjectScore("volumes", patient, patient, target, kind, 1, None, 4.0, confidence, found, found, False)  # type: ignore[arg-type]


OBJECTS = [_object(f"p{index % 4}", "truth", None, False) for index in range(5)] + [
    _object(f"p{index % 3}", "mask" if score >= 0.5 else "faint", float(score), bool(hit))
    for index, (score, hit) in enumerate(zip(CONFIDENCE, HIT, strict=True))
]
SCANS = [("lesion", f"p{index}") for index in range(4)]


def test_the_summary_of_a_target() -> None:
    summary = summarise_froc(SCANS, OBJECTS, per="volume", bootstrap=Bootstrap(resamples=200))
    assert summary is not None
    assert summary == json.loads(json.dumps(summary, allow_nan=False))
    assert summary["by_target"]["lesion"] == summary["overall"]
    entry = summary["overall"]["iou10"]
    assert (entry["scans"], entry["objects"]) == (4, 5)
    assert [each["mean"] for each in entry["sensitivity"]] == pytest.approx(BY_HAND)
    assert all(each["low"] <= each["mean"] <= each["high"] for each in entry["sensitivity"])
    assert entry["mean"]["mean"] == pytest.approx(np.mean(BY_HAND))
    assert (entry["mask_false_positives"], entry["mask_sensitivity"]) == (2 / 4, 3 / 5)
    assert dict(map(tuple, entry["curve"]))[1.0] == pytest.approx(3 / 5)
    assert [each["mean"] for each in summary["overall"]["iou50"]["sensitivity"]] == [0] * 7
    assert fractions(summary) == ["1/8", "1/4", "1/2", "1", "2", "4", "8"]


def test_a_scan_counts_for_every_target_it_was_searched_for() -> None:
    other = [_object("p0", "mask", 0.95, False, target="cyst")]
    scans = [*SCANS, *(("cyst", f"p{index}") for index in range(4))]
    summary = summarise_froc(scans, [*OBJECTS, *other], per="volume", bootstrap=Bootstrap(resamples=20))
    assert summary is not None
    cyst, overall = summary["by_target"]["cyst"]["iou0"], summary["overall"]["iou0"]
    assert (cyst["objects"], cyst["scans"], cyst["mask_sensitivity"], cyst["curve"]) == (0, 4, None, [])
    assert {each["mean"] for each in cyst["sensitivity"]} == {None}  # nothing to find is neither 0 nor 1
    assert (overall["objects"], overall["scans"]) == (5, 8)
    # The cyst comes first, and eight scans allow twice as many: 1, 2, 4, 8, 16, …
    assert [each["mean"] for each in overall["sensitivity"]] == pytest.approx(
        [1 / 5, 2 / 5, 3 / 5, 4 / 5, 4 / 5, 4 / 5, 4 / 5]
    )


def test_a_patient_without_objects_is_resampled_too() -> None:
    alone = [_object("p0", "truth", None, True), _object("p0", "mask", 0.9, True)]
    summary = summarise_froc(SCANS[:2], alone, per="volume", bootstrap=Bootstrap(resamples=50))
    assert summary is not None
    first = summary["overall"]["iou0"]["sensitivity"][0]
    assert first == {"mean": 1.0, "low": 1.0, "high": 1.0}  # resamples without p0 have no objects, and no value


def test_unknown_confidences_and_nothing_at_all() -> None:
    unknown = [_object("p0", "mask", None, True)]
    assert summarise_froc(SCANS, unknown, per="volume", bootstrap=Bootstrap()) is None
    nothing = summarise_froc([], [], per="volume", bootstrap=Bootstrap())
    assert nothing is not None
    assert nothing["overall"]["iou0"]["mask_false_positives"] is None
    json.dumps(nothing, allow_nan=False)
