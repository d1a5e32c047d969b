"""Neighbouring slices as channels (2.5-D): which ones, and how two slices are blended into one between them.

Training (from stored slices) and inference (from a volume) both use these, so a network sees the same channels in both.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

__all__ = ["Offset", "blend", "channel_offsets", "reach"]

_DIGITS = 3  # of an offset in slices: a spacing of 1.0000001 mm must not blend slices that are 1 mm apart


class Offset(NamedTuple):
    """Distance of a channel from its slice, in slices: ``whole + share``."""

    whole: int
    share: float
    """From 0 to below 1: of the slice at ``whole + 1`` in the channel, the rest is of the one at ``whole``."""


def channel_offsets(neighbours: int, *, distance_mm: float = 0.0, spacing_mm: float = 1.0) -> list[Offset]:
    """Offsets of the ``2 · neighbours + 1`` channels of a slice, from the lowest slice index to the highest.

    Args:
        neighbours: channels on either side of the slice's own.
        distance_mm: from channel to channel; 0: adjacent slices, however far apart they are.
        spacing_mm: from slice to slice.
    """
    # Of the spacing as many digits as the tables of a data set keep.
    step = distance_mm / float(f"{spacing_mm:.6g}") if distance_mm else 1.0
    positions = (round(number * step, _DIGITS) for number in range(-neighbours, neighbours + 1))
    return [Offset(math.floor(position), position - math.floor(position)) for position in positions]


def reach(neighbours: int, *, distance_mm: float = 0.0, spacing_mm: float = 1.0) -> int:
    """Slices needed on either side for these channels."""
    lowest = channel_offsets(neighbours, distance_mm=distance_mm, spacing_mm=spacing_mm)[0]
    return -lowest.whole


def blend(lower: np.ndarray, upper: np.ndarray, share: float) -> np.ndarray:
    """Grey values uint8 between two slices: linear, ``share`` of the upper one, rounded."""
    if share == 0:
        return lower
    mixed = lower.astype(np.float32) * np.float32(1 - share) + upper.astype(np.float32) * np.float32(share)
    return np.rint(mixed).astype(np.uint8)
