"""Means over slices and volumes against numbers worked out by hand, and tables that read back."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.errors import DatasetError
from boltzformer_monai.evaluation.bootstrap import Bootstrap
from boltzformer_monai.evaluation.mask_pair import MaskPair
from boltzformer_monai.evaluation.metrics import METRICS, Metric, measure, metrics_for
from boltzformer_monai.evaluation.summary import SliceScore, VolumeScore, summarise_slices, summarise_volumes
from boltzformer_monai.evaluation.tables import markdown_table, read_scores_csv, write_metrics_json, write_scores_csv


def _score(
    target: str, truth: int, predicted: int, intersection: int, *, volume: str = "v1", index: int = 0, area: float = -1
) -> SliceScore:
    """A slice of 100 × 100 pixels with these counts."""
    prediction, reference = np.zeros((2, 100, 100), bool)
    reference.flat[:truth] = True
    prediction.flat[truth - intersection : truth - intersection + predicted] = True
    masks = MaskPair(prediction=prediction, truth=reference, spacing=(1.0, 1.0))
    return SliceScore(
        image=f"{volume}_axial_{index:04d}.png",
        volume=volume,
        patient=f"p-{volume}",
        target=target,
        prompt=f"{target} in abdominal CT",
        area_fraction=truth / 10_000 if area < 0 else area,
        truth=masks.truth_size,
        predicted=masks.predicted_size,
        intersection=masks.intersection,
        values=measure(masks, metrics_for(2)),
    )


# liver: Dice 0.8 and 0.5 in v1, 1.0 in v2; lesion: 0 (missed) and 0.4; two slices without lesion, one false positive.
SLICES = [
    _score("liver", 500, 500, 400, index=0),
    _score("liver", 100, 300, 100, index=1),
    _score("liver", 200, 200, 200, volume="v2", index=0),
    _score("lesion", 10, 30, 0, index=0),
    _score("lesion", 20, 30, 10, index=1),
    _score("lesion", 0, 5, 0, index=2),
    _score("lesion", 0, 0, 0, volume="v2", index=0),
]


def test_means_of_slices() -> None:
    summary = summarise_slices(SLICES)
    liver, lesion, overall = summary["by_target"]["liver"], summary["by_target"]["lesion"], summary["overall"]
    assert liver["dice"]["mean"] == pytest.approx((0.8 + 0.5 + 1.0) / 3)
    assert lesion["dice"]["mean"] == pytest.approx((0 + 0.4) / 2)
    assert overall["dice"]["mean"] == pytest.approx(((0.8 + 0.5 + 1.0) / 3 + 0.2) / 2)  # targets weigh alike
    assert (lesion["present"], lesion["absent"], liver["present"], overall["present"]) == (2, 2, 3, 5)
    assert (lesion["missed"]["mean"], liver["missed"]["mean"], overall["missed"]["mean"]) == (0.5, 0.0, 0.2)
    assert lesion["false_positive_rate"]["mean"] == overall["false_positive_rate"]["mean"] == 0.5
    assert liver["false_positive_rate"]["cases"] == 0
    assert overall["dice"]["low"] < overall["dice"]["mean"] < overall["dice"]["high"]  # two patients


def test_strata_follow_the_area_fraction_and_one_percent_is_large() -> None:
    strata = summarise_slices(SLICES)["strata"]
    assert strata["below_1_percent"]["dice"]["mean"] == pytest.approx(0.2)
    assert strata["from_1_percent"]["dice"]["mean"] == pytest.approx((0.8 + 0.5 + 1.0) / 3)  # 100 pixels are 1 %
    assert {name: entry["present"] for name, entry in strata.items()} == {
        "below_1_percent": 2,
        "below_0.01_percent": 0,
        "0.01_to_0.1_percent": 0,
        "0.1_to_1_percent": 2,
        "from_1_percent": 3,
    }
    two = summarise_slices([*SLICES, _score("aorta", 5, 5, 5)])["strata"]["below_1_percent"]
    assert two["dice"]["mean"] == pytest.approx((0 + 0.4 + 1) / 3)  # instances weigh alike, not targets


def test_every_size_lies_in_one_stratum_and_edges_belong_to_the_larger() -> None:
    areas = (0.00009, 0.0001, 0.0009, 0.001, 0.009, 0.01, 1.0)
    slices = [_score("lesion", 9, 9, 9, index=i, area=area) for i, area in enumerate(areas)]
    strata = summarise_slices(slices, bootstrap=Bootstrap(resamples=2))["strata"]
    assert [entry["present"] for entry in strata.values()] == [5, 1, 2, 2, 2]
    assert strata["below_0.01_percent"]["dice"]["total"] == 1


def test_strata_by_diameter_in_slices_and_volumes() -> None:
    sizes = (2.9, 3.0, 6.0, 10.0, 29.9, 30.0)
    slices = [replace(_score("lesion", 9, 9, 9, index=i), diameter_mm=size) for i, size in enumerate(sizes)]
    names = ["below_3_mm", "3_to_6_mm", "6_to_10_mm", "10_to_30_mm", "from_30_mm"]
    few = Bootstrap(resamples=2)
    strata = summarise_slices([*slices, _score("lesion", 0, 9, 0, index=9)], bootstrap=few)["strata"]
    assert [strata[name]["present"] for name in names] == [1, 1, 1, 2, 1]
    volumes = [replace(hit(f"v{i}", "lesion", 0.5), diameter_mm=size) for i, size in enumerate(sizes)]
    found = summarise_volumes([*volumes, volume("v9", "lesion", 0.0, 1.0)], bootstrap=few)["strata"]
    assert [found[name]["present"] for name in names] == [1, 1, 1, 2, 1]
    assert list(found) == names
    assert summarise_volumes(VOLUMES)["strata"] == {}  # of unknown size


def test_an_empty_prediction_of_a_present_target_is_a_miss() -> None:
    overall = summarise_slices([_score("lesion", 9, 0, 0)])["overall"]
    assert (overall["dice"]["mean"], overall["missed"]["mean"], overall["without_prediction"]) == (0, 1, 1)


def test_the_same_instance_twice_is_refused() -> None:
    with pytest.raises(DatasetError, match="twice"):
        summarise_slices([SLICES[0], SLICES[1], SLICES[0]])


def test_scores_without_a_metric_are_refused() -> None:
    with pytest.raises(DatasetError, match="lack the metric 'extra'"):
        summarise_slices(SLICES, metrics=[Metric(name="extra", compute=lambda masks: 1)])


def test_impossible_scores_are_refused() -> None:
    with pytest.raises(DatasetError, match="area fraction"):
        _score("liver", 5, 5, 5, area=1.5)
    with pytest.raises(DatasetError, match="contradict"):
        SliceScore("i", "v", "p", "t", "q", 0.1, truth=5, predicted=4, intersection=5)


def test_nothing_to_average_is_none_and_valid_json() -> None:
    summary = summarise_slices([])
    assert summary["overall"]["dice"]["mean"] is None
    assert summarise_volumes([])["by_target"] == {}
    json.dumps(summary, allow_nan=False)


def test_order_does_not_matter() -> None:
    assert summarise_slices(SLICES[::-1]) == summarise_slices(SLICES)


def test_scores_csv_reads_back_to_the_same_scores(tmp_path: Path) -> None:
    odd = _score('lesion, "odd"\nname', 3, 3, 1, index=9, area=1 / 3)
    odd = replace(odd, diameter_mm=1 / 7, confidence=0.75, presence=0.1)
    path = write_scores_csv([*SLICES, odd], tmp_path / "deep" / "scores.csv")
    assert read_scores_csv(path) == [*SLICES, odd]
    lines = path.read_text().splitlines()
    head = (
        "truth,predicted,intersection,diameter_mm,confidence,presence,dice,missed,false_positive_rate,precision_iou0,"
    )
    assert head in lines[0]
    assert ",500,500,400,,,,0.8,0.0,,1.0/1.0," in lines[1]
    assert ",0,0,0,,,,,,0.0,," in lines[7]
    assert [item.name for item in path.parent.iterdir()] == ["scores.csv"]


def test_a_table_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    head = "image,volume,patient,target,prompt,area_fraction,truth,predicted,intersection,dice"
    path.write_text(f"{head}\ni,v,p,t,q,0.1,1,1,1,1.0\n")
    assert read_scores_csv(path) == [SliceScore("i", "v", "p", "t", "q", 0.1, 1, 1, 1, {"dice": 1.0})]


def test_a_ratio_reads_back_from_csv(tmp_path: Path) -> None:
    score = SliceScore("i", "v", "p", "t", "q", 0.1, 1, 1, 1, {"found": (3.0, 4.0), "other": None})
    assert read_scores_csv(write_scores_csv([score], tmp_path / "scores.csv")) == [score]


@pytest.mark.parametrize(
    "text",
    ["", "image,volume\na,b\n", "{head}\na,v,p,t,q,0.1,x,1,1,\n", "{head}\na,v,p,t,q,0.1,1\n",
     "{head}\na,v,p,t,q,0.1,1,1,1,1/2/3\n"],
)  # fmt: skip
def test_a_damaged_csv_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scores.csv"
    head = "image,volume,patient,target,prompt,area_fraction,truth,predicted,intersection,dice"
    path.write_text(text.replace("{head}", head))
    with pytest.raises(DatasetError, match=r"scores\.csv"):
        read_scores_csv(path)
    with pytest.raises(DatasetError, match=r"missing\.csv"):
        read_scores_csv(tmp_path / "missing.csv")


def test_metrics_json_is_whole_or_not_there(tmp_path: Path) -> None:
    path = write_metrics_json({"slices": summarise_slices(SLICES)}, tmp_path / "metrics.json")
    assert list(json.loads(path.read_text())["slices"]["by_target"]) == ["lesion", "liver"]
    before = path.read_bytes()
    for bad in ({"a": math.nan}, {"a": object()}):
        with pytest.raises(DatasetError, match="JSON"):
            write_metrics_json(bad, path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["metrics.json"]


def test_markdown_table() -> None:
    lines = markdown_table({"slices": summarise_slices([*SLICES[3:6], _score("a|b", 0, 0, 0)])}).splitlines()
    assert lines[0] == "| target (slices) | present / absent | Dice | missed | false-positive rate |"
    assert lines[2] == r"| a\|b | 0 / 1 | – | – | 0.0 % of 1 |"
    assert lines[3] == "| lesion | 2 / 1 | 0.200 | 50.0 % of 2 | 100.0 % of 1 |"
    assert lines[4] == "| all | 2 / 2 | 0.200 | 50.0 % of 2 | 50.0 % of 2 |"
    assert lines[5] == "| below 1 % of the image | 2 / 0 | 0.200 | 50.0 % of 2 | – |"


def volume(
    name: str, target: str, truth_ml: float, predicted_ml: float, *, patient: str = "", **values: Any
) -> VolumeScore:
    empty = {metric: None for dimension, metric in METRICS if dimension == 3}
    known = {**empty, "false_components": 0.0, **values}
    return VolumeScore(name, patient or f"p-{name}", target, f"{target} in CT", truth_ml, predicted_ml, known)


def hit(name: str, target: str, dice: float, *, lesions: tuple[int, int] = (1, 1), false: int = 0) -> VolumeScore:
    values = {"dice": dice, "surface_dice": dice / 2, "hausdorff95_mm": 4.0 * (1 - dice)}
    counts = {"lesion_detection_rate": lesions, "false_components": false}
    return volume(name, target, 3.0, 3.0, **values, **counts)


VOLUMES = [
    hit("v1", "liver", 1.0),
    hit("v2", "liver", 0.75),
    hit("v3", "liver", 0.5),
    hit("v1", "lesion", 0.5, lesions=(3, 4), false=1),
    volume("v2", "lesion", 3.0, 0.0, dice=0.0, surface_dice=0.0, lesion_detection_rate=(0, 2)),
    volume("v3", "lesion", 0.0, 0.0, false_positive_rate=0.0, false_positive_ml=0.0),
    volume("v4", "lesion", 0.0, 1.5, false_positive_rate=1.0, false_positive_ml=1.5, false_components=3),
]


def test_means_of_volumes_by_target() -> None:
    lesion = summarise_volumes(VOLUMES)["by_target"]["lesion"]
    assert (lesion["present"], lesion["absent"], lesion["without_prediction"]) == (2, 2, 1)
    assert lesion["dice"]["mean"] == pytest.approx(0.25)  # the missed one counts as 0
    assert lesion["surface_dice"]["mean"] == pytest.approx(0.125)
    assert (lesion["hausdorff95_mm"]["mean"], lesion["hausdorff95_mm"]["cases"]) == (2.0, 1)  # it has no distance
    assert lesion["lesion_detection_rate"]["mean"] == pytest.approx(3 / 6)
    assert lesion["false_components"]["mean"] == pytest.approx((1 + 0 + 0 + 3) / 4)
    assert lesion["false_positive_rate"]["mean"] == 0.5
    assert lesion["false_positive_ml"]["mean"] == pytest.approx(0.75)


def test_a_target_that_is_always_present_has_no_false_positives() -> None:
    liver = summarise_volumes(VOLUMES)["by_target"]["liver"]
    assert liver["false_positive_rate"] == {
        "mean": None, "low": None, "high": None, "cases": 0, "patients": 0, "total": 0,
    }  # fmt: skip


def test_over_all_targets_weigh_alike_in_overlap_and_cases_in_rates() -> None:
    overall = summarise_volumes(VOLUMES)["overall"]
    assert overall["dice"]["mean"] == pytest.approx((0.75 + 0.25) / 2)
    assert overall["hausdorff95_mm"]["mean"] == pytest.approx((1.0 + 2.0) / 2)
    assert overall["lesion_detection_rate"]["mean"] == pytest.approx(6 / 9)
    assert overall["false_components"]["mean"] == pytest.approx(4 / 7)
    assert (overall["present"], overall["absent"], overall["without_prediction"]) == (5, 2, 1)


def test_intervals_are_by_patient() -> None:
    liver = summarise_volumes(VOLUMES)["by_target"]["liver"]["dice"]
    assert (liver["low"], liver["high"], liver["patients"]) == (0.5, 1.0, 3)
    of_one = [VolumeScore(s.volume, "p", s.target, s.prompt, s.truth_ml, s.predicted_ml, s.values) for s in VOLUMES]
    assert summarise_volumes(of_one)["by_target"]["liver"]["dice"]["low"] is None


def test_cases_of_volumes() -> None:
    summary = summarise_volumes(VOLUMES, bootstrap=Bootstrap(resamples=50, seed=3))
    assert summary == summarise_volumes(VOLUMES[::-1], bootstrap=Bootstrap(resamples=50, seed=3))
    assert summary["bootstrap"] == {"resamples": 50, "seed": 3, "level": 0.95}
    assert len(summary["cases"]) == 7
    case = {name: value for name, value in summary["cases"][0].items() if "_iou" not in name}
    assert summary["cases"][0]["recall_iou10"] is None
    assert case == {
        "volume": "v1",
        "patient": "p-v1",
        "target": "lesion",
        "prompt": "lesion in CT",
        "presence": None,
        "truth_ml": 3.0,
        "predicted_ml": 3.0,
        "diameter_mm": None,
        "confidence": None,
        "dice": 0.5,
        "surface_dice": 0.25,
        "hausdorff95_mm": 2.0,
        "missed": None,
        "lesion_detection_rate": [3, 4],
        "false_components": 1,
        "false_positive_rate": None,
        "false_positive_ml": None,
    }
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
