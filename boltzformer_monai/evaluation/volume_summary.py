"""Means over volumes, per target and over all, with confidence intervals by patient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from boltzformer_monai.evaluation.bootstrap import Bootstrap, Observation
from boltzformer_monai.evaluation.volume_metrics import VolumeMeasures

__all__ = ["VolumeScore", "summarise_volumes"]


@dataclass(frozen=True)
class VolumeScore:
    """One case: a volume and a target that it was asked for.

    Attributes:
        volume: id.
        patient: pseudonym.
        target: canonical target name.
        prompt: the text that was asked.
        measures: prediction against truth.
        presence: highest presence probability of its slices, before any of them was dropped; None without such.
    """

    volume: str
    patient: str
    target: str
    prompt: str
    measures: VolumeMeasures
    presence: float | None = None


@dataclass(frozen=True)
class _Metric:
    """How a case counts: the value and its weight, or None where it does not count."""

    of: Callable[[VolumeMeasures], tuple[float, float] | None]
    by_target: bool = False
    """Whether targets weigh alike in the mean over all, rather than cases."""


def _known(value: float | None) -> tuple[float, float] | None:
    return None if value is None else (value, 1.0)


_METRICS = {
    "dice": _Metric(lambda case: _known(case.dice), by_target=True),
    "surface_dice": _Metric(lambda case: _known(case.surface_dice), by_target=True),
    "hausdorff95_mm": _Metric(lambda case: _known(case.hausdorff95_mm), by_target=True),
    "lesion_detection_rate": _Metric(lambda case: (case.lesions_found, case.lesions) if case.present else None),
    "false_components": _Metric(lambda case: (case.false_components, 1.0)),
    "false_positive_rate": _Metric(lambda case: None if case.present else (float(case.answered), 1.0)),
    "false_positive_ml": _Metric(lambda case: None if case.present else (case.predicted_ml, 1.0)),
}


def summarise_volumes(scores: Iterable[VolumeScore], *, bootstrap: Bootstrap | None = None) -> dict[str, Any]:
    """Summarise the cases of an evaluation; the result can be written as JSON.

    Args:
        scores: one for each volume and target, in any order.
        bootstrap: for the intervals; by default 95 % from 1000 resamples of the patients.

    Returns:
        ``cases``: for each volume and target its ids and measures.
        ``by_target`` and ``overall``: ``present``, ``absent`` and ``unanswered`` (present, but not one voxel
        predicted) cases, and estimates (``mean``, ``low``, ``high``, ``cases``, ``patients``) of

        - ``dice``, ``surface_dice``: over cases where the target is present; unanswered ones are 0;
        - ``hausdorff95_mm``: over those that were answered;
        - ``lesion_detection_rate``: found among all connected components of the truth;
        - ``false_components``: predicted components that overlap no truth, per case;
        - ``false_positive_rate``, ``false_positive_ml``: share of cases without the target that were answered, and
          what was predicted in a case without the target.

        Over all, targets weigh alike in the first three; in the others cases (lesions) do.
        ``bootstrap``: ``resamples``, ``level`` and ``seed`` of the intervals.
    """
    method = bootstrap or Bootstrap()
    cases = sorted(scores, key=lambda case: (case.volume, case.target))
    targets = sorted({case.target for case in cases})
    return {
        "cases": [_case(case) for case in cases],
        "by_target": {target: _summary([c for c in cases if c.target == target], method) for target in targets},
        "overall": _summary(cases, method),
        "bootstrap": asdict(method),
    }


def _summary(cases: Sequence[VolumeScore], bootstrap: Bootstrap) -> dict[str, Any]:
    present = [case for case in cases if case.measures.present]
    summary: dict[str, Any] = {
        "present": len(present),
        "absent": len(cases) - len(present),
        "unanswered": sum(not case.measures.answered for case in present),
    }
    for name, metric in _METRICS.items():
        observations = []
        for case in cases:
            counted = metric.of(case.measures)
            if counted is not None:
                group = case.target if metric.by_target else ""
                observations.append(Observation(case.patient, counted[0], counted[1], group))
        summary[name] = bootstrap.estimate(observations).as_dict()
    return summary


def _case(case: VolumeScore) -> dict[str, Any]:
    names = ("volume", "patient", "target", "prompt", "presence")
    return {**{name: getattr(case, name) for name in names}, **asdict(case.measures)}
