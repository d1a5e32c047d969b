"""Paired differences by seed, and what they can show: t-intervals, Holm's correction, power; and by patient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

__all__ = ["Paired", "correct_family", "holm", "mean_sd", "paired_difference", "smallest_difference"]

LEVEL, POWER = 0.95, 0.8
_QUANTILES = 2000
_SAME = 1e-12  # spread of differences that are equal but for rounding


@dataclass(frozen=True)
class Paired:
    """The mean of paired differences, one of each seed.

    Attributes:
        mean: of the differences; None without any.
        sd: their standard deviation; None for fewer than two.
        n: their number.
        low: lower end of the 95 % interval by Student's t; None for fewer than two, and where all differences are the
            same: of how much trainings differ they say nothing.
        high: upper end.
        p: two-sided, of the paired t-test; None where there is no interval.
        adjusted: p by Holm's correction over the family.
        detectable: smallest true difference that so many seeds with this spread show with a power of 80 %, at 5 %; in a
            family at Holm's first step, 5 % divided by the number of its tests.
    """

    mean: float | None
    sd: float | None
    n: int
    low: float | None = None
    high: float | None = None
    p: float | None = None
    adjusted: float | None = None
    detectable: float | None = None


def mean_sd(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean, None without values; standard deviation (n − 1), None for fewer than two."""
    return fmean(values) if values else None, stdev(values) if len(values) > 1 else None


def paired_difference(differences: Sequence[float]) -> Paired:
    """Student's paired t-test on the differences between two arms, one for each seed.

    The instances of one seed are no sample of trainings: their differences make one number here.
    """
    from scipy import stats

    mean, sd = mean_sd(differences)
    n = len(differences)
    if mean is None or sd is None or sd <= _SAME:
        return Paired(mean, sd, n)
    error = sd / math.sqrt(n)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1))
    return Paired(mean, sd, n, mean - half, mean + half, p, detectable=smallest_difference(sd, n))


def smallest_difference(sd: float, n: int, *, power: float = POWER, tests: int = 1) -> float | None:
    """The smallest true mean difference that a paired t-test at 5 % finds with this power.

    Args:
        sd: standard deviation of the differences.
        n: number of pairs.
        power: probability of finding it, above 5 % and below 1.
        tests: of the family; the level is 5 % divided by it, which is the first step of Holm's correction.

    Returns:
        None for fewer than two pairs, and without a spread.
    """
    import numpy as np
    from scipy import optimize, special, stats

    if n < 2 or sd <= _SAME:
        return None
    # Of the noncentral t: the mean over the spread that n differences may happen to have. SciPy's fails for small n.
    spread = np.sqrt(stats.chi2.ppf((np.arange(_QUANTILES) + 0.5) / _QUANTILES, n - 1) / (n - 1))
    critical = float(stats.t.isf((1 - LEVEL) / 2 / tests, n - 1)) * spread

    def missing(shift: float) -> float:
        return float((special.ndtr(shift - critical) + special.ndtr(-shift - critical)).mean()) - power

    top = 1.0
    while missing(top) < 0:
        top *= 2
    return float(optimize.brentq(missing, 0.0, top)) * sd / math.sqrt(n)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction of the p-values of one family; None stays None and counts for nothing."""
    order = sorted((p, place) for place, p in enumerate(values) if p is not None)
    adjusted: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (p, place) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        adjusted[place] = highest
    return adjusted


def correct_family(family: Sequence[Paired]) -> list[Paired]:
    """The family with Holm's corrected p-values, and what it could show with them."""
    corrected = holm([each.p for each in family])
    tests = sum(each.p is not None for each in family)
    return [
        each
        if p is None
        else replace(each, adjusted=p, detectable=smallest_difference(each.sd or 0.0, each.n, tests=tests))
        for each, p in zip(family, corrected, strict=True)
    ]
