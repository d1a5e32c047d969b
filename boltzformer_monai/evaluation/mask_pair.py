"""A predicted mask and the truth, in 2-D or 3-D, with measurements for metrics."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from boltzformer_monai.errors import ConfigError, DatasetError
from boltzformer_monai.evaluation.components import Components, bounding_box, find_components
from boltzformer_monai.evaluation.strata import equivalent_diameter

__all__ = ["MaskPair", "check_tolerance", "dice"]


def dice(intersection: int, predicted: int, truth: int) -> float | None:
    """2·intersection / (predicted + truth), all in pixels or voxels.

    Returns:
        0 to 1, or None if both masks are empty; averages omit it.

    Raises:
        DatasetError: a count is negative, or the intersection is larger than one of the masks.
    """
    if not 0 <= intersection <= min(predicted, truth):
        msg = f"pixel counts contradict each other: intersection {intersection}, predicted {predicted}, truth {truth}"
        raise DatasetError(msg)
    total = predicted + truth
    return 2 * intersection / total if total else None


def check_tolerance(tolerance: float) -> None:
    """Raise a ``ConfigError`` if this is no distance in mm."""
    number = isinstance(tolerance, int | float) and not isinstance(tolerance, bool)
    if not number or not math.isfinite(tolerance) or tolerance <= 0:
        raise ConfigError(f"the tolerance of the surface Dice must be a distance in mm above 0, got {tolerance!r}")


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskPair:
    """Input of a metric; measurements are computed on first access.

    Surfaces are the voxels of a mask with a face neighbour outside of it, as in MONAI's metrics. Components are
    connected by faces, edges and corners.

    Attributes:
        prediction: ``(H, W)`` bool for a slice, ``(N, H, W)`` for a volume, slices first.
        truth: the reference mask, of the same shape.
        spacing: mm between pixels along these axes.
        tolerance_mm: of the surface Dice.
        probability: float32 of the prediction's shape, 0 to 1; None for a volume.
        in_mm: whether the spacing is in mm; False for pictures without a scale.

    Raises:
        DatasetError: shapes or dtypes differ, or the spacing is not positive.
        ConfigError: the tolerance is not positive.
    """

    prediction: np.ndarray
    truth: np.ndarray
    spacing: tuple[float, ...]
    tolerance_mm: float = 2.0
    probability: np.ndarray | None = None
    in_mm: bool = True

    def __post_init__(self) -> None:
        check_tolerance(self.tolerance_mm)
        one, other = self.prediction, self.truth
        if one.shape != other.shape or other.ndim not in (2, 3) or not one.dtype == other.dtype == np.bool_:
            kinds = f"{one.dtype} {one.shape} and {other.dtype} {other.shape}"
            raise DatasetError(f"two bool masks (H, W) or (N, H, W) of one shape can be compared, got {kinds}")
        if len(self.spacing) != other.ndim or not all(math.isfinite(mm) and mm > 0 for mm in self.spacing):
            msg = f"masks need a positive spacing in mm along each of their {other.ndim} axes, got {self.spacing}"
            raise DatasetError(msg)

    @cached_property
    def truth_size(self) -> int:
        """Pixels or voxels of the truth."""
        return int(np.count_nonzero(self.truth))

    @cached_property
    def predicted_size(self) -> int:
        """Pixels or voxels of the prediction."""
        return int(np.count_nonzero(self.prediction))

    @cached_property
    def intersection(self) -> int:
        """Pixels or voxels in both."""
        return int(np.count_nonzero(np.logical_and(*self._cropped)))

    @property
    def present(self) -> bool:
        """Whether the truth is not empty."""
        return self.truth_size > 0

    @property
    def predicted(self) -> bool:
        """Whether the prediction is not empty."""
        return self.predicted_size > 0

    @property
    def dice(self) -> float | None:
        """0 to 1; None if both masks are empty."""
        return dice(self.intersection, self.predicted_size, self.truth_size)

    @property
    def truth_ml(self) -> float:
        """Volume of the truth in ml (of a slice: its area in 1000 mm²)."""
        return self.truth_size * math.prod(self.spacing) / 1000

    @property
    def predicted_ml(self) -> float:
        """Volume of the prediction in ml (of a slice: its area in 1000 mm²)."""
        return self.predicted_size * math.prod(self.spacing) / 1000

    @property
    def surface_dice(self) -> float | None:
        """Share of both surfaces within the tolerance of each other, 0 to 1; None if a mask is empty."""
        from monai.metrics import compute_surface_dice

        return self._of_surfaces(compute_surface_dice, class_thresholds=[float(self.tolerance_mm)])

    @property
    def hausdorff95_mm(self) -> float | None:
        """Larger 95 % quantile of the distances between the surfaces; None if a mask is empty."""
        from monai.metrics import compute_hausdorff_distance

        return self._of_surfaces(compute_hausdorff_distance, percentile=95)

    @property
    def lesions(self) -> tuple[int, int]:
        """Connected components of the truth: number touched by the prediction, and of all."""
        return self.components.touched, len(self.components.truth)

    @property
    def false_components(self) -> int:
        """Number of connected components of the prediction that touch no truth."""
        return len(self.components.predicted) - self.components.touching

    @cached_property
    def components(self) -> Components:
        """Connected components of both masks."""
        return find_components(*self._cropped)

    @property
    def diameter_mm(self) -> float | None:
        """Equivalent diameter of the largest component of the truth; None if it is empty or without a scale."""
        if not self.present or not self.in_mm:
            return None
        return float(self.diameters_mm(self.components.truth.max()))

    def diameters_mm(self, sizes: np.ndarray | float) -> np.ndarray:
        """Pixels or voxels → equivalent diameters in mm."""
        return equivalent_diameter(sizes * math.prod(self.spacing), self.truth.ndim)

    @cached_property
    def _cropped(self) -> tuple[np.ndarray, np.ndarray]:
        """Prediction and truth within their common bounding box; whole if both are empty."""
        box = bounding_box(self.prediction, self.truth)
        return self.prediction[box], self.truth[box]

    def _of_surfaces(self, metric: Callable[..., Any], **settings: Any) -> float | None:
        """A metric of MONAI; None if a mask is empty."""
        import torch

        if not (self.present and self.predicted):
            return None
        prediction, truth = (torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in self._cropped)
        spacing = [float(mm) for mm in self.spacing]
        with warnings.catch_warnings():  # MONAI 1.6 warns of how it calls itself
            warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
            return float(metric(prediction, truth, include_background=True, spacing=spacing, **settings))
