"""Scores of slices or volumes → means per target and over all, with confidence intervals by patient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from boltzformer_monai.errors import DatasetError
from boltzformer_monai.evaluation.bootstrap import Bootstrap, Observation
from boltzformer_monai.evaluation.mask_pair import dice
from boltzformer_monai.evaluation.metrics import Metric, Value, metrics_for

__all__ = ["SMALL_AREA_FRACTION", "SliceScore", "VolumeScore", "summarise_slices", "summarise_volumes"]

SMALL_AREA_FRACTION = 0.01
"""Share of the image below which an instance is a small object (Table 2 of the paper)."""


@dataclass(frozen=True)
class SliceScore:
    """The score of one target in one slice (an "instance").

    Attributes:
        image: name of the slice's image.
        volume: id of its volume.
        patient: pseudonym.
        target: canonical target name.
        prompt: the prompt's text.
        area_fraction: the target's share of the slice, 0 to 1; 0 if absent.
        truth: pixels of the target.
        predicted: pixels of the prediction.
        intersection: pixels in both.
        values: metric → value.

    Raises:
        DatasetError: contradictory counts, or an area fraction out of range.
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
    values: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        dice(self.intersection, self.predicted, self.truth)
        if not 0 <= self.area_fraction <= 1:
            msg = f"{self.image}, {self.target}: area fraction {self.area_fraction} is not between 0 and 1"
            raise DatasetError(msg)

    @property
    def present(self) -> bool:
        """Whether the target is in this slice."""
        return self.truth > 0

    @property
    def predicted_any(self) -> bool:
        """Whether the prediction is not empty."""
        return self.predicted > 0


@dataclass(frozen=True)
class VolumeScore:
    """The score of one target in one volume.

    Attributes:
        volume: id.
        patient: pseudonym.
        target: canonical target name.
        prompt: the prompt's text.
        truth_ml: volume of the target in ml.
        predicted_ml: volume of the prediction in ml.
        values: metric → value.
        presence: highest presence probability of its slices, dropped ones included; None without presence head.
    """

    volume: str
    patient: str
    target: str
    prompt: str
    truth_ml: float
    predicted_ml: float
    values: Mapping[str, Value] = field(default_factory=dict)
    presence: float | None = None

    @property
    def present(self) -> bool:
        """Whether the target is in the volume."""
        return self.truth_ml > 0

    @property
    def predicted_any(self) -> bool:
        """Whether the prediction is not empty."""
        return self.predicted_ml > 0


_Score: TypeAlias = SliceScore | VolumeScore


def summarise_slices(
    scores: Iterable[SliceScore], *, metrics: Sequence[Metric] | None = None, bootstrap: Bootstrap | None = None
) -> dict[str, Any]:
    """Summarise the scores of slices as JSON values.

    Args:
        scores: one per slice and target, present or absent, in any order.
        metrics: by default the registered ones.
        bootstrap: of the intervals; by default 95 % from 1000 resamples of the patients.

    Returns:
        ``by_target`` and ``overall``: numbers of ``present``, ``absent`` and ``without_prediction`` (present, nothing
        predicted) instances, and for every metric ``mean``, ``low``, ``high``, ``cases``, ``patients``.
        ``strata``: the same for targets ``below_1_percent`` and ``from_1_percent`` of the image, over instances.
        ``metrics``: ``title``, ``unit``, ``better`` and ``description`` of every metric.
        ``bootstrap``: ``resamples``, ``level`` and ``seed`` of the intervals.

    Raises:
        DatasetError: a duplicate slice and target, or a score lacks a metric.
    """
    cases = sorted(scores, key=lambda score: (score.volume, score.image, score.target))
    for one, other in zip(cases, cases[1:], strict=False):
        if (one.volume, one.image, one.target) == (other.volume, other.image, other.target):
            raise DatasetError(f"{one.image}: target {one.target!r} was scored twice; score each slice and target once")
    used, method = metrics_for(2) if metrics is None else metrics, bootstrap or Bootstrap()
    present = [score for score in cases if score.present]
    strata = {
        "below_1_percent": [score for score in present if score.area_fraction < SMALL_AREA_FRACTION],
        "from_1_percent": [score for score in present if score.area_fraction >= SMALL_AREA_FRACTION],
    }
    return {
        **_summary(cases, used, method),
        "strata": {name: _entry(group, used, method, average="cases") for name, group in strata.items()},
    }


def summarise_volumes(
    scores: Iterable[VolumeScore], *, metrics: Sequence[Metric] | None = None, bootstrap: Bootstrap | None = None
) -> dict[str, Any]:
    """Summarise the scores of volumes as :func:`summarise_slices` does, without strata.

    Returns:
        Also ``cases``: ids, presence, ``truth_ml``, ``predicted_ml`` and metrics of each volume and target; a ratio is
        ``[part, whole]``.

    Raises:
        DatasetError: a score lacks a metric.
    """
    cases = sorted(scores, key=lambda score: (score.volume, score.target))
    used = metrics_for(3) if metrics is None else metrics
    return {"cases": [_case(score) for score in cases], **_summary(cases, used, bootstrap or Bootstrap())}


def _summary(cases: Sequence[_Score], metrics: Sequence[Metric], bootstrap: Bootstrap) -> dict[str, Any]:
    groups: dict[str, list[_Score]] = {target: [] for target in sorted({case.target for case in cases})}
    for case in cases:
        groups[case.target].append(case)
    return {
        "by_target": {target: _entry(group, metrics, bootstrap) for target, group in groups.items()},
        "overall": _entry(cases, metrics, bootstrap),
        "metrics": {
            metric.name: {
                "title": metric.title or metric.name.replace("_", " "),
                "unit": metric.unit,
                "better": metric.better,
                "description": metric.description,
            }
            for metric in metrics
        },
        "bootstrap": asdict(bootstrap),
    }


def _entry(
    cases: Sequence[_Score],
    metrics: Sequence[Metric],
    bootstrap: Bootstrap,
    *,
    average: Literal["targets", "cases"] | None = None,
) -> dict[str, Any]:
    """Counts and estimates of some cases; ``average`` overrides the metrics' own."""
    present = [case for case in cases if case.present]
    entry: dict[str, Any] = {
        "present": len(present),
        "absent": len(cases) - len(present),
        "without_prediction": sum(not case.predicted_any for case in present),
    }
    for metric in metrics:
        observations = []
        for case in cases:
            if metric.name not in case.values:
                raise DatasetError(f"the scores lack the metric {metric.name!r}; evaluate again with it registered")
            value = case.values[metric.name]
            if value is not None:
                part, whole = value if isinstance(value, tuple) else (value, 1.0)
                group = case.target if (average or metric.average) == "targets" else ""
                observations.append(Observation(case.patient, part, whole, group))
        entry[metric.name] = bootstrap.estimate(observations).as_dict()
    return entry


def _case(score: VolumeScore) -> dict[str, Any]:
    names = ("volume", "patient", "target", "prompt", "presence", "truth_ml", "predicted_ml")
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in score.values.items()}
    return {**{name: getattr(score, name) for name in names}, **values}
