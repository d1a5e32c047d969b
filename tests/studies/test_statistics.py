"""Paired tests by seed against SciPy's and hand-computed values; Holm's correction; power by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from boltzformer_monai.studies.statistics import (
    Paired,
    correct_family,
    holm,
    mean_sd,
    paired_difference,
    smallest_difference,
)

DIFFERENCES = [0.0018, -0.0035, 0.0102, 0.0074, 0.0025]


def test_a_paired_difference_is_scipy_s() -> None:
    found, of_scipy = paired_difference(DIFFERENCES), stats.ttest_1samp(DIFFERENCES, 0)
    assert (found.mean, found.n) == (pytest.approx(np.mean(DIFFERENCES)), 5)
    assert found.sd == pytest.approx(np.std(DIFFERENCES, ddof=1))
    assert found.p == pytest.approx(of_scipy.pvalue)
    interval = of_scipy.confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_too_few_or_equal_differences_have_no_p() -> None:
    assert paired_difference([]) == Paired(None, None, 0)
    assert paired_difference([0.1]) == Paired(0.1, None, 1)
    for same in ([0.1, 0.1, 0.1], [0.3 - 0.2, 0.1, 0.4 - 0.3]):  # equal, and equal but for rounding
        found = paired_difference(same)
        assert found.mean == pytest.approx(0.1)
        assert (found.p, found.low, found.high, found.detectable) == (None, None, None, None)
    assert mean_sd([]) == (None, None)
    assert mean_sd([2.0]) == (2.0, None)


def test_holm_s_correction_is_the_hand_computed_one() -> None:
    # 0.01 × 4, then 0.02 × 3, then 0.03 × 2 raised to the one before it, 0.04 × 1 likewise.
    assert holm([0.01, 0.04, 0.03, 0.02]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert holm([]) == []
    family = correct_family([Paired(0.1, 0.1, 3, p=0.02), Paired(0.1, None, 1), Paired(0.1, 0.1, 3, p=0.5)])
    assert [each.adjusted for each in family] == [0.04, None, 0.5]
    of_two = smallest_difference(0.1, 3, tests=2)
    assert [each.detectable for each in family] == [of_two, None, of_two]


@pytest.mark.parametrize(("n", "tests"), [(3, 1), (5, 1), (10, 1), (3, 25), (10, 25)])
def test_the_smallest_difference_is_found_with_its_power(n: int, tests: int) -> None:
    shift = smallest_difference(1.0, n, tests=tests)
    assert shift is not None
    draws = np.random.default_rng(n).normal(shift, 1.0, (20_000, n))
    p = stats.ttest_1samp(draws, 0, axis=1).pvalue
    assert (p < 0.05 / tests).mean() == pytest.approx(0.8, abs=0.01)


def test_more_seeds_show_less_and_one_shows_nothing() -> None:
    found = [smallest_difference(0.1, n) for n in (2, 3, 5, 10, 100)]
    assert found == sorted(found, reverse=True)  # type: ignore[type-var]
    assert found[-1] == pytest.approx(0.1 * 2.8 / 10, rel=0.02)  # z of 0.975 and 0.8
    assert smallest_difference(0.1, 1) is None
