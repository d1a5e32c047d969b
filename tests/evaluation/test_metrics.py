"""Metrics against numbers worked out by hand, and tables that read back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.errors import DatasetError
from boltzformer_monai.evaluation.metrics import SliceScore, dice, summarise
from boltzformer_monai.evaluation.tables import markdown_table, read_scores_csv, write_metrics_json, write_scores_csv


def _score(
    target: str, truth: int, predicted: int, intersection: int, *, volume: str = "v1", index: int = 0, area: float = -1
) -> SliceScore:
    return SliceScore(
        image=f"{volume}_axial_{index:04d}.png",
        volume=volume,
        patient=f"p-{volume}",
        target=target,
        prompt=f"{target} in abdominal CT",
        area_fraction=truth / 10_000 if area < 0 else area,
        truth=truth,
        predicted=predicted,
        intersection=intersection,
    )


# liver: Dice 0.8 and 0.5 in v1, 1.0 in v2; lesion: 0 (missed) and 0.4; two absent lesion slices, one answered.
SCORES = [
    _score("liver", 500, 500, 400, index=0),
    _score("liver", 100, 300, 100, index=1),
    _score("liver", 200, 200, 200, volume="v2", index=0),
    _score("lesion", 10, 30, 0, index=0),
    _score("lesion", 20, 30, 10, index=1),
    _score("lesion", 0, 5, 0, index=2),
    _score("lesion", 0, 0, 0, volume="v2", index=0),
]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [((5, 5, 5), 1.0), ((0, 5, 5), 0.0), ((1, 1, 3), 0.5), ((0, 0, 7), 0.0), ((0, 7, 0), 0.0), ((0, 0, 0), None)],
)
def test_dice(counts: tuple[int, int, int], expected: float | None) -> None:
    assert dice(*counts) == expected


def test_dice_agrees_with_masks() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 30, 40)) < 0.3
    both = int((a & b).sum())
    assert dice(both, int(a.sum()), int(b.sum())) == pytest.approx(1 / (1 + ((a ^ b).sum()) / (2 * both)))


@pytest.mark.parametrize("counts", [(6, 5, 9), (6, 9, 5), (-1, 5, 5)])
def test_impossible_counts_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(DatasetError, match="contradict"):
        dice(*counts)
    with pytest.raises(DatasetError, match="contradict"):
        _score("liver", counts[2], counts[1], counts[0])


def test_area_fraction_out_of_range_is_refused() -> None:
    with pytest.raises(DatasetError, match="area fraction"):
        _score("liver", 5, 5, 5, area=1.5)


def test_two_dimensional_means() -> None:
    metrics = summarise(SCORES)
    assert metrics["dice_by_target"]["liver"] == pytest.approx((0.8 + 0.5 + 1.0) / 3)
    assert metrics["dice_by_target"]["lesion"] == pytest.approx((0 + 0.4) / 2)
    assert metrics["mean_dice"] == pytest.approx(((0.8 + 0.5 + 1.0) / 3 + 0.2) / 2)  # targets weigh alike
    assert metrics["slices_by_target"] == {"lesion": 2, "liver": 3}
    assert (metrics["instances"], metrics["present_instances"], metrics["absent_instances"]) == (7, 5, 2)


def test_strata_follow_the_area_fraction_and_one_percent_is_large() -> None:
    strata = summarise(SCORES)["strata"]
    assert strata["below_1_percent"] == {"mean_dice": pytest.approx(0.2), "n": 2}
    assert strata["from_1_percent"] == {"mean_dice": pytest.approx((0.8 + 0.5 + 1.0) / 3), "n": 3}  # 100 px are 1 %


def test_missed_and_absent() -> None:
    metrics = summarise(SCORES)
    assert metrics["missed_targets"] == {"fraction": 0.2, "count": 1, "by_target": {"lesion": 0.5, "liver": 0.0}}
    assert metrics["absent_answered"] == 0.5
    assert metrics["absent_answered_by_target"] == {"lesion": 0.5}


def test_an_empty_answer_to_a_present_target_is_a_miss() -> None:
    metrics = summarise([_score("lesion", 9, 0, 0)])
    assert metrics["mean_dice"] == 0.0
    assert metrics["missed_targets"]["count"] == 1


def test_three_dimensional_dice_sums_the_counts_of_complete_volumes_only() -> None:
    both = summarise(SCORES, complete_volumes={"v1", "v2"})
    liver_v1 = 2 * (400 + 100) / (500 + 300 + 500 + 100)
    lesion_v1 = 2 * 10 / (30 + 30 + 5 + 30)  # the false alarm of the absent slice counts
    assert both["dice_3d_by_target"] == {
        "lesion": pytest.approx(lesion_v1),
        "liver": pytest.approx((liver_v1 + 1.0) / 2),
    }
    assert both["mean_dice_3d"] == pytest.approx((lesion_v1 + (liver_v1 + 1.0) / 2) / 2)
    assert both["volumes_by_target"] == {"lesion": 1, "liver": 2}
    one = summarise(SCORES, complete_volumes={"v1"})
    assert one["dice_3d_by_target"]["liver"] == pytest.approx(liver_v1)
    assert {case["volume"] for case in one["cases"]} == {"v1"}
    none = summarise(SCORES)
    assert none["mean_dice_3d"] is None
    assert none["cases"] == []


def test_a_volume_without_the_target_is_a_case_but_not_in_the_mean() -> None:
    metrics = summarise(
        [_score("lesion", 0, 4, 0), _score("lesion", 8, 8, 8, volume="v2")], complete_volumes=["v1", "v2"]
    )
    assert [(case["volume"], case["dice"]) for case in metrics["cases"]] == [("v1", 0.0), ("v2", 1.0)]
    assert metrics["mean_dice_3d"] == 1.0
    assert metrics["cases"][0]["patient"] == "p-v1"


def test_order_does_not_matter() -> None:
    assert summarise(SCORES[::-1], complete_volumes=["v2", "v1"]) == summarise(SCORES, complete_volumes=["v1", "v2"])


def test_nothing_to_average_is_none_and_valid_json() -> None:
    metrics = summarise([])
    assert metrics["mean_dice"] is None
    assert metrics["missed_targets"]["fraction"] is None
    assert metrics["absent_answered"] is None
    json.dumps(metrics, allow_nan=False)


def test_the_same_instance_twice_is_refused() -> None:
    with pytest.raises(DatasetError, match="twice"):
        summarise([SCORES[0], SCORES[0]])


def test_scores_csv_reads_back_to_the_same_metrics(tmp_path: Path) -> None:
    odd = _score('lesion, "odd"\nname', 3, 3, 1, index=9, area=1 / 3)
    path = write_scores_csv([*SCORES, odd], tmp_path / "deep" / "scores.csv")
    assert read_scores_csv(path) == [*SCORES, odd]
    lines = path.read_text().splitlines()
    assert lines[0].endswith("truth,predicted,intersection,dice")
    assert lines[1].endswith("500,500,400,0.800000")
    assert lines[7].endswith("0,0,0,")
    assert [item.name for item in path.parent.iterdir()] == ["scores.csv"]


@pytest.mark.parametrize(
    "text", ["", "image,volume\na,b\n", "{head}\na,v,p,t,q,0.1,x,1,1,\n", "{head}\na,v,p,t,q,0.1,1\n"]
)
def test_a_damaged_csv_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scores.csv"
    head = "image,volume,patient,target,prompt,area_fraction,truth,predicted,intersection,dice"
    path.write_text(text.replace("{head}", head))
    with pytest.raises(DatasetError, match=r"scores\.csv"):
        read_scores_csv(path)
    with pytest.raises(DatasetError, match=r"missing\.csv"):
        read_scores_csv(tmp_path / "missing.csv")


def test_metrics_json_is_whole_or_not_there(tmp_path: Path) -> None:
    path = write_metrics_json(summarise(SCORES), tmp_path / "metrics.json")
    assert json.loads(path.read_text())["slices_by_target"] == {"lesion": 2, "liver": 3}
    before = path.read_bytes()
    for bad in ({"a": math.nan}, {"a": object()}):
        with pytest.raises(DatasetError, match="JSON"):
            write_metrics_json(bad, path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["metrics.json"]


def test_markdown_table() -> None:
    table = markdown_table(summarise([*SCORES, _score("a|b", 0, 0, 0)], complete_volumes={"v1"}))
    lines = table.splitlines()
    assert lines[0] == "| target | slices | Dice | missed | absent answered | 3-D Dice |"
    assert lines[2] == r"| a\|b | 0 | – | – | 0.0 % | – |"
    assert lines[3] == "| lesion | 2 | 0.200 | 50.0 % | 50.0 % | 0.211 |"
    assert lines[5].startswith("| mean | 5 | 0.483 | 20.0 % | 33.3 % |")
    assert "| below 1 % of the image | 2 | 0.200 |" in lines
