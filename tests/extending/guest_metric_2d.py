"""A metric of slices: the distance between the centres of prediction and truth."""

import numpy as np

from boltzformer_monai.evaluation.mask_pair import MaskPair
from boltzformer_monai.evaluation.metrics import Metric, register_metric


def centre_distance(masks: MaskPair) -> float | None:
    """In mm; None where one of both masks ``(H, W)`` is empty."""
    if not (masks.present and masks.predicted):
        return None
    prediction, truth = (np.argwhere(mask).mean(0) * masks.spacing for mask in (masks.prediction, masks.truth))
    return float(np.linalg.norm(prediction - truth))


register_metric(
    Metric(
        name="centre_distance_mm",
        unit="mm",
        better="lower",
        compute=centre_distance,
        dimensions=(2,),
        title="centre distance",
        description="Distance between the centres of prediction and truth, where there are both.",
    )
)
