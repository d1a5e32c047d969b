"""Means with confidence intervals: bootstrap over patients, because the cases of one patient are not independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from boltzformer_monai.errors import ConfigError

__all__ = ["Bootstrap", "Estimate", "Observation"]

_CHUNK = 1 << 22  # weights (resamples × patients) that are held at once


@dataclass(frozen=True)
class Observation:
    """What one case contributes to a mean.

    Attributes:
        patient: pseudonym; all observations of a patient are drawn together.
        value: what is averaged; for a share, the number of those that count.
        weight: of the value; for a share, the number of all, more than 0.
        group: means over groups weigh alike, see :meth:`Bootstrap.estimate`.
    """

    patient: str
    value: float
    weight: float = 1.0
    group: str = ""


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval.

    Attributes:
        mean: None where there is nothing to average.
        low: lower end of the interval; None for fewer than two patients.
        high: upper end.
        cases: observations.
        patients: patients they are of.
    """

    mean: float | None
    low: float | None
    high: float | None
    cases: int
    patients: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Percentile bootstrap that draws patients with replacement.

    Attributes:
        resamples: number of draws.
        level: of the interval, 0 to 1.
        seed: the same seed and observations give the same interval.

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
                msg = f"{name} of the bootstrap must be a whole number of at least {least}, got {value!r}"
                raise ConfigError(msg)
        if not 0 < self.level < 1:
            msg = f"the level of a confidence interval must be between 0 and 1, got {self.level}"
            raise ConfigError(msg)

    def estimate(self, observations: Sequence[Observation]) -> Estimate:
        """Mean Σ value / Σ weight in every group, then over the groups; with its interval.

        A resample that drew no patient of a group leaves that group out. Order does not matter.
        """
        patients = sorted({entry.patient for entry in observations})
        groups = sorted({entry.group for entry in observations})
        rows = {patient: index for index, patient in enumerate(patients)}
        columns = {group: index for index, group in enumerate(groups)}
        values, weights = np.zeros((2, len(patients), len(groups)))
        for entry in observations:
            if not entry.weight > 0:
                msg = f"an observation needs a weight above 0, got {entry.weight}"
                raise ConfigError(msg)
            place = rows[entry.patient], columns[entry.group]
            values[place] += entry.value
            weights[place] += entry.weight
        if not patients:
            return Estimate(None, None, None, 0, 0)
        mean = float(_means(np.ones((1, len(patients))), values, weights)[0])
        low = high = None
        if len(patients) > 1:
            tails = [50 * (1 - self.level), 50 * (1 + self.level)]
            low, high = (float(end) for end in np.percentile(self._resampled(values, weights), tails))
        return Estimate(mean, low, high, len(observations), len(patients))

    def _resampled(self, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Means of all resamples ``(R,)``; ``values`` and ``weights`` are (patients, groups)."""
        count = len(values)
        generator = np.random.default_rng(self.seed)
        step = max(1, _CHUNK // count)
        sizes = [min(step, self.resamples - start) for start in range(0, self.resamples, step)]
        draws = (generator.multinomial(count, np.full(count, 1 / count), size=size) for size in sizes)
        return np.concatenate([_means(drawn, values, weights) for drawn in draws])


def _means(drawn: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How often each patient was drawn ``(R, patients)`` → the mean over the groups ``(R,)``."""
    total = drawn @ weights
    means = np.divide(drawn @ values, total, out=np.zeros_like(total, dtype=float), where=total > 0)
    return means.sum(1) / (total > 0).sum(1)
