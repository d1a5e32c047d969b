"""Objects of a case, one by one: found or missed, with size and confidence; and which share is found by size.

An object of the truth is a connected component of it. Candidates are the components of the predicted mask, and fainter
ones: components of the probability from `FAINT` on that contain no pixel of the mask. A candidate's confidence is its
mean probability, so all that are in the mask come before all that are not.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from boltzformer_monai.csv_cells import from_cell, to_cell
from boltzformer_monai.errors import DatasetError, why
from boltzformer_monai.evaluation.bootstrap import Bootstrap, Observation
from boltzformer_monai.evaluation.components import IOU_THRESHOLDS, Components, bounding_box, label_components, overlaps
from boltzformer_monai.evaluation.levels import threshold_level
from boltzformer_monai.evaluation.mask_pair import MaskPair
from boltzformer_monai.evaluation.strata import AREA_STRATA, DIAMETER_STRATA, Stratum
from boltzformer_monai.limits import open_text
from boltzformer_monai.storage import replacing

__all__ = [
    "FAINT", "ObjectScore", "find_objects", "found_by_size", "highest_confidence", "read_objects_csv",
    "write_objects_csv",
]  # fmt: skip

FAINT = 0.1
"""Least probability of the pixels of a candidate that is not in the mask."""

_FAINT_LEVEL = threshold_level(FAINT)
Part = Literal["slices", "volumes"]
Kind = Literal["truth", "mask", "faint"]


@dataclass(frozen=True)
class ObjectScore:
    """An object of the truth, or a candidate.

    Attributes:
        part: of the evaluation.
        case: name of the slice's image, or id of the volume.
        patient: pseudonym.
        target: canonical target name.
        kind: of the truth; a candidate in the mask; or one that is too faint for it.
        size: pixels or voxels.
        area_fraction: share of the slice, 0 to 1; None in volumes.
        diameter_mm: equivalent diameter; None without a scale.
        confidence: of a candidate, 0 to 1; None for the truth, and where probabilities are unknown.
        iou0: of the truth: has a partner in the mask, one to one, with an IoU above 0. Of a candidate: overlaps so an
            object that no more confident candidate took.
        iou10: the same above 0.1.
        iou50: the same above 0.5.
    """

    part: Part
    case: str
    patient: str
    target: str
    kind: Kind
    size: int
    area_fraction: float | None
    diameter_mm: float | None
    confidence: float | None
    iou0: bool
    iou10: bool
    iou50: bool


def find_objects(
    masks: MaskPair, *, part: Part, case: str, patient: str, target: str, levels: np.ndarray | None = None
) -> list[ObjectScore]:
    """The objects of one case and its candidates, by falling confidence.

    Args:
        masks: prediction and truth.
        part: of the evaluation.
        case: name of the slice's image, or id of the volume.
        patient: pseudonym.
        target: canonical target name.
        levels: probabilities of the masks' shape as 8-bit levels; those below `FAINT` may be 0. Without them there are
            no fainter candidates, and no confidences.
    """
    pixels = masks.truth.size if part == "slices" else None

    def score(kind: Kind, size: int, confidence: float | None, found: Iterable[bool]) -> ObjectScore:
        area = None if pixels is None else size / pixels
        diameter = float(masks.diameters_mm(size)) if masks.in_mm else None
        return ObjectScore(part, case, patient, target, kind, size, area, diameter, confidence, *map(bool, found))

    known = masks.components
    partners = [known.match(threshold) for threshold in IOU_THRESHOLDS.values()]
    found = np.stack([np.isin(np.arange(len(known.truth)), each.truth) for each in partners], axis=1)
    objects = [score("truth", int(size), None, each) for size, each in zip(known.truth, found, strict=True)]
    if levels is None:
        taken = np.stack([np.isin(np.arange(len(known.predicted)), each.predicted) for each in partners], axis=1)
        return objects + [
            score("mask", int(size), None, each) for size, each in zip(known.predicted, taken, strict=True)
        ]
    sizes, confidence, in_mask, hits = _candidates(masks.prediction, masks.truth, levels)
    return objects + [
        score("mask" if in_mask[index] else "faint", int(sizes[index]), float(confidence[index]), hits[index])
        for index in range(len(sizes))
    ]


def highest_confidence(objects: Iterable[ObjectScore]) -> float | None:
    """Of the candidates in the mask; None without one, or where probabilities are unknown."""
    return max(
        (each.confidence for each in objects if each.kind == "mask" and each.confidence is not None), default=None
    )


def _candidates(
    prediction: np.ndarray, truth: np.ndarray, levels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sizes, confidences, whether in the mask, and hits ``(C, thresholds)`` of all candidates by falling confidence."""
    wide = prediction | (levels >= _FAINT_LEVEL)
    box = bounding_box(wide, truth)
    prediction, truth, wide, levels = prediction[box], truth[box], wide[box], levels[box]
    labels, count = label_components(prediction)
    around, blobs = label_components(wide)
    faint = np.ones(blobs + 1, bool)
    faint[0] = False
    faint[np.unique(around[prediction])] = False
    numbers = np.where(faint, count + np.cumsum(faint), 0)
    labels = np.where(prediction, labels, numbers[around])
    total = count + int(faint.sum())
    found = overlaps(labels, total, *label_components(truth))
    inside = labels > 0
    summed = np.bincount(labels[inside], weights=levels[inside] + 0.5, minlength=total + 1)[1:]
    confidence = summed / found.predicted / 256
    order = np.argsort(-confidence, kind="stable")
    hits = np.stack([_first_hits(found, np.argsort(order), each) for each in IOU_THRESHOLDS.values()], axis=1)
    return found.predicted[order], confidence[order], order < count, hits[order]


