"""Active learning: uncertainty scores from repeated sampling and the presence head; the most uncertain scan next."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy

from boltzformer_monai.errors import BoltzFormerError, StorageError
from boltzformer_monai.inferers.result_manifest import source_digest
from boltzformer_monai.io.scan_list import Scan
from boltzformer_monai.label.files import read_object
from boltzformer_monai.label.infer_request import parse_request
from boltzformer_monai.label.safe_ids import image_path
from boltzformer_monai.label.service import Segmented, SegmentService
from boltzformer_monai.storage import write_json

_log = logging.getLogger(__name__)

REPEATS = 4
UNUSABLE = -1.0  # score of a scan that cannot be segmented: it comes last


class UncertaintyScoring(ScoringMethod):
    """Scores every scan without a final label, once for each checkpoint and set of prompts.

    The scores are stored in the workspace, not in the datastore: scoring runs in another process than the server.

    Args:
        audited: around every scan, with the name of the job.
    """

    def __init__(self, service: SegmentService, audited: Callable[[str], AbstractContextManager[None]]) -> None:
        super().__init__("Mean entropy of the model's repeated samplings of a scan")
        self.service = service
        self.audited = audited

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, float]:
        """Score images without a current score; returns all scores by image.

        Raises:
            BoltzFormerError: the request or the checkpoint cannot be used.
        """
        # POST /scoring/ leaves each method's parameters under its name.
        own = request.get("uncertainty")
        stated = own if isinstance(own, Mapping) else request
        wanted: dict[str, Any] = {key: stated[key] for key in ("prompts", "uncertainty") if key in stated}
        defaults = self.service.default_prompts()
        params = parse_request({"uncertainty": REPEATS, **wanted}, default_prompts=defaults)
        model = self.service.model().sha256
        scores = read_object(scores_file(self.service))
        found: dict[str, float] = {}
        for image_id in sorted(datastore.get_unlabeled_images()):
            made_of: list[Any] | None
            try:
                path = image_path(datastore, image_id)
                made_of = [model, source_digest(Scan(image_id, path)), list(params.prompts), params.repeats]
                if scores.get(image_id, {}).get("of") == made_of:
                    found[image_id] = scores[image_id]["score"]
                    continue
                with self.audited("scoring"), self.service.segmented(path, params) as segmented:
                    score = found[image_id] = uncertainty_score(segmented)
            except StorageError:
                raise
            except BoltzFormerError as error:
                _log.warning("%s: not scored: %s", image_id, error)
                score, made_of = UNUSABLE, None
            scores[image_id] = {"score": score, "of": made_of}
            write_json(scores_file(self.service), scores, advice="free space, or give another --conf workspace PATH")
        return found


class MostUncertain(Strategy):
    """The unlabelled scan with the highest score; scans without a score come first, by id.

    A scan that was handed out comes after all others, so that several annotators do not get the same one.
    """

    def __init__(self, service: SegmentService) -> None:
        super().__init__("The scan with the highest uncertainty score; run /scoring/uncertainty first")
        self.service = service

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """``{"id", "weight"}``; ``None`` when all scans have a final label."""
        images = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
        if not images:
            return None
        scores = read_object(scores_file(self.service))

        def order(image: str) -> tuple[int, float, str]:
            handed = datastore.get_image_info(image).get("strategy", {}).get("uncertainty", {}).get("ts", 0)
            return int(handed), -float(scores.get(image, {}).get("score", 2.0)), image

        chosen = min(images, key=order)
        return {"id": chosen, "weight": scores.get(chosen, {}).get("score")}


def uncertainty_score(segmented: Segmented) -> float:
    """0 (certain) to 1: the largest of the prompts' scores.

    A prompt's score is the mean entropy in bits over voxels with a probability of at least 0.1; if nothing was found,
    it is the entropy of the presence probability.
    """
    result = segmented.result
    scores = [0.0]
    for index, finding in enumerate(result.findings):
        entropy = result.entropy(index)
        probability = result.probability(index)
        region = probability >= 26  # 0.1 of 255
        if entropy is not None and region.any():
            scores.append(float(entropy[region].mean(dtype=np.float64)) / 255)
        if not finding.found and finding.presence is not None and 0 < finding.presence < 1:
            p = finding.presence
            scores.append(float(-p * np.log2(p) - (1 - p) * np.log2(1 - p)))
    return round(max(scores), 6)


def scores_file(service: SegmentService) -> Path:
    """JSON file of the scores: image → ``{"score", "of"}``."""
    return service.settings.workspace / "scores.json"
