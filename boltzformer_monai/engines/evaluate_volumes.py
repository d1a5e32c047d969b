"""Evaluation of whole volumes, from slices in any order."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from boltzformer_monai.data.planes import slices_to_volume
from boltzformer_monai.data.slices.format import scan_of
from boltzformer_monai.data.slices.reader import SliceReader, SliceRow
from boltzformer_monai.errors import CheckpointError, DatasetError
from boltzformer_monai.evaluation.bootstrap import Bootstrap
from boltzformer_monai.evaluation.detection import FAINT, ObjectScore, find_objects, highest_confidence
from boltzformer_monai.evaluation.levels import mean_level, probability_levels, threshold_level
from boltzformer_monai.evaluation.mask_pair import MaskPair, check_tolerance
from boltzformer_monai.evaluation.metrics import measure, metrics_for
from boltzformer_monai.evaluation.packed_masks import PackedLevels, PackedMasks
from boltzformer_monai.evaluation.presence_rule import PresenceRule
from boltzformer_monai.evaluation.summary import VolumeScore, summarise_volumes
from boltzformer_monai.io.volume import Volume

_log = logging.getLogger(__name__)


class ScoreVolumes:
    """Collect masks of slices, and score the targets of a volume once its last slice is added.

    Collected masks are compressed, and released with the scoring. Volumes without a row for every slice and target are
    skipped, and so are pictures, which have no third axis and no millimetres. Where a scan was sliced along several
    planes, their probabilities are averaged on the scan's grid as an inference along these planes does, and the scan is
    scored once.

    Args:
        reader: the dataset.
        split: to evaluate.
        rule: drops masks of slices by their presence probabilities; None keeps all. Of several planes it judges each by
            itself; a slice that it drops counts as probability 0 in the mean.
        threshold: smallest mean probability of a mask's voxels, of scans with several planes.
        tolerance: of the surface Dice in mm.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        *,
        reader: SliceReader,
        split: str,
        rule: PresenceRule | None = None,
        threshold: float = 0.5,
        tolerance: float = 2.0,
        resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        check_tolerance(tolerance)
        self.bootstrap = Bootstrap(resamples=resamples, seed=seed)
        self.rule = rule
        self.tolerance = tolerance
        self.metrics = metrics_for(3)
        self.level = threshold_level(threshold)
        self.entries = reader.volumes
        counts = Counter(row.volume for row in reader.select(split=split) if row.label is not None)
        scans: dict[str, set[str]] = defaultdict(set)
        for name in counts:
            scans[scan_of(name, self.entries[name])].add(name)
        self.complete = {
            scan: volumes
            for scan, volumes in scans.items()
            if all(
                self.entries[name]["complete"]
                and self.entries[name].get("in_mm", True)
                and counts[name] == self.entries[name]["slices"] * len(self.entries[name]["targets"])
                for name in volumes
            )
        }
        if len(self.complete) < len(scans):
            _log.info(
                "scoring %d of %d volumes in 3-D; the others lack slices or targets, or are pictures",
                len(self.complete),
                len(scans),
            )
        self.scores: list[VolumeScore] = []
        self.objects: list[ObjectScore] = []
        self._waiting: dict[str, _Scan] = {}

    def clear(self) -> None:
        """Discard all masks and scores."""
        self.scores.clear()
        self.objects.clear()
        self._waiting.clear()

    def add(
        self,
        rows: Sequence[SliceRow],
        predicted: np.ndarray,
        truth: np.ndarray,
        presence: np.ndarray | None = None,
        *,
        probability: np.ndarray | None = None,
    ) -> None:
        """Add a slice.

        Args:
            rows: its P rows, one per target.
            predicted: ``(P, H, W)`` bool, native pixels.
            truth: likewise.
            presence: probabilities ``(P,)``; None without presence head.
            probability: of the pixels, ``(P, H, W)`` from 0 to 1; needed where a scan has several planes. Without it
                objects have no confidence.

        Raises:
            CheckpointError: there is a rule, but no presence head.
            DatasetError: there are no probabilities to average.
        """
        first = rows[0]
        volumes = self.complete.get(first.scan)
        if volumes is None:
            return
        levels = None if probability is None else probability_levels(probability)
        if len(volumes) > 1:
            if levels is None:
                raise DatasetError(f"{first.scan} has several planes; their probabilities are needed for its mean")
            predicted, levels = levels, None
        elif levels is not None:
            levels[(levels < threshold_level(FAINT)) & ~predicted] = 0  # no candidate's, and most of the memory
        if self.rule is not None and presence is None:
            msg = "the checkpoint has presence thresholds, but its network no presence head; evaluate --presence False"
            raise CheckpointError(msg)
        scan = self._waiting.setdefault(first.scan, _Scan())
        scan.seen.add((first.volume, first.slice_index))
        for index, row in enumerate(rows):
            planes = scan.cases.setdefault(row.target, {})
            if row.volume not in planes:
                packed = PackedMasks if len(volumes) == 1 else PackedLevels
                planes[row.volume] = _Stack.of(row, packed, predicted.shape[1:])
            stack = planes[row.volume]
            stack.predicted.put(row.slice_index, predicted[index])
            stack.truth.put(row.slice_index, truth[index])
            if levels is not None:
                stack.levels.put(row.slice_index, levels[index])
                stack.with_levels += 1
            if presence is not None:
                stack.presence[row.slice_index] = presence[index]
        if len(scan.seen) == sum(int(self.entries[name]["slices"]) for name in volumes):
            for planes in self._waiting.pop(first.scan).cases.values():
                self._score(list(planes.values()))

    def _score(self, planes: Sequence[_Stack]) -> None:
        row = planes[0].row
        has_presence = all(np.isfinite(stack.presence).all() for stack in planes)
        if self.rule is not None:
            for stack in planes:
                kept = self.rule.kept(stack.presence)
                stack.predicted.keep(kept)
                stack.levels.keep(kept)
        height, width, depth = row.spacing
        if len(planes) > 1:
            spacing = self._grid(row.volume).spacing
            mean = mean_level((self._restored(stack.predicted, stack.row) for stack in planes), len(planes))
            prediction, truth = mean >= self.level, self._restored(planes[0].truth, row)
            levels: np.ndarray | None = mean
        else:
            spacing = (depth, height, width)
            prediction, truth = planes[0].predicted.dense(), planes[0].truth.dense()
            levels = planes[0].levels.dense() if planes[0].with_levels == row.slices else None
        masks = MaskPair(prediction=prediction, truth=truth, spacing=spacing, tolerance_mm=self.tolerance)
        objects = find_objects(
            masks, part="volumes", case=row.scan, patient=row.patient, target=row.target, levels=levels
        )
        score = VolumeScore(
            volume=row.scan,
            patient=row.patient,
            target=row.target,
            prompt=row.prompts[0],
            truth_ml=masks.truth_ml,
            predicted_ml=masks.predicted_ml,
            values=measure(masks, self.metrics),
            presence=float(np.mean([stack.presence.max() for stack in planes])) if has_presence else None,
            diameter_mm=masks.diameter_mm,
            confidence=highest_confidence(objects),
        )
        self.scores.append(score)
        self.objects += objects

    def _grid(self, name: str) -> Volume:
        """The grid of the scan that a volume is a plane of, without voxels."""
        entry = self.entries[name]
        return Volume(np.broadcast_to(np.uint8(0), [int(length) for length in entry["shape"]]), entry["affine"])

    def _restored(self, packed: PackedMasks, row: SliceRow) -> np.ndarray:
        """Slices of a plane as an array ``(I, J, K)`` of the scan."""
        return slices_to_volume(packed.dense(), self._grid(row.volume), row.plane)

    def summary(self) -> dict[str, Any]:
        """The summary of :func:`~boltzformer_monai.evaluation.summary.summarise_volumes`, with the settings."""
        return {
            **summarise_volumes(self.scores, metrics=self.metrics, bootstrap=self.bootstrap, objects=self.objects),
            "tolerance_mm": self.tolerance,
            "presence": None if self.rule is None else self.rule.as_dict(),
        }


@dataclass
class _Stack:
    """The collected slices of a volume and target."""

    row: SliceRow
    predicted: PackedMasks
    truth: PackedMasks
    presence: np.ndarray
    levels: PackedLevels
    """Probabilities, of a single plane."""
    with_levels: int = 0
    """Slices whose probabilities are known."""

    @classmethod
    def of(cls, row: SliceRow, packed: type[PackedMasks], pixels: tuple[int, ...]) -> _Stack:
        shape = (row.slices, pixels[0], pixels[1])
        empty = np.full(row.slices, np.nan, np.float64)
        return cls(row, packed(shape), PackedMasks(shape), empty, PackedLevels(shape))


@dataclass
class _Scan:
    """The collected targets of a scan."""

    seen: set[tuple[str, int]] = field(default_factory=set)
    """Volume and slice."""
    cases: dict[str, dict[str, _Stack]] = field(default_factory=dict)
    """Target → volume, one for each plane → its slices."""
