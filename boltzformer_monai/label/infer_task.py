"""MONAI Label's view of the model: a request in, a label map and its names out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from scipy import ndimage

from boltzformer_monai.inferers.result_caveats import about
from boltzformer_monai.inferers.results import point_finding, prompt_lesions
from boltzformer_monai.inferers.volume_result import in_memory_order
from boltzformer_monai.io.formats import write_image_file
from boltzformer_monai.label.files import temporary_file
from boltzformer_monai.label.infer_request import UNCERTAINTY, SegmentRequest, parse_request
from boltzformer_monai.label.service import Segmented, SegmentService

OF_THE_SERVER = ("model", "image", "description", "result_write_to_file", "_id", "_image_id", "images", "session")
"""Keys that MONAI Label itself puts into a request."""

_CENTRE_GRID = 48


class BoltzFormerInferTask(InferTask):
    """Free-text prompts → label map."""

    def __init__(self, service: SegmentService) -> None:
        self.service = service
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=service.label_numbers.names(),
            dimension=3,
            description="BoltzFormer: type what to look for. Research use only",
        )

    def info(self) -> dict[str, Any]:
        """The model's entry in /info; the labels are all names that have a number."""
        return {
            "type": self.type,
            "labels": self.service.declared(),
            "dimension": self.dimension,
            "description": self.description,
            "config": self.config(),
            "weights": self.service.model().segmenter.summary(),
        }

    def config(self) -> dict[str, Any]:
        """What 3D Slicer and OHIF offer for editing, with defaults."""
        return {
            "prompts": "; ".join(self.service.default_prompts()),
            "threshold": 0.5,
            "uncertainty": 0,
            "presence": True,
        }

    def get_path(self, validate: bool = True) -> str | None:
        """The checkpoint in use, for reading; there is none to overwrite."""
        return str(self.service.settings.current_checkpoint) if validate else None

    def is_valid(self) -> bool:
        """True: without a usable checkpoint the server does not start."""
        return True

    def request(self, params: dict[str, Any]) -> SegmentRequest:
        """Check a request.

        Raises:
            PromptError: the prompts cannot be used.
            ConfigError: another parameter is unknown or out of range.
        """
        return parse_request(params, default_prompts=self.service.default_prompts(), extra=OF_THE_SERVER)

    def __call__(self, request: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Segment ``request["image"]``, a path that was checked, into a temporary file.

        Raises:
            BoltzFormerError: the request, the scan or the checkpoint cannot be used.
        """
        wanted = self.request(request)
        with self.service.segmented(Path(request["image"]), wanted) as segmented:
            return self._write(segmented, wanted)

    def _write(self, segmented: Segmented, wanted: SegmentRequest) -> tuple[str, dict[str, Any]]:
        result = segmented.result
        values = self.service.label_numbers.values(wanted.prompts, temporary=segmented.untrained)
        labels = result.label_map(wanted.arbitration, values=values)
        places = label_places(labels)
        findings = []
        for index, (finding, value) in enumerate(zip(result.findings, values, strict=True)):
            lesions = prompt_lesions(result, index, labels == value, segmented.settings)
            findings.append(
                {
                    **finding.as_dict(),
                    "label": value,
                    "label_voxels": places[value][0] if value in places else 0,
                    "caveats": [each.text for each in about(result.caveats, finding.prompt)],
                    **point_finding(result, index, lesions),
                    "lesions": [lesion.as_dict() for lesion in lesions],
                }
            )
        # 3D Slicer names the segments in the map one after the other, so names that are not in it must be left out.
        in_map = sorted((each for each in findings if each["label_voxels"]), key=lambda each: int(str(each["label"])))
        names = {str(each["prompt"]): each["label"] for each in in_map}
        with temporary_file(wanted.result_extension) as path:
            write_image_file(labels.astype(wanted.result_dtype, copy=False), result.grid.affine, path, fast=True)
        params: dict[str, Any] = {
            **segmented.described(findings),
            "label_names": names,
            "centroids": {name: [label, *places[label][1]] for name, label in names.items()},  # for OHIF's panel
        }
        if wanted.repeats >= UNCERTAINTY[0]:
            params["uncertainty"] = uncertainty(segmented)
        return str(path), params


def uncertainty(segmented: Segmented) -> dict[str, Any]:
    """For each prompt the mean entropy in bits over its uncertain voxels, and the sum of all in bit · ml."""
    result = segmented.result
    voxel_ml = abs(float(np.linalg.det(result.grid.affine[:3, :3]))) / 1000
    summary: dict[str, Any] = {}
    for index, prompt in enumerate(result.prompts):
        if (entropy := result.entropy(index)) is not None:
            bits, voxels = float(entropy.sum(dtype=np.float64)) / 255, int(np.count_nonzero(entropy))
            summary[prompt] = {"mean_bits": bits / voxels if voxels else 0.0, "bit_ml": bits * voxel_ml}
    return summary


def label_places(labels: np.ndarray) -> dict[int, tuple[int, list[int]]]:
    """Voxels and about the centre ``[i, j, k]`` of each value that occurs."""
    found: dict[int, tuple[int, list[int]]] = {}
    whole, order = in_memory_order(labels)
    held = np.flatnonzero(whole.any(axis=(1, 2)))  # most scans hold objects in some slices only
    if not len(held):
        return found
    first = int(held[0])
    laid = whole[first : int(held[-1]) + 1]
    for value, turned in enumerate(ndimage.find_objects(laid), 1):
        if turned is None:
            continue
        along = slice(turned[0].start + first, turned[0].stop + first)
        box = tuple((along, *turned[1:])[order.index(axis)] for axis in range(3))
        voxels = int(np.count_nonzero(laid[turned] == value))
        # A viewer only jumps there, so every n-th voxel of a large object is enough.
        steps = [max(1, (axis.stop - axis.start) // _CENTRE_GRID) for axis in box]
        inside = labels[tuple(slice(axis.start, axis.stop, step) for axis, step in zip(box, steps, strict=True))]
        where = np.nonzero(inside == value)
        middle = [
            float(index.mean()) if len(index) else (n - 1) / 2 for index, n in zip(where, inside.shape, strict=True)
        ]
        centre = [round(axis.start + m * step) for axis, m, step in zip(box, middle, steps, strict=True)]
        found[value] = (voxels, centre)
    return found
