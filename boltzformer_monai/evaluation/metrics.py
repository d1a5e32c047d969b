"""Dice and its companions, from pixel counts of slices.

A score is three integers, so everything here can be computed from a CSV of scores without the masks: two-dimensional
means as in the paper's Tables 1 and 2, three-dimensional Dice by summing the counts of a volume, and what a mean
hides: targets missed entirely, and absent targets that were answered all the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from boltzformer_monai.errors import DatasetError

__all__ = ["SMALL_AREA_FRACTION", "SliceScore", "dice", "summarise"]

SMALL_AREA_FRACTION = 0.01
"""Below this share of the image an instance belongs to the stratum of small objects (Table 2 of the paper)."""


def dice(intersection: int, predicted: int, truth: int) -> float | None:
    """2·intersection / (predicted + truth), all in pixels or voxels.

    Returns:
        0 to 1, or None where both masks are empty: there is no overlap to measure, and an average must leave it out.

    Raises:
        DatasetError: a count is negative, or the intersection is larger than one of the masks.
    """
    if not 0 <= intersection <= min(predicted, truth):
        msg = f"pixel counts contradict each other: intersection {intersection}, predicted {predicted}, truth {truth}"
        raise DatasetError(msg)
    total = predicted + truth
    return 2 * intersection / total if total else None


@dataclass(frozen=True)
class SliceScore:
    """What a prediction and the truth share in one slice for one target (an "instance").

    Attributes:
        image: name of the slice's image.
        volume: id of its volume.
        patient: pseudonym.
        target: canonical target name.
        prompt: the text that was asked.
        area_fraction: share of the slice that the target covers, 0 to 1; 0 where it is absent.
        truth: pixels of the target.
        predicted: pixels of the prediction.
        intersection: pixels in both.

    Raises:
        DatasetError: the counts contradict each other or the area fraction.
    """

    image: str
    volume: str
    patient: str
    target: str
    prompt: str
    area_fraction: float
    truth: int
    predicted: int
    intersection: int

    def __post_init__(self) -> None:
        dice(self.intersection, self.predicted, self.truth)
        if not 0 <= self.area_fraction <= 1:
            msg = f"{self.image}, {self.target}: area fraction {self.area_fraction} is not between 0 and 1"
            raise DatasetError(msg)

    @property
    def dice(self) -> float | None:
        """Two-dimensional Dice, 0 to 1; None where target and prediction are both empty."""
        return dice(self.intersection, self.predicted, self.truth)

    @property
    def present(self) -> bool:
        """Whether the target is in this slice."""
        return self.truth > 0


def summarise(scores: Iterable[SliceScore], *, complete_volumes: Collection[str] = ()) -> dict[str, Any]:
    """Summarise an evaluation; the result can be written as JSON (a mean over nothing is None).

    Args:
        scores: one for each slice and target, each pair once; present and absent ones.
        complete_volumes: ids of the volumes of which every slice was scored for every target (absent ones too, else
            false alarms would be left out); only these get 3-D numbers.

    Returns:
        ``instances``, ``present_instances``, ``absent_instances``: counts.
        ``mean_dice``: mean over the targets of ``dice_by_target``.
        ``dice_by_target``: mean 2-D Dice over the slices where the target is present.
        ``slices_by_target``: number of these slices.
        ``strata``: ``below_1_percent`` and ``from_1_percent`` of the image, each with ``mean_dice`` (over instances,
        as in Table 2) and ``n``.
        ``missed_targets``: present instances with Dice 0: ``fraction``, ``count``, ``by_target`` (fractions).
        ``absent_answered``: fraction of absent instances with a non-empty mask; ``absent_answered_by_target``.
        ``mean_dice_3d``, ``dice_3d_by_target``, ``volumes_by_target``: Dice of whole volumes from summed counts, where
        the target is present in the volume; mean over volumes, then over targets.
        ``cases``: for each complete volume and target present or predicted in it: ``volume``, ``patient``,
        ``target``, ``dice``, ``truth``, ``predicted``, ``intersection`` (voxels).

    Raises:
        DatasetError: a slice and target occurs twice.
    """
    instances = list(scores)
    _refuse_duplicates(instances)
    present = [score for score in instances if score.present]
    absent = [score for score in instances if not score.present]
    by_target = _group(present)
    dice_by_target = {target: _mean_dice(group) for target, group in by_target.items()}
    small = [score for score in present if score.area_fraction < SMALL_AREA_FRACTION]
    large = [score for score in present if score.area_fraction >= SMALL_AREA_FRACTION]
    missed = [score for score in present if score.intersection == 0]
    cases = _cases([score for score in instances if score.volume in set(complete_volumes)])
    dice_3d: dict[str, list[float]] = {}
    for case in cases:
        if case["truth"] > 0:
            dice_3d.setdefault(case["target"], []).append(case["dice"])
    dice_3d_by_target = {target: _mean(values) for target, values in sorted(dice_3d.items())}
    return {
        "instances": len(instances),
        "present_instances": len(present),
        "absent_instances": len(absent),
        "mean_dice": _mean(dice_by_target.values()),
        "dice_by_target": dice_by_target,
        "slices_by_target": {target: len(group) for target, group in by_target.items()},
        "strata": {
            "below_1_percent": {"mean_dice": _mean_dice(small), "n": len(small)},
            "from_1_percent": {"mean_dice": _mean_dice(large), "n": len(large)},
        },
        "missed_targets": {
            "fraction": _share(len(missed), len(present)),
            "count": len(missed),
            "by_target": {
                target: _share(sum(score.intersection == 0 for score in group), len(group))
                for target, group in by_target.items()
            },
        },
        "absent_answered": _answered(absent),
        "absent_answered_by_target": {target: _answered(group) for target, group in _group(absent).items()},
        "mean_dice_3d": _mean(dice_3d_by_target.values()),
        "dice_3d_by_target": dice_3d_by_target,
        "volumes_by_target": {target: len(values) for target, values in sorted(dice_3d.items())},
        "cases": cases,
    }


def _group(scores: Sequence[SliceScore]) -> dict[str, list[SliceScore]]:
    groups: dict[str, list[SliceScore]] = {}
    for score in scores:
        groups.setdefault(score.target, []).append(score)
    return dict(sorted(groups.items()))


def _cases(scores: Sequence[SliceScore]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], list[SliceScore]] = {}
    for score in scores:
        groups.setdefault((score.volume, score.target), []).append(score)
    cases = []
    for (volume, target), group in sorted(groups.items()):
        truth, predicted, intersection = (
            sum(getattr(score, name) for score in group) for name in ("truth", "predicted", "intersection")
        )
        if truth or predicted:
            cases.append(
                {
                    "volume": volume,
                    "patient": group[0].patient,
                    "target": target,
                    "dice": dice(intersection, predicted, truth),
                    "truth": truth,
                    "predicted": predicted,
                    "intersection": intersection,
                }
            )
    return cases


def _refuse_duplicates(scores: Sequence[SliceScore]) -> None:
    seen: set[tuple[str, str, str]] = set()
    for score in scores:
        key = (score.volume, score.image, score.target)
        if key in seen:
            msg = f"{score.image}: target {score.target!r} was scored twice; score each slice and target once"
            raise DatasetError(msg)
        seen.add(key)


def _answered(absent: Sequence[SliceScore]) -> float | None:
    return _share(sum(score.predicted > 0 for score in absent), len(absent))


def _mean_dice(scores: Sequence[SliceScore]) -> float | None:
    return _mean(score.dice for score in scores)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
