"""Means with bootstrap confidence intervals over patients, since the cases of a patient are not independent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from boltzformer_monai.errors import ConfigError

__all__ = ["Bootstrap", "Estimate", "Observation"]

_CHUNK = 1 << 22  # numbers (resamples × patients) in memory at once


@dataclass(frozen=True)
class Observation:
    """One case's contribution to a mean.

    Attributes:
        patient: pseudonym; all observations of a patient are resampled together.
        value: of the metric; for a ratio, its numerator.
        weight: above 0; for a ratio, its denominator.
        group: groups have equal weight, see :meth:`Bootstrap.estimate`.
    """

    patient: str
    value: float
    weight: float = 1.0
    group: str = ""


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval.

    Attributes:
        mean: None without observations.
        low: lower end of the interval; None for fewer than two patients.
        high: upper end.
        cases: number of observations.
        patients: number of patients.
        total: sum of the weights: what a ratio's parts are counted of; the number of cases of a mean.
    """

    mean: float | None
    low: float | None
    high: float | None
    cases: int
    patients: int
    total: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Percentile bootstrap over patients, reproducible by its seed.

    Attributes:
        resamples: of the patients, with replacement.
        level: of the interval, 0 to 1.
        seed: of the resampling.

    Raises:
        ConfigError: a setting is out of range.
    """

    resamples: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("resamples", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} of the bootstrap must be a whole number of at least {least}, got {value!r}")
        if not 0 < self.level < 1:
            raise ConfigError(f"the level of a confidence interval must be between 0 and 1, got {self.level}")

    def estimate(self, observations: Sequence[Observation]) -> Estimate:
        """Mean over the groups of Σ value / Σ weight, with its interval.

        A resample without a patient of a group omits that group. The order of observations does not matter.
        """
        patients = sorted({entry.patient for entry in observations})
        groups = sorted({entry.group for entry in observations})
        rows = {patient: index for index, patient in enumerate(patients)}
        columns = {group: index for index, group in enumerate(groups)}
        values, weights = np.zeros((2, len(patients), len(groups)))
        for entry in observations:
            if not entry.weight > 0:
                raise ConfigError(f"an observation needs a weight above 0, got {entry.weight}")
            place = rows[entry.patient], columns[entry.group]
            values[place] += entry.value
            weights[place] += entry.weight
        if not patients:
            return Estimate(None, None, None, 0, 0, 0.0)
        mean = float(_means(np.ones((1, len(patients))), values, weights)[0])
        low, high = self.interval(lambda counts: _means(counts, values, weights)[:, None], len(patients))[0]
        return Estimate(mean, low, high, len(observations), len(patients), float(weights.sum()))

    def interval(
        self, statistic: Callable[[np.ndarray], np.ndarray], patients: int | Sequence[int], *, width: int = 1
    ) -> list[tuple[float | None, float | None]]:
        """Intervals of any statistics of the patients.

        Args:
            statistic: how often each patient was drawn ``(R, patients)`` → ``(R, statistics)``; NaN where a resample
                has no value, which is left out.
            patients: how many there are; several numbers: of data sets one after the other, each of which is resampled
                by itself and keeps its size.
            width: numbers that it holds at once for each resample, if more than the patients.

        Returns:
            Low and high end of each statistic; None where no data set has two patients.
        """
        parts = [patients] if isinstance(patients, int) else [*patients]
        count = sum(parts)
        if max(parts, default=0) < 2:
            return [(None, None)] * statistic(np.ones((1, count))).shape[1]
        generator = np.random.default_rng(self.seed)
        step = max(1, _CHUNK // max(count, width))
        sizes = [min(step, self.resamples - start) for start in range(0, self.resamples, step)]
        resamples = (
            np.concatenate([generator.multinomial(n, np.full(n, 1 / n), size=size) for n in parts], axis=1)
            for size in sizes
        )
        values = np.concatenate([statistic(counts) for counts in resamples])
        tails = [50 * (1 - self.level), 50 * (1 + self.level)]
        ends: list[tuple[float | None, float | None]] = []
        for column in values.T:
            known = column[~np.isnan(column)]
            if len(known):
                low, high = np.percentile(known, tails)
                ends.append((float(low), float(high)))
            else:
                ends.append((None, None))
        return ends


def _means(counts: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Counts of each patient ``(R, patients)`` → mean over the groups ``(R,)``."""
    total = counts @ weights
    means = np.divide(counts @ values, total, out=np.zeros_like(total, dtype=float), where=total > 0)
    return means.sum(1) / (total > 0).sum(1)
