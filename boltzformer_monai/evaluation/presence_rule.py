"""From the presence probabilities of a volume's slices to the slices that keep their mask (not in the paper).

A single threshold would either lose the faint ends of an object or answer where there is none. Two thresholds with
hysteresis along the volume do neither: an object must be certain somewhere, and reaches as far as it stays plausible.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from boltzformer_monai.errors import CheckpointError, ConfigError

__all__ = ["PresenceRule", "calibrate"]

_EDGE = 1e-4  # probabilities are kept this far from 0 and 1, where log-odds end


@dataclass(frozen=True, kw_only=True)
class PresenceRule:
    """Keep runs of neighbouring slices with probability ≥ `low` that contain one ≥ `high`.

    Attributes:
        high: probability that one slice of an object must reach.
        low: probability that all its slices must reach.

    Raises:
        ConfigError: not 0 < low <= high < 1.
    """

    high: float
    low: float

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < 1:
            msg = f"presence thresholds must be 0 < low <= high < 1, got low {self.low} and high {self.high}"
            raise ConfigError(msg)

    def kept(self, probabilities: np.ndarray) -> np.ndarray:
        """Probabilities ``(K,)`` of the slices of one volume in their order → ``(K,)`` bool: which keep their mask.

        Raises:
            ConfigError: they are not a sequence.
        """
        if probabilities.ndim != 1:
            msg = f"presence probabilities must be one sequence (K,), got {probabilities.shape}"
            raise ConfigError(msg)
        plausible = probabilities >= self.low
        starts = np.diff(plausible, prepend=False) & plausible
        run = np.cumsum(starts)  # number of the run, from 1; slices between runs carry the number before them
        certain = np.unique(run[probabilities >= self.high])
        return plausible & np.isin(run, certain)

    def as_dict(self) -> dict[str, float]:
        """What :meth:`of` reads under ``"presence"``."""
        return asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> PresenceRule | None:
        """The rule under ``"presence"`` in a checkpoint's description of its data, None where there is none.

        Raises:
            CheckpointError: what is there is no rule.
        """
        stored = data.get("presence")
        if stored is None:
            return None
        try:
            return cls(high=float(stored["high"]), low=float(stored["low"]))
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            msg = f"the checkpoint's presence thresholds {stored!r} cannot be used ({error}); train it again"
            raise CheckpointError(msg) from None


def calibrate(sequences: Iterable[tuple[np.ndarray, np.ndarray]], *, lost: float = 0.005) -> PresenceRule:
    """Choose both thresholds so that present objects lose almost nothing and absent ones are not found.

    `high` lies midway (in log-odds) between the largest probability in volumes without the object and the smallest
    of the largest probabilities in volumes with it; where these overlap, it is the value with the fewest wrong
    volumes, the lowest of several. `low` is the quantile `lost` of the slices that show their object.

    Args:
        sequences: for every volume and target the probabilities ``(K,)`` of its slices in their order, and whether
            each shows the target ``(K,)`` bool.
        lost: share of the slices with the object that may fall below `low`, 0 to 1.

    Raises:
        ConfigError: there is no sequence, one has two lengths, or `lost` is no share.
    """
    if not 0 <= lost <= 1:
        msg = f"the share of slices that may be lost must be 0 to 1, got {lost}"
        raise ConfigError(msg)
    shown: list[np.ndarray] = []
    absent: list[float] = []
    for probabilities, truth in sequences:
        if probabilities.shape != truth.shape or probabilities.ndim != 1 or not len(truth):
            msg = f"presence is calibrated on sequences of one length, got {probabilities.shape} and {truth.shape}"
            raise ConfigError(msg)
        clipped = np.clip(probabilities.astype(np.float64), _EDGE, 1 - _EDGE)
        if truth.any():
            shown.append(clipped[truth.astype(bool)])
        else:
            absent.append(float(clipped.max()))
    if not shown and not absent:
        msg = "presence cannot be calibrated without any volume; give a split that has labelled slices"
        raise ConfigError(msg)
    high = _between(np.array(absent), np.array([values.max() for values in shown]))
    low = float(np.quantile(np.concatenate(shown), lost, method="lower")) if shown else high
    return PresenceRule(high=high, low=min(low, high))


def _between(absent: np.ndarray, present: np.ndarray) -> float:
    """The threshold between the largest probabilities of volumes without and with the object."""
    if not len(absent):
        return min(0.5, float(present.min()))
    if not len(present):
        return max(0.5, _middle(float(absent.max()), 1 - _EDGE))
    # Between neighbouring values, and below them all: there a volume is found whatever it holds.
    values = np.unique(np.concatenate([absent, present]))
    candidates = [float(values[0]), *(_middle(a, b) for a, b in zip(values[:-1], values[1:], strict=True))]
    wrong = [int((absent >= value).sum() + (present < value).sum()) for value in candidates]
    return candidates[int(np.argmin(wrong))]  # the first of several is the lowest: towards sensitivity


def _middle(a: float, b: float) -> float:
    """Midway between two probabilities in log-odds."""
    odds = (np.log(a / (1 - a)) + np.log(b / (1 - b))) / 2
    return float(1 / (1 + np.exp(-odds)))
