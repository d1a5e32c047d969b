"""Active learning strategy: the most uncertain scan comes next."""

from __future__ import annotations

from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from boltzformer_monai.label.learning.scoring import read_scores
from boltzformer_monai.label.service import SegmentService


class MostUncertain(Strategy):
    """The unlabelled scan with the highest score; scans without a score come first, by id.

    A scan that was handed out comes after all others, so that several annotators do not get the same one.

    Args:
        service: for the path of the scores.
    """

    def __init__(self, service: SegmentService) -> None:
        super().__init__("The scan with the highest uncertainty score; run /scoring/uncertainty first")
        self.service = service

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """``{"id", "weight"}``; ``None`` when all scans have a final label."""
        images = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
        if not images:
            return None
        scores = read_scores(self.service)

        def order(image: str) -> tuple[int, float, str]:
            handed = datastore.get_image_info(image).get("strategy", {}).get("uncertainty", {}).get("ts", 0)
            return int(handed), -float(scores.get(image, {}).get("score", 2.0)), image

        chosen = min(images, key=order)
        return {"id": chosen, "weight": scores.get(chosen, {}).get("score")}