def _first_hits(found: Components, rank: np.ndarray, threshold: float) -> np.ndarray:
    """``(C,)`` bool: each candidate, in its rank's order, takes the free object that it overlaps most."""
    hits, taken = np.zeros(len(found.predicted), bool), np.zeros(len(found.truth), bool)
    for pair in np.lexsort((-found.iou, rank[found.pairs[:, 0]])):
        candidate, truth = found.pairs[pair]
        if found.iou[pair] > threshold and not hits[candidate] and not taken[truth]:
            hits[candidate] = taken[truth] = True
    return hits


def found_by_size(objects: Iterable[ObjectScore], *, bootstrap: Bootstrap) -> dict[str, Any]:
    """Share of the objects of the truth that are found, by their own size.

    Returns:
        Stratum → suffix of the IoU (``"iou0"``, …) → estimate; only strata of a size that is known.
    """
    truth = [each for each in objects if each.kind == "truth"]
    strata: list[Stratum] = []
    for group, size in ((AREA_STRATA, "area_fraction"), (DIAMETER_STRATA, "diameter_mm")):
        strata += group if any(getattr(each, size) is not None for each in truth) else ()
    found: dict[str, Any] = {}
    for stratum in strata:
        inside = [each for each in truth if stratum.holds(getattr(each, stratum.of))]
        found[stratum.name] = {
            suffix: bootstrap.estimate(
                [Observation(each.patient, float(getattr(each, suffix))) for each in inside]
            ).as_dict()
            for suffix in IOU_THRESHOLDS
        }
    return found


_COLUMNS = tuple(field.name for field in fields(ObjectScore))


def write_objects_csv(objects: Sequence[ObjectScore], path: str | os.PathLike[str]) -> Path:
    """Write one row per object atomically; unknown values are empty, truths 1 and 0."""
    target = Path(path)
    with replacing(target) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(_COLUMNS)
        for each in objects:
            table.writerow([_cell(getattr(each, name)) for name in _COLUMNS])
    return target


def _cell(value: object) -> object:
    return "" if value is None else int(value) if isinstance(value, bool) else to_cell(value)


def read_objects_csv(path: str | os.PathLike[str]) -> list[ObjectScore]:
    """Read a table of :func:`write_objects_csv`.

    Raises:
        DatasetError: the file is missing, lacks a column, or a row is damaged.
    """
    source = Path(path)
    try:
        with open_text(source) as file:
            table = csv.DictReader(file)
            missing = [name for name in _COLUMNS if name not in (table.fieldnames or ())]
            if missing:
                raise DatasetError(f"{source}: lacks the column {', '.join(missing)}; it is no table of objects")
            rows = list(table)
        if any(None in row.values() for row in rows):
            raise ValueError("a row has too few fields; the file is cut off")
        return [_object(row) for row in rows]
    except (OSError, ValueError, TypeError) as error:
        raise DatasetError(f"{source}: cannot be read as a table of objects ({why(error)})") from None


def _object(row: Mapping[str, str]) -> ObjectScore:
    texts = {name: from_cell(row[name]) for name in ("part", "case", "patient", "target", "kind")}
    sizes = {name: float(row[name]) if row[name] else None for name in ("area_fraction", "diameter_mm", "confidence")}
    found = {name: bool(int(row[name])) for name in IOU_THRESHOLDS}
    return ObjectScore(**texts, size=int(row["size"]), **sizes, **found)  # type: ignore[arg-type]
