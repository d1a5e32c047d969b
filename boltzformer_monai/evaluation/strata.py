"""Sizes by which results are parted: share of the image, and diameter in millimetres."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["AREA_STRATA", "DIAMETER_STRATA", "SMALL_AREA_FRACTION", "STRATA_TITLES", "Stratum", "equivalent_diameter"]

SMALL_AREA_FRACTION = 0.01
"""Share of the image below which an instance is a small object (Table 2 of the paper)."""


@dataclass(frozen=True)
class Stratum:
    """Sizes from `low` (included) to `high` (excluded).

    Attributes:
        name: key in ``metrics.json``.
        title: in tables.
        of: what is measured: the target's share of the image (0 to 1), or a diameter in mm.
        low: least size.
        high: first size that is too large.
    """

    name: str
    title: str
    of: Literal["area_fraction", "diameter_mm"]
    low: float
    high: float

    def holds(self, size: float | None) -> bool:
        """Whether a size lies in it; an unknown one and 0 lie in none."""
        return size is not None and size > 0 and self.low <= size < self.high


def _area(name: str, title: str, low: float, high: float) -> Stratum:
    return Stratum(name, title, "area_fraction", low, high)


def _diameter(name: str, title: str, low: float, high: float) -> Stratum:
    return Stratum(name, title, "diameter_mm", low, high)


AREA_STRATA = (
    _area("below_1_percent", "below 1 % of the image", 0, SMALL_AREA_FRACTION),
    _area("below_0.01_percent", "below 0.01 % of the image", 0, 0.0001),
    _area("0.01_to_0.1_percent", "0.01 to 0.1 % of the image", 0.0001, 0.001),
    _area("0.1_to_1_percent", "0.1 to 1 % of the image", 0.001, SMALL_AREA_FRACTION),
    _area("from_1_percent", "1 % of the image and more", SMALL_AREA_FRACTION, math.inf),
)
"""Small objects as a whole, then parted by powers of ten, then large ones."""

DIAMETER_STRATA = (
    _diameter("below_3_mm", "below 3 mm", 0, 3),
    _diameter("3_to_6_mm", "3 to 6 mm", 3, 6),
    _diameter("6_to_10_mm", "6 to 10 mm", 6, 10),
    _diameter("10_to_30_mm", "10 to 30 mm", 10, 30),
    _diameter("from_30_mm", "30 mm and more", 30, math.inf),
)
"""Micronodules are below 3 mm, lung nodules are followed up from 6 mm, lesions are measurable from 10 mm (RECIST 1.1),
and masses begin at 30 mm."""

STRATA_TITLES = {stratum.name: stratum.title for stratum in (*AREA_STRATA, *DIAMETER_STRATA)}


def equivalent_diameter(size: np.ndarray | float, dimensions: int) -> np.ndarray:
    """Diameter in mm of the circle of this area in mm² (2 dimensions), or of the ball of this volume in mm³ (3)."""
    if dimensions == 2:
        return 2 * np.sqrt(np.asarray(size) / math.pi)
    return np.cbrt(6 * np.asarray(size) / math.pi)
