"""Evaluations of folds read back from their files: pooled, they are the evaluation of all their cases."""

from __future__ import annotations

from pathlib import Path

import pytest

from boltzformer_monai.errors import DatasetError
from boltzformer_monai.evaluation.calibration import Reliability, reliability, write_calibration_csv
from boltzformer_monai.evaluation.detection import ObjectScore, write_objects_csv
from boltzformer_monai.evaluation.metrics import metrics_for
from boltzformer_monai.evaluation.pooling import pool_evaluations
from boltzformer_monai.evaluation.report import write_report
from boltzformer_monai.evaluation.summary import SliceScore, VolumeScore, summarise_slices, summarise_volumes
from boltzformer_monai.evaluation.tables import markdown_table, write_metrics_json, write_scores_csv

RULE = {"high": 0.8, "low": 0.4}


def _scores(patient: int) -> tuple[list[SliceScore], list[VolumeScore]]:
    """Two slices and a volume; metrics of 0.1 times the patient, and a ratio where there is one."""
    value = patient / 10
    of_slice = {metric.name: value for metric in metrics_for(2)}
    of_volume = {metric.name: value for metric in metrics_for(3)} | {"lesion_detection_rate": (patient, 7)}
    slices = [
        SliceScore(
            f"images/v{patient}_{index}.png", f"v{patient}", f"p{patient}", "liver", "=liver", 0.1, 9, 9, 5, of_slice
        )
        for index in range(2)
    ]
    return slices, [VolumeScore(f"v{patient}", f"p{patient}", "liver", "=liver", 1 / 3, 0.1, of_volume, 0.7)]


def _write(folder: Path, *patients: int, rule: dict[str, float] | None = RULE, tolerance: float = 2.0) -> Path:
    slices, volumes = map(list, zip(*(_scores(patient) for patient in patients), strict=True))
    slices, volumes = sum(slices, []), sum(volumes, [])
    write_scores_csv(slices, folder / "scores.csv")
    metrics = {
        "model": {"sha256": folder.name},
        "slices": summarise_slices(slices),
        "volumes": {**summarise_volumes(volumes), "tolerance_mm": tolerance, "presence": rule},
    }
    write_metrics_json(metrics, folder / "metrics.json")
    return folder


def test_pooled_is_the_evaluation_of_all_cases(tmp_path: Path) -> None:
    folders = [_write(tmp_path / "a", 1, 2, 3), _write(tmp_path / "b", 4, 5, rule=None)]
    metrics, scores = pool_evaluations(folders)
    slices, volumes = (
        [score for patient in range(1, 6) for score in _scores(patient)[part]] for part in (0, 1)
    )  # fmt: skip
    assert scores == slices
    assert metrics["slices"] == summarise_slices(slices)
    expected = {**summarise_volumes(volumes), "tolerance_mm": 2.0, "presence": [RULE, None]}
    assert metrics["volumes"] == expected
    assert metrics["volumes"]["overall"]["dice"]["patients"] == 5
    assert metrics["volumes"]["overall"]["lesion_detection_rate"]["mean"] == pytest.approx(15 / 35)
    assert [fold["patients"] for fold in metrics["folds"]] == [3, 2]
    assert [fold["volumes"]["dice"]["mean"] for fold in metrics["folds"]] == pytest.approx([0.2, 0.45])

    lines = markdown_table(metrics).splitlines()
    assert len([line for line in lines if line.startswith("| fold 1 | ")]) == 2
    page = write_report(tmp_path / "report.html", title="Folds", metrics=metrics).read_text(encoding="utf-8")
    assert "Presence thresholds are those of each fold&#39;s model." in page
    assert page.count("By fold: its model on its validation patients") == 2
    without = pool_evaluations([folders[1], _write(tmp_path / "c", 6, rule=None)])[0]
    assert without["volumes"]["presence"] is None


def _objects(folder: Path, *patients: int) -> tuple[list[ObjectScore], Reliability]:
    """An object and a candidate of every volume and of its first slice, and pixels; written beside the scores."""
    objects, pixels = [], {}
    for patient in patients:
        for part, case in (("slices", f"images/v{patient}_0.png"), ("volumes", f"v{patient}")):
            of = (part, case, f"p{patient}", "liver")
            hit = patient % 2 == 0
            objects.append(ObjectScore(*of, "truth", 9, 0.1 if part == "slices" else None, 4.0, None, hit, hit, False))
            objects.append(ObjectScore(*of, "mask", 9, None, 4.0, patient / 10, hit, hit, False))
        pixels |= reliability([("liver", f"p{patient}", patient / 10, True)])
    write_objects_csv(objects, folder / "objects.csv")
    write_calibration_csv(pixels, folder / "calibration.csv")
    return objects, pixels


def test_objects_and_calibration_of_all_folds_are_pooled(tmp_path: Path) -> None:
    folders = [_write(tmp_path / "a", 1, 2, 3), _write(tmp_path / "b", 4, 5)]
    found = [_objects(folders[0], 1, 2, 3), _objects(folders[1], 4, 5)]
    objects, pixels = sum((each for each, _ in found), []), found[0][1] | found[1][1]
    metrics, scores = pool_evaluations(folders)
    of_slices, of_volumes = ([each for each in objects if each.part == part] for part in ("slices", "volumes"))
    assert metrics["slices"] == summarise_slices(scores, objects=of_slices, pixels=pixels)
    volumes = [score for patient in range(1, 6) for score in _scores(patient)[1]]
    assert metrics["volumes"]["froc"] == summarise_volumes(volumes, objects=of_volumes)["froc"]
    assert metrics["volumes"]["froc"]["overall"]["iou0"]["mask_sensitivity"] == 2 / 5
    assert metrics["slices"]["calibration"]["pixels"]["overall"]["ece"]["total"] == 5
    (folders[1] / "objects.csv").unlink()  # an evaluation of an earlier version
    assert pool_evaluations(folders)[0]["slices"]["froc"] is None


def test_what_cannot_be_pooled(tmp_path: Path) -> None:
    first = _write(tmp_path / "a", 1, 2)
    for other, words in (
        (_write(tmp_path / "b", 2, 3), "evaluated the same patient; their folds are not of one dataset"),
        (_write(tmp_path / "c", 3, tolerance=1.0), "different tolerances"),
        (tmp_path, "cannot be read"),
    ):
        with pytest.raises(DatasetError, match=words):
            pool_evaluations([first, other])
    (tmp_path / "c" / "metrics.json").write_text('{"slices": {}}')
    with pytest.raises(DatasetError, match="holds no evaluation of slices and volumes"):
        pool_evaluations([first, tmp_path / "c"])
