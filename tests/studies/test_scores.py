"""Rows of a study: as CSV and back, from an evaluation's table, and their means."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.errors import DatasetError
from boltzformer_monai.evaluation.summary import SliceScore
from boltzformer_monai.evaluation.tables import write_scores_csv
from boltzformer_monai.studies.scores import (
    SMALL,
    ScoreRow,
    in_group,
    mean_dice,
    missed_share,
    patient_interval,
    read_rows,
    rows_of_evaluation,
    write_rows,
)
from tests.engines.cases import write_dataset


def row(
    dice: float | None, *, share: float = 0.05, target: str = "lesion", image: str = "a", **other: object
) -> ScoreRow:
    fields = {
        "arm": "one", "seed": 0, "fold": None, "data": "d", "patient": "p", "image": image, "target": target,
        "area_share": 0.0 if dice is None else share, "diameter_mm": None, "dice": dice,
        "missed": None if dice is None else dice == 0, "confidence": None, **other,
    }  # fmt: skip
    return ScoreRow(**fields)  # type: ignore[arg-type]


def test_rows_come_back_from_their_table(tmp_path: Path) -> None:
    rows = [row(0.25, target="=lesion", fold=2, diameter_mm=3.5, confidence=0.75), row(None), row(0.0, patient="")]
    write_rows(rows, tmp_path / "scores.csv")
    assert read_rows(tmp_path / "scores.csv") == rows
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert lines[0] == "arm,seed,fold,data,patient,image,target,area_share,diameter_mm,dice,missed,confidence"
    assert lines[2] == "one,0,,d,p,a,lesion,0.0,,,,"
    for text in ("arm,seed\none,0\n", "\n".join([*lines[:3], lines[3][: lines[3].index("0.05") + 4]])):
        (tmp_path / "scores.csv").write_text(text)
        with pytest.raises(DatasetError, match="scores.csv: cannot be read as scores of a study"):
            read_rows(tmp_path / "scores.csv")


def test_an_evaluation_s_table_becomes_rows(tmp_path: Path) -> None:
    reader = SliceReader(write_dataset(tmp_path / "slices"))
    image = reader.rows[0].image.relative_to(reader.root).as_posix()
    known = {"image": image, "volume": "case0", "patient": "p", "prompt": "liver", "area_fraction": 100 / 1024}
    scores = [
        SliceScore(**known, target="liver", truth=100, predicted=60, intersection=40, confidence=0.9),
        SliceScore(**{**known, "area_fraction": 0.0}, target="stomach", truth=0, predicted=5, intersection=0,
                   confidence=0.6),
    ]  # fmt: skip
    write_scores_csv(scores, tmp_path / "scores.csv")
    place = {"arm": "one", "seed": 3, "fold": 1, "data": "demo"}
    liver, stomach = rows_of_evaluation(tmp_path / "scores.csv", reader, **place)  # type: ignore[arg-type]
    assert (liver.dice, liver.missed) == (pytest.approx(0.5), False)
    assert (liver.confidence, stomach.confidence) == (0.9, 0.6)
    assert liver.diameter_mm == pytest.approx(2 * math.sqrt(100 * 2.0 * 2.0 / math.pi))  # pixels of 2 mm
    assert (liver.arm, liver.seed, liver.fold, liver.data, liver.patient) == ("one", 3, 1, "demo", "p")
    assert (stomach.dice, stomach.missed, stomach.area_share, stomach.diameter_mm) == (None, None, 0.0, None)
    write_scores_csv([SliceScore(**{**known, "image": "images/x.png"}, target="liver", truth=1, predicted=1,
                                 intersection=1)], tmp_path / "other.csv")  # fmt: skip
    with pytest.raises(DatasetError, match="images/x.png is not in"):
        rows_of_evaluation(tmp_path / "other.csv", reader, **place)  # type: ignore[arg-type]


def test_means_count_present_targets_of_a_size() -> None:
    rows = [
        row(1.0, share=0.2, target="liver", patient="q"), row(0.5, share=0.2, target="liver", image="b"),
        row(0.0, share=5e-4), row(None), row(0.4, share=1e-3, image="b"),
    ]  # fmt: skip
    every = mean_dice(rows)
    assert (every.value, every.instances, every.patients) == (pytest.approx((0.75 + 0.2) / 2), 4, 2)  # by target
    small = mean_dice(rows, SMALL)
    assert (small.value, small.instances) == (0.0, 1)
    below = mean_dice(rows, "below 1 %")
    assert (below.value, below.instances) == (pytest.approx(0.2), 2)
    assert [each.dice for each in in_group(rows, "0.1 to 1 %")] == [0.4]  # the lower edge belongs to a stratum
    assert mean_dice(rows, "below 0.01 %").value is None
    assert missed_share(rows, SMALL).value == 1.0
    assert missed_share(rows).value == 0.25
    assert missed_share([]).value is None


def test_the_interval_by_patient_takes_the_same_patients_for_all_seeds() -> None:
    def arm(shift: float) -> list[ScoreRow]:
        return [
            row(0.5 + shift + 0.01 * patient, image=f"i{patient}", patient=f"p{patient}", seed=seed)
            for patient in range(4)
            for seed in range(3)
        ]

    found = patient_interval(arm(0.1), arm(0.0))
    assert (found.mean, found.low, found.high) == (pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1))
    assert (found.patients, found.cases) == (4, 12)
    # One patient differs: the interval is that of the share of this patient among resampled ones.
    changed = [
        each if each.patient != "p0" else row(1.0, image="i0", patient="p0", seed=each.seed) for each in arm(0.0)
    ]
    found = patient_interval(changed, arm(0.0))
    assert found.mean == pytest.approx(0.125)
    assert found.low == 0.0
    assert patient_interval([row(0.5)], [row(0.5, image="b")]).mean is None  # nothing in common


def test_the_interval_by_patient_is_that_of_the_tested_difference() -> None:
    """The mean over data sets, however many instances each has; each is resampled by itself."""

    def arm(first: float, second: list[float]) -> list[ScoreRow]:
        many = [row(first, share=5e-4, image=f"i{number}", patient="") for number in range(20)]
        few = [row(dice, share=5e-4, data="e", image=f"i{n}", patient=f"p{n}") for n, dice in enumerate(second)]
        return many + few

    found = patient_interval(arm(0.5, [0.5, 0.9]), arm(0.4, [0.6, 0.6]), SMALL)
    assert found.mean == pytest.approx((0.1 + 0.1) / 2)  # −0.1 and 0.3 in the second
    assert (found.low, found.high) == (pytest.approx((0.1 - 0.1) / 2), pytest.approx((0.1 + 0.3) / 2))
    assert found.patients == 22
    # One patient of a data set has no others to be replaced by, and the data set is in every resample.
    found = patient_interval(arm(0.5, [0.9]), arm(0.4, [0.6]), SMALL)
    assert (found.mean, found.low, found.high) == (pytest.approx(0.2), pytest.approx(0.2), pytest.approx(0.2))
