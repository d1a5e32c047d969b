"""Calibration: probabilities that come true as often as they say, and errors worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.errors import DatasetError
from boltzformer_monai.evaluation.bootstrap import Bootstrap
from boltzformer_monai.evaluation.calibration import (
    Reliability,
    add_pixels,
    read_calibration_csv,
    reliability,
    summarise_calibration,
    write_calibration_csv,
)


def test_errors_by_hand() -> None:
    cases = [("lesion", f"p{i % 2}", 0.85, i < 6) for i in range(10)]  # says 0.85, is 0.6
    cases += [("lesion", "p0", 0.05, False)] * 30 + [("liver", "p1", 1.0, True)] * 10
    summary = summarise_calibration(reliability(cases), bootstrap=Bootstrap(resamples=100))
    assert summary is not None
    assert summary == json.loads(json.dumps(summary, allow_nan=False))
    lesion, liver = summary["by_target"]["lesion"], summary["by_target"]["liver"]
    assert lesion["ece"]["mean"] == pytest.approx((30 * 0.05 + 10 * 0.25) / 40)
    assert (lesion["ece_from_0.1"]["mean"], lesion["ece_from_0.1"]["total"]) == (pytest.approx(0.25), 10)
    assert (liver["ece"]["mean"], liver["ece"]["low"]) == (0, None)  # of one patient
    assert summary["overall"]["ece"]["mean"] == pytest.approx((30 * 0.05 + 10 * 0.25 + 0) / 50)
    assert summary["overall"]["ece"]["low"] <= summary["overall"]["ece"]["mean"] <= summary["overall"]["ece"]["high"]
    full = lesion["bins"][8]
    assert (full["from"], full["to"], full["count"]) == (0.8, 0.9, 10)
    assert (full["probability"], full["frequency"]) == pytest.approx((0.85, 0.6))
    assert "frequency" not in lesion["bins"][5]


def test_pixels_that_come_true_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    found: Reliability = {}
    for patient in ("a", "b"):
        levels = rng.integers(0, 256, (2, 300, 300)).astype(np.uint8)
        truth = rng.random(levels.shape) < (levels + 0.5) / 256
        add_pixels(found, ("lesion", patient), levels[0], truth[0])
        add_pixels(found, ("lesion", patient), levels[1], truth[1])
    summary = summarise_calibration(found, bootstrap=Bootstrap(resamples=50))
    assert summary is not None
    assert summary["overall"]["ece"]["total"] == 4 * 90_000
    assert summary["overall"]["ece"]["mean"] < 0.01
    swapped = {key: np.stack([count, chance, count - true]) for key, (count, chance, true) in found.items()}
    worse = summarise_calibration(swapped, bootstrap=Bootstrap(resamples=50))
    assert worse is not None
    assert worse["overall"]["ece"]["mean"] == pytest.approx(0.5, abs=0.01)


def test_nothing_is_none() -> None:
    assert summarise_calibration({}, bootstrap=Bootstrap()) is None
    sure = summarise_calibration(reliability([("t", "p", 0.01, False)]), bootstrap=Bootstrap())
    assert sure is not None
    assert sure["overall"]["ece_from_0.1"]["mean"] is None


def test_the_table_reads_back(tmp_path: Path) -> None:
    found = reliability([("=t", "p", 0.3, True), ("=t", "p", 0.31, False), ("u", "q", 0.99, True)])
    again = read_calibration_csv(write_calibration_csv(found, tmp_path / "calibration.csv"))
    assert again.keys() == found.keys()
    assert all((again[key] == found[key]).all() for key in found)
    head = "target,patient,bin,count,probability,true"
    for text in ("target,patient\na,b\n", f"{head}\na\n", f"{head}\na,b,11,1,1,1\n"):
        (tmp_path / "calibration.csv").write_text(text)
        with pytest.raises(DatasetError, match=r"calibration\.csv"):
            read_calibration_csv(tmp_path / "calibration.csv")
