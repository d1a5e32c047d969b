"""Uncertainty scores for active learning: entropy of repeated sampling, and of the presence head."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod

from boltzformer_monai.errors import BoltzFormerError, StorageError
from boltzformer_monai.inferers.result_manifest import source_digest
from boltzformer_monai.io.scan_list import Scan
from boltzformer_monai.label.infer_request import parse_request
from boltzformer_monai.label.json_files import read_object, write_object
from boltzformer_monai.label.safe_ids import image_path
from boltzformer_monai.label.service import Segmented, SegmentService

_log = logging.getLogger(__name__)

REPEATS = 4
UNUSABLE = -1.0  # score of a scan that cannot be segmented: it comes last


class UncertaintyScoring(ScoringMethod):
    """Scores every scan without a final label, once for each checkpoint and set of prompts.

    The scores are stored in the workspace, not in the datastore: scoring runs in another process than the server.

    Args:
        service: runs the segmentations.
    """

    def __init__(self, service: SegmentService) -> None:
        super().__init__("Mean entropy of the model's repeated samplings of a scan")
        self.service = service

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
        scores = read_scores(self.service)
        found: dict[str, float] = {}
        for image_id in sorted(datastore.get_unlabeled_images()):
            try:
                path = image_path(datastore, image_id)
                made_of = [model, source_digest(Scan(image_id, path)), list(params.prompts), params.repeats]
                if scores.get(image_id, {}).get("of") != made_of:
                    with self.service.segmented(path, params) as segmented:
                        scores[image_id] = {"score": uncertainty_score(segmented), "of": made_of}
                    write_scores(self.service, scores)
                found[image_id] = scores[image_id]["score"]
            except StorageError:
                raise
            except BoltzFormerError as error:
                _log.warning("%s: not scored: %s", image_id, error)
                scores[image_id] = {"score": UNUSABLE, "of": None}
                write_scores(self.service, scores)
        return found


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
    """Path of the scores."""
    return service.settings.workspace / "scores.json"


def read_scores(service: SegmentService) -> dict[str, Any]:
    """Stored scores: image → ``{"score", "of"}``."""
    return read_object(scores_file(service))


def write_scores(service: SegmentService, scores: dict[str, Any]) -> None:
    """Store the scores.

    Raises:
        StorageError: they cannot be written.
    """
    write_object(scores_file(service), scores, "free space, or give another --conf workspace PATH")
