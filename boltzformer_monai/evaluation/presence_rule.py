"""Presence probabilities of a volume's slices → the slices that keep their mask (not in the paper).

A single threshold loses the faint ends of an object or finds absent ones. So there are two, with hysteresis: if one
slice reaches the high one, every slice that reaches the low one keeps its mask, neighbour or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from boltzformer_monai.errors import CheckpointError, ConfigError, why
from boltzformer_monai.field_types import check_value

__all__ = ["PresenceEvidence", "PresenceRule", "calibrate", "presence_rule"]

_BELOW = 0.05  # in log-odds: margin for rounding on other devices
_AWAY = 1 / 3  # of the way from absences to objects: a lost object is the worse error
_EDGE = 1e-4  # least distance of probabilities from 0 and 1


@dataclass(frozen=True, kw_only=True)
class PresenceRule:
    """Keep the slices with probability ≥ `low` if one is ≥ `high`, else none.

    Attributes:
        high: probability that one slice of an object must reach.
        low: probability that its other slices must reach.

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
        """Probabilities ``(K,)`` of a volume's slices → ``(K,)`` bool: keep the mask.

        Raises:
            ConfigError: another shape.
        """
        if probabilities.ndim != 1:
            raise ConfigError(f"presence probabilities must be one sequence (K,), got {probabilities.shape}")
        certain = bool((probabilities >= self.high).any())
        return (probabilities >= self.low) & certain

    def as_dict(self) -> dict[str, float]:
        """Plain values, see :meth:`of`."""
        return asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> PresenceRule | None:
        """The rule under ``"presence"`` in a checkpoint's description of its data, or None.

        Raises:
            CheckpointError: it is no rule.
        """
        stored = data.get("presence")
        if stored is None:
            return None
        try:
            check_value("presence", stored, Mapping[str, float])
            return cls(high=stored["high"], low=stored["low"])
        except (KeyError, ConfigError) as error:
            msg = f"the checkpoint's presence thresholds cannot be used ({why(error)}); train it again"
            raise CheckpointError(msg) from None


def presence_rule(data: Mapping[str, Any], *, use: bool | str = True) -> PresenceRule | None:
    """The rule in a checkpoint's description of its data; None if there is none or ``use`` is false.

    Raises:
        ConfigError: ``use`` is neither true nor false.
        CheckpointError: the checkpoint's thresholds are invalid.
    """
    wanted = {"true": True, "false": False}.get(str(use).lower())
    if wanted is None:
        raise ConfigError(f"--presence must be True or False, got {use!r}")
    return PresenceRule.of(data) if wanted else None


class PresenceEvidence(NamedTuple):
    """One target in the slices of one volume, in their order."""

    probabilities: np.ndarray
    """``(K,)`` output of the presence head."""
    shown: np.ndarray
    """``(K,)`` bool: the slice contains the target."""
    hit: np.ndarray
    """``(K,)`` bool: the mask overlaps the target; without overlap there is nothing to lose."""


def calibrate(evidence: Iterable[PresenceEvidence], *, lost: float = 0.01) -> PresenceRule:
    """Choose thresholds that keep overlapped objects and drop predictions of absent ones.

    Score of an object = max presence over the slices whose mask overlaps it. Score of an absence = max presence over
    the slices that neither contain the target nor touch one that does. `high` lies between the quantile `lost` of the
    objects' scores and the quantile 1 − `lost` of the absences' scores; where these overlap, just below the objects.
    `low` is the quantile `lost` of the objects' min presence over the slices whose mask overlaps them.

    Args:
        evidence: one for every volume and target.
        lost: share of objects, and of absences, that may be lost, 0 to 1.

    Raises:
        ConfigError: there is no evidence, its lengths differ, or `lost` is out of range.
    """
    if not 0 <= lost <= 1:
        raise ConfigError(f"the share of objects that may be lost must be 0 to 1, got {lost}")
    kept: list[np.ndarray] = []
    absent: list[float] = []
    for each in evidence:
        shapes = {array.shape for array in each}
        if len(shapes) > 1 or each.shown.ndim != 1 or not len(each.shown):
            raise ConfigError(f"presence is calibrated on sequences of one length, got {sorted(shapes)}")
        clipped = np.clip(each.probabilities.astype(np.float64), _EDGE, 1 - _EDGE)
        if (overlapped := each.shown & each.hit).any():
            kept.append(clipped[overlapped])
        if (away := ~np.convolve(each.shown, np.ones(3, int))[1:-1].astype(bool)).any():
            absent.append(float(clipped[away].max()))
    if not kept and not absent:
        msg = "presence cannot be calibrated: no mask overlaps its object, and no object is absent; train longer"
        raise ConfigError(msg)
    least = _least([values.max() for values in kept], lost) if kept else 1 - _EDGE
    highest = 1 - _least([1 - value for value in absent], lost) if absent else 0.5
    high = min(_shifted(highest, _AWAY * max(0.0, _log_odds(least) - _log_odds(highest))), _shifted(least, -_BELOW))
    low = _least([values.min() for values in kept], lost) if kept else high
    return PresenceRule(high=high, low=min(_shifted(low, -_BELOW), high))


def _least(values: Sequence[float] | np.ndarray, lost: float) -> float:
    """The smallest value after removing the share ``lost`` of the smallest."""
    return float(np.sort(values)[min(int(lost * len(values)), len(values) - 1)])


def _log_odds(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


def _shifted(probability: float, by: float) -> float:
    """A probability moved in log-odds."""
    return float(1 / (1 + np.exp(-(_log_odds(probability) + by))))
