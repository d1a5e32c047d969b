"""A metric of volumes that MONAI computes: the average symmetric surface distance."""

import torch
from monai.metrics import compute_average_surface_distance

from boltzformer_monai.evaluation.mask_pair import MaskPair
from boltzformer_monai.evaluation.metrics import Metric, register_metric


def surface_distance(masks: MaskPair) -> float | None:
    """In mm; None where one of both masks ``(N, H, W)`` is empty."""
    if not (masks.present and masks.predicted):
        return None
    prediction, truth = (torch.from_numpy(mask)[None, None] for mask in (masks.prediction, masks.truth))
    distance = compute_average_surface_distance(
        prediction, truth, include_background=True, symmetric=True, spacing=list(masks.spacing)
    )
    return float(distance)


register_metric(
    Metric(
        name="surface_distance_mm",
        unit="mm",
        better="lower",
        compute=surface_distance,
        dimensions=(3,),
        title="mean surface distance",
        description="Average symmetric distance between the surfaces, where there are both.",
    )
)
