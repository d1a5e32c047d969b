"""Intervals: the right width where theory knows it, patients drawn whole, the same every time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.evaluation.bootstrap import Bootstrap, Estimate, Observation


def _of(values: list[float], **settings: int) -> Estimate:
    observations = [Observation(f"p{index}", value) for index, value in enumerate(values)]
    return Bootstrap(**settings).estimate(observations)


def test_the_interval_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(5, 2, 200)
    found = _of(values.tolist(), resamples=4000)
    error = float(values.std()) / math.sqrt(200)
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    assert (found.cases, found.patients) == (200, 200)


def test_cases_of_one_patient_are_drawn_together() -> None:
    values = np.random.default_rng(1).normal(0, 1, 30)
    once = Bootstrap().estimate([Observation(f"p{i}", v) for i, v in enumerate(values)])
    tenfold = Bootstrap().estimate([Observation(f"p{i}", v) for i, v in enumerate(values) for _ in range(10)])
    assert tenfold.mean == pytest.approx(once.mean)
    assert (tenfold.low, tenfold.high) == (pytest.approx(once.low), pytest.approx(once.high))
    assert (tenfold.cases, tenfold.patients) == (300, 30)


def test_one_patient_has_no_interval_and_nobody_no_mean() -> None:
    one = Bootstrap().estimate([Observation("p", 1.0), Observation("p", 0.0)])
    assert one == Estimate(0.5, None, None, 2, 1, 2.0)
    assert _of([]).as_dict() == {"mean": None, "low": None, "high": None, "cases": 0, "patients": 0, "total": 0}


def test_shares_are_sums_by_sums() -> None:
    found = Bootstrap().estimate([Observation("a", 1, weight=4), Observation("b", 1, weight=1)])
    assert found.mean == pytest.approx(2 / 5)
    assert (found.low, found.high) == (0.25, 1.0)  # only a, only b
    assert (found.cases, found.total) == (2, 5)


def test_groups_weigh_alike_and_one_that_was_not_drawn_is_left_out() -> None:
    found = Bootstrap().estimate(
        [Observation("a", 0, group="liver"), Observation("b", 0, group="liver"), Observation("c", 1, group="lesion")]
    )
    assert found.mean == pytest.approx(0.5)
    assert (found.low, found.high) == (0.0, 1.0)


def test_the_same_every_time_in_any_order() -> None:
    values = np.random.default_rng(2).random(9).tolist()
    assert _of(values) == _of(values)
    assert _of(values, seed=1) != _of(values)
    entries = [Observation(f"p{index}", value) for index, value in enumerate(values)]
    assert Bootstrap().estimate(entries[::-1]) == Bootstrap().estimate(entries)


def test_equal_values_have_an_interval_of_no_width() -> None:
    found = _of([0.5] * 5)
    assert (found.low, found.high) == (0.5, 0.5)


@pytest.mark.parametrize(
    "settings", [{"resamples": 0}, {"resamples": 1.5}, {"seed": -1}, {"level": 1.0}, {"seed": True}]
)
def test_settings_are_checked(settings: dict) -> None:
    with pytest.raises(ConfigError):
        Bootstrap(**settings)


def test_a_weight_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="weight"):
        Bootstrap().estimate([Observation("a", 1, weight=0)])
