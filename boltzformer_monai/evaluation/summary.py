"""Scores of slices or volumes → means per target and over all, with confidence intervals by patient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from boltzformer_monai.errors import DatasetError
from boltzformer_monai.evaluation.bootstrap import Bootstrap, Observation
from boltzformer_monai.evaluation.calibration import Reliability, of_objects, reliability, summarise_calibration
from boltzformer_monai.evaluation.components import CONNECTIVITY
from boltzformer_monai.evaluation.detection import ObjectScore, found_by_size
from boltzformer_monai.evaluation.froc import summarise_froc
from boltzformer_monai.evaluation.mask_pair import dice
from boltzformer_monai.evaluation.metrics import Metric, Value, metrics_for
from boltzformer_monai.evaluation.strata import AREA_STRATA, DIAMETER_STRATA, Stratum

__all__ = ["SliceScore", "VolumeScore", "summarise_slices", "summarise_volumes"]


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
        diameter_mm: equivalent diameter of the target's largest component in the slice; None if absent, or unknown.
        confidence: highest mean probability of a component of the prediction; None without one, or unknown.
        presence: probability of the presence head; None without one.

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
    diameter_mm: float | None = None
    confidence: float | None = None
    presence: float | None = None

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
        diameter_mm: equivalent diameter of the target's largest component; None if absent, or unknown.
        confidence: highest mean probability of a component of the prediction; None without one, or unknown.
    """

    volume: str
    patient: str
    target: str
    prompt: str
    truth_ml: float
    predicted_ml: float
    values: Mapping[str, Value] = field(default_factory=dict)
    presence: float | None = None
    diameter_mm: float | None = None
    confidence: float | None = None

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
    scores: Iterable[SliceScore],
    *,
    metrics: Sequence[Metric] | None = None,
    bootstrap: Bootstrap | None = None,
    objects: Sequence[ObjectScore] | None = None,
    pixels: Reliability | None = None,
) -> dict[str, Any]:
    """Summarise the scores of slices as JSON values.

    Args:
        scores: one per slice and target, present or absent, in any order.
        metrics: by default the registered ones.
        bootstrap: of the intervals; by default 95 % from 1000 resamples of the patients.
        objects: of these slices, one by one; None leaves out what is made of them.
        pixels: reliability of their probabilities.

    Returns:
        ``by_target`` and ``overall``: numbers of ``present``, ``absent`` and ``without_prediction`` (present, nothing
        predicted) instances, and for every metric ``mean``, ``low``, ``high``, ``cases``, ``patients`` and ``total``.
        ``strata``: the same for targets by their share of the image and, where known, diameter in the slice
        (:mod:`~boltzformer_monai.evaluation.strata`), over instances.
        ``metrics``: ``title``, ``unit``, ``better``, ``description`` and ``section`` of every metric.
        ``bootstrap``: ``resamples``, ``level`` and ``seed`` of the intervals.
        ``connectivity`` of components.
        ``found_by_size``: recall of single objects, see :func:`~boltzformer_monai.evaluation.detection.found_by_size`.
        ``froc``: see :func:`~boltzformer_monai.evaluation.froc.summarise_froc`.
        ``calibration``: of ``pixels``, ``objects`` and ``presence``, each as
        :func:`~boltzformer_monai.evaluation.calibration.summarise_calibration` says, or None where it is unknown.

    Raises:
        DatasetError: a duplicate slice and target, or a score lacks a metric.
    """
    cases = sorted(scores, key=lambda score: (score.volume, score.image, score.target))
    for one, other in zip(cases, cases[1:], strict=False):
        if (one.volume, one.image, one.target) == (other.volume, other.image, other.target):
            raise DatasetError(f"{one.image}: target {one.target!r} was scored twice; score each slice and target once")
    used, method = metrics_for(2) if metrics is None else metrics, bootstrap or Bootstrap()
    strata = [*AREA_STRATA, *(DIAMETER_STRATA if any(score.diameter_mm is not None for score in cases) else ())]
    return {
        **_summary(cases, used, method),
        "strata": _strata(strata, cases, used, method),
        **_of_objects(cases, objects, pixels, method, per="slice"),
    }


def summarise_volumes(
    scores: Iterable[VolumeScore],
    *,
    metrics: Sequence[Metric] | None = None,
    bootstrap: Bootstrap | None = None,
    objects: Sequence[ObjectScore] | None = None,
) -> dict[str, Any]:
    """Summarise the scores of volumes as :func:`summarise_slices` does; the strata are by diameter.

    Returns:
        Also ``cases``: ids, presence, ``truth_ml``, ``predicted_ml``, ``diameter_mm``, ``confidence`` and metrics of
        each volume and target; a ratio is ``[part, whole]``.

    Raises:
        DatasetError: a score lacks a metric.
    """
    cases = sorted(scores, key=lambda score: (score.volume, score.target))
    used, method = metrics_for(3) if metrics is None else metrics, bootstrap or Bootstrap()
    strata = DIAMETER_STRATA if any(score.diameter_mm is not None for score in cases) else ()
    return {
        "cases": [_case(score) for score in cases],
        **_summary(cases, used, method),
        "strata": _strata(strata, cases, used, method),
        **_of_objects(cases, objects, None, method, per="volume"),
    }


def _strata(
    strata: Iterable[Stratum], cases: Sequence[_Score], metrics: Sequence[Metric], bootstrap: Bootstrap
) -> dict[str, Any]:
    entries = {}
    for stratum in strata:
        inside = [case for case in cases if case.present and stratum.holds(getattr(case, stratum.of))]
        entries[stratum.name] = _entry(inside, metrics, bootstrap, average="cases")
    return entries


def _of_objects(
    cases: Sequence[_Score],
    objects: Sequence[ObjectScore] | None,
    pixels: Reliability | None,
    bootstrap: Bootstrap,
    *,
    per: str,
) -> dict[str, Any]:
    """What is made of single objects and of probabilities."""
    scanned = [(case.target, case.patient) for case in cases]
    presence = ((case.target, case.patient, case.presence, case.present) for case in cases if case.presence is not None)
    tables = {
        "pixels": pixels or {},
        "objects": of_objects(objects or ()),
        "presence": reliability(presence),
    }
    return {
        "connectivity": CONNECTIVITY,
        "found_by_size": None if objects is None else found_by_size(objects, bootstrap=bootstrap),
        "froc": None if objects is None else summarise_froc(scanned, objects, per=per, bootstrap=bootstrap),
        "calibration": {name: summarise_calibration(table, bootstrap=bootstrap) for name, table in tables.items()},
    }


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
                "section": metric.section,
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
    names = (
        "volume", "patient", "target", "prompt", "presence", "truth_ml", "predicted_ml", "diameter_mm", "confidence",
    )  # fmt: skip
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in score.values.items()}
    return {**{name: getattr(score, name) for name in names}, **values}
