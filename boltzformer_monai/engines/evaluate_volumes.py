"""Evaluation of whole volumes, from slices in any order."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from boltzformer_monai.data.slices.reader import SliceReader, SliceRow
from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.evaluation.bootstrap import Bootstrap
from boltzformer_monai.evaluation.mask_pair import MaskPair, check_tolerance
from boltzformer_monai.evaluation.metrics import measure, metrics_for
from boltzformer_monai.evaluation.packed_masks import PackedMasks
from boltzformer_monai.evaluation.presence_rule import PresenceRule
from boltzformer_monai.evaluation.summary import VolumeScore, summarise_volumes

_log = logging.getLogger(__name__)


class ScoreVolumes:
    """Collect masks of slices, and score the targets of a volume once its last slice is added.

    Collected masks are compressed, and released with the scoring. Volumes without a row for every slice and target are
    skipped.

    Args:
        reader: the dataset.
        split: to evaluate.
        rule: drops masks of slices by their presence probabilities; None keeps all.
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
        tolerance: float = 2.0,
        resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        check_tolerance(tolerance)
        self.bootstrap = Bootstrap(resamples=resamples, seed=seed)
        self.rule = rule
        self.tolerance = tolerance
        self.metrics = metrics_for(3)
        counts = Counter(row.volume for row in reader.select(split=split) if row.label is not None)
        self.complete = {
            name
            for name, count in counts.items()
            if reader.volumes[name]["complete"]
            and count == reader.volumes[name]["slices"] * len(reader.volumes[name]["targets"])
        }
        if counts and len(self.complete) < len(counts):
            _log.info(
                "scoring %d of %d volumes in 3-D; the others lack slices or targets", len(self.complete), len(counts)
            )
        self.scores: list[VolumeScore] = []
        self._waiting: dict[str, _Volume] = {}

    def clear(self) -> None:
        """Discard all masks and scores."""
        self.scores.clear()
        self._waiting.clear()

    def add(
        self,
        rows: Sequence[SliceRow],
        predicted: np.ndarray,
        truth: np.ndarray,
        presence: np.ndarray | None = None,
    ) -> None:
        """Add a slice.

        Args:
            rows: its P rows, one per target.
            predicted: ``(P, H, W)`` bool, native pixels.
            truth: likewise.
            presence: probabilities ``(P,)``; None without presence head.

        Raises:
            CheckpointError: there is a rule, but no presence head.
        """
        first = rows[0]
        if first.volume not in self.complete:
            return
        if self.rule is not None and presence is None:
            msg = "the checkpoint has presence thresholds, but its network no presence head; evaluate --presence False"
            raise CheckpointError(msg)
        volume = self._waiting.setdefault(first.volume, _Volume())
        volume.seen.add(first.slice_index)
        for index, row in enumerate(rows):
            case = volume.cases.setdefault(row.target, _Case.of(row, predicted.shape[1:]))
            case.predicted.put(row.slice_index, predicted[index])
            case.truth.put(row.slice_index, truth[index])
            if presence is not None:
                case.presence[row.slice_index] = presence[index]
        if len(volume.seen) == first.slices:
            self.scores += [self._score(case) for case in self._waiting.pop(first.volume).cases.values()]

    def _score(self, case: _Case) -> VolumeScore:
        row = case.row
        has_presence = bool(np.isfinite(case.presence).all())
        if self.rule is not None:
            case.predicted.keep(self.rule.kept(case.presence))
        height, width, depth = row.spacing
        masks = MaskPair(
            prediction=case.predicted.dense(),
            truth=case.truth.dense(),
            spacing=(depth, height, width),
            tolerance_mm=self.tolerance,
        )
        return VolumeScore(
            volume=row.volume,
            patient=row.patient,
            target=row.target,
            prompt=row.prompts[0],
            truth_ml=masks.truth_ml,
            predicted_ml=masks.predicted_ml,
            values=measure(masks, self.metrics),
            presence=float(case.presence.max()) if has_presence else None,
        )

    def summary(self) -> dict[str, Any]:
        """The summary of :func:`~boltzformer_monai.evaluation.summary.summarise_volumes`, with the settings."""
        return {
            **summarise_volumes(self.scores, metrics=self.metrics, bootstrap=self.bootstrap),
            "tolerance_mm": self.tolerance,
            "presence": None if self.rule is None else self.rule.as_dict(),
        }


@dataclass
class _Case:
    """The collected slices of a volume and target."""

    row: SliceRow
    predicted: PackedMasks
    truth: PackedMasks
    presence: np.ndarray

    @classmethod
    def of(cls, row: SliceRow, pixels: tuple[int, ...]) -> _Case:
        shape = (row.slices, pixels[0], pixels[1])
        return cls(row, PackedMasks(shape), PackedMasks(shape), np.full(row.slices, np.nan, np.float64))


@dataclass
class _Volume:
    """The collected targets of a volume."""

    seen: set[int] = field(default_factory=set)
    cases: dict[str, _Case] = field(default_factory=dict)
