"""Probabilities as 8-bit levels, in which slices are kept and planes are averaged."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

__all__ = ["mean_level", "probability_levels", "threshold_level"]


def probability_levels(probability: np.ndarray) -> np.ndarray:
    """Probabilities from 0 to 1 → ``min(255, floor(256 p))`` uint8."""
    return np.minimum(probability * np.float32(256), np.float32(255)).astype(np.uint8)


def threshold_level(threshold: float) -> int:
    """The least level that reaches a threshold from 0 to 1."""
    return min(255, math.ceil(256 * threshold))


def mean_level(planes: Iterable[np.ndarray], count: int) -> np.ndarray:
    """Mean of levels of equal shape, uint8, rounded down.

    Args:
        planes: taken one after the other, so that only one need be in memory.
        count: how many they are.
    """
    each = iter(planes)
    first = next(each)
    if count == 1:
        return first
    total = first.astype(np.uint16)
    for levels in each:
        total += levels
    total //= count
    return total.astype(np.uint8)
