"""What a mask is worth in three dimensions: overlap, surfaces in mm, and its connected components."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from boltzformer_monai.errors import ConfigError, DatasetError
from boltzformer_monai.evaluation.metrics import dice

__all__ = ["VolumeMeasures", "check_tolerance", "measure_volume"]

_NEIGHBOURS = np.ones((3, 3, 3), bool)  # voxels that share a corner belong to one component


@dataclass(frozen=True)
class VolumeMeasures:
    """What a prediction and the truth have in common in one volume, for one target.

    Where the target is absent the first three are None, whether or not it was answered; where it is present and was
    not answered at all, the overlaps are 0 and the distance, which does not exist, is None.

    Attributes:
        dice: 0 to 1.
        surface_dice: normalised surface Dice, 0 to 1: the share of both surfaces' voxels that lie within the
            tolerance of the other surface.
        hausdorff95_mm: the larger of both 95 % quantiles of a surface's distances to the other, in mm.
        truth_ml: volume of the target in ml.
        predicted_ml: volume of the prediction in ml.
        lesions: connected components of the truth.
        lesions_found: those that the prediction overlaps, by one voxel at least.
        false_components: connected components of the prediction that overlap no truth.
    """

    dice: float | None
    surface_dice: float | None
    hausdorff95_mm: float | None
    truth_ml: float
    predicted_ml: float
    lesions: int
    lesions_found: int
    false_components: int

    @property
    def present(self) -> bool:
        """Whether the target is in the volume."""
        return self.truth_ml > 0

    @property
    def answered(self) -> bool:
        """Whether the prediction has a voxel at all."""
        return self.predicted_ml > 0


def measure_volume(
    predicted: np.ndarray, truth: np.ndarray, *, spacing: Sequence[float], tolerance: float = 2.0
) -> VolumeMeasures:
    """Compare two masks ``(N, H, W)`` bool, which may be cropped to a box that contains both.

    Surfaces are the voxels of a mask with a neighbour (by face) outside of it, as in MONAI's metrics. Only the
    bounding box of both masks is looked at. Components are joined by faces, edges and corners.

    Args:
        predicted: the prediction.
        truth: the target.
        spacing: mm between voxels along the three axes.
        tolerance: mm that a surface may be off in the surface Dice.

    Raises:
        DatasetError: shapes or dtypes differ, or the spacing is not positive.
        ConfigError: the tolerance is not positive.
    """
    check_tolerance(tolerance)
    if predicted.shape != truth.shape or truth.ndim != 3 or not predicted.dtype == truth.dtype == np.bool_:
        kinds = f"{predicted.dtype} {predicted.shape} and {truth.dtype} {truth.shape}"
        msg = f"two bool masks (N, H, W) of one shape can be compared, got {kinds}"
        raise DatasetError(msg)
    if len(spacing) != 3 or not all(math.isfinite(mm) and mm > 0 for mm in spacing):
        msg = f"a volume needs a positive spacing in mm along its three axes, got {tuple(spacing)}"
        raise DatasetError(msg)
    predicted, truth = _cropped(predicted, truth)
    both = predicted & truth
    counts = [int(mask.sum()) for mask in (both, predicted, truth)]
    ml = math.prod(spacing) / 1000
    overlap = surface = distance = None
    if counts[2]:
        overlap, surface = dice(*counts), 0.0
        if counts[1]:
            surface, distance = _surfaces(predicted, truth, spacing, tolerance)
    lesions, found = _components(truth, both)
    answers, right = _components(predicted, both)
    return VolumeMeasures(
        dice=overlap,
        surface_dice=surface,
        hausdorff95_mm=distance,
        truth_ml=counts[2] * ml,
        predicted_ml=counts[1] * ml,
        lesions=lesions,
        lesions_found=found,
        false_components=answers - right,
    )


def check_tolerance(tolerance: float) -> None:
    """Raise a ``ConfigError`` if this is no distance in mm."""
    number = isinstance(tolerance, int | float) and not isinstance(tolerance, bool)
    if not number or not math.isfinite(tolerance) or tolerance <= 0:
        msg = f"the tolerance of the surface Dice must be a distance in mm above 0, got {tolerance!r}"
        raise ConfigError(msg)


def _cropped(*masks: np.ndarray) -> list[np.ndarray]:
    """Masks of one shape, cropped to the box that holds them all; whole where all are empty."""
    box = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        used = np.flatnonzero(np.logical_or.reduce([mask.any(others) for mask in masks]))
        box.append(slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(None))
    return [mask[tuple(box)] for mask in masks]


def _surfaces(
    predicted: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance: float
) -> tuple[float, float]:
    """Surface Dice and 95 % Hausdorff distance; MONAI puts a margin around the masks itself."""
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    one, other = (torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (predicted, truth))
    mm = [float(value) for value in spacing]
    with warnings.catch_warnings():  # MONAI 1.6 warns of how it calls itself
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        surface = compute_surface_dice(one, other, [float(tolerance)], include_background=True, spacing=mm)
        distance = compute_hausdorff_distance(one, other, include_background=True, percentile=95, spacing=mm)
    return float(surface), float(distance)


def _components(mask: np.ndarray, touched: np.ndarray) -> tuple[int, int]:
    """Connected components of a mask, and how many of them have a voxel in ``touched``, a part of the mask."""
    from scipy import ndimage

    labels, count = ndimage.label(mask, structure=_NEIGHBOURS)
    return int(count), len(np.unique(labels[touched]))
