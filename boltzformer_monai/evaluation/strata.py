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
    return Stratum(name, title, "area_fraction", low / 100, high / 100)


AREA_STRATA = (
    _area("below_1_percent", "below 1 % of the image", 0, 100 * SMALL_AREA_FRACTION),
    _area("below_0.01_percent", "below 0.01 % of the image", 0, 0.01),
    _area("0.01_to_0.1_percent", "0.01 to 0.1 % of the image", 0.01, 0.1),
    _area("0.1_to_1_percent", "0.1 to 1 % of the image", 0.1, 1),
    _area("from_1_percent", "1 % of the image and more", 100 * SMALL_AREA_FRACTION, math.inf),
)
"""Small objects as a whole, then parted by powers of ten, then large ones."""

_EDGES = (0, 3, 6, 10, 30, math.inf)
DIAMETER_STRATA = tuple(
    Stratum(
        f"below_{high}_mm" if not low else f"from_{low}_mm" if math.isinf(high) else f"{low}_to_{high}_mm",
        f"below {high} mm" if not low else f"{low} mm and more" if math.isinf(high) else f"{low} to {high} mm",
        "diameter_mm",
        low,
        high,
    )
    for low, high in zip(_EDGES, _EDGES[1:], strict=False)
)
"""Edges at 3, 6, 10 and 30 mm: micronodules are below 3 mm, lung nodules are followed up from 6 mm, lesions are
measurable from 10 mm (RECIST 1.1), and masses begin at 30 mm."""

STRATA_TITLES = {stratum.name: stratum.title for stratum in (*AREA_STRATA, *DIAMETER_STRATA)}


def equivalent_diameter(size: np.ndarray | float, dimensions: int) -> np.ndarray:
    """Diameter in mm of the circle of this area in mm² (2 dimensions), or of the ball of this volume in mm³ (3)."""
    if dimensions == 2:
        return 2 * np.sqrt(np.asarray(size) / math.pi)
    return np.cbrt(6 * np.asarray(size) / math.pi)
