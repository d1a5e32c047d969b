"""Evaluations of several models on patients of their own, pooled into one: the folds of a cross-validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boltzformer_monai.errors import DatasetError, why
from boltzformer_monai.evaluation.bootstrap import Bootstrap
from boltzformer_monai.evaluation.calibration import Reliability, read_calibration_csv
from boltzformer_monai.evaluation.detection import ObjectScore, read_objects_csv
from boltzformer_monai.evaluation.metrics import Value, metrics_for
from boltzformer_monai.evaluation.summary import SliceScore, VolumeScore, summarise_slices, summarise_volumes
from boltzformer_monai.evaluation.tables import read_scores_csv
from boltzformer_monai.limits import read_json

__all__ = ["pool_evaluations"]

_PARTS = ("slices", "volumes")
_VOLUME = ("volume", "patient", "target", "prompt", "truth_ml", "predicted_ml", "presence")
_OPTIONAL = ("diameter_mm", "confidence")


def pool_evaluations(
    folders: Sequence[Path], *, bootstrap: Bootstrap | None = None
) -> tuple[dict[str, Any], list[SliceScore]]:
    """Summarise all cases of several evaluations at once: means and intervals are over the patients of all.

    Args:
        folders: of the evaluations, with ``metrics.json`` and ``scores.csv``, in the order of the folds. What is made
            of ``objects.csv`` and ``calibration.csv`` is there where all of them have these.
        bootstrap: of the intervals.

    Returns:
        Metrics as of one evaluation, and the scores of all slices. ``presence`` of the volumes is a list, the rule of
        every fold's model. ``folds`` has an entry per evaluation: ``model``, ``patients`` (how many), and of its own
        ``slices`` and ``volumes`` the entry ``overall``.

    Raises:
        DatasetError: an evaluation is missing or damaged, or two of them have a patient in common.
    """
    scores: list[SliceScore] = []
    volumes: list[VolumeScore] = []
    folds, rules, tolerances = [], [], set()
    seen: dict[str, Path] = {}
    for folder in folders:
        metrics = _read_metrics(folder / "metrics.json")
        of_slices = read_scores_csv(folder / "scores.csv")
        try:
            of_volumes = [_volume_score(case) for case in metrics["volumes"]["cases"]]
            fold = {"model": metrics.get("model"), "patients": len({score.patient for score in of_slices})}
            folds.append({**fold, **{part: metrics[part]["overall"] for part in _PARTS}})
            rules.append(metrics["volumes"]["presence"])
            tolerances.add(metrics["volumes"]["tolerance_mm"])
        except (KeyError, TypeError) as error:
            raise DatasetError(f"{folder}: holds no evaluation of slices and volumes ({why(error)})") from None
        for patient in {score.patient for score in of_slices}:
            if patient in seen:
                msg = f"{folder} and {seen[patient]} evaluated the same patient; their folds are not of one dataset"
                raise DatasetError(f"{msg}; train them again")
            seen[patient] = folder
        scores += of_slices
        volumes += of_volumes
    if len(tolerances) != 1:
        raise DatasetError(f"the evaluations have different tolerances ({sorted(tolerances)} mm); evaluate them alike")
    objects, pixels = _objects(folders), _pixels(folders)
    parts = {part: None if objects is None else [each for each in objects if each.part == part] for part in _PARTS}
    pooled = {
        "folds": folds,
        "slices": summarise_slices(scores, bootstrap=bootstrap, objects=parts["slices"], pixels=pixels),
        "volumes": {
            **summarise_volumes(volumes, bootstrap=bootstrap, objects=parts["volumes"]),
            "tolerance_mm": tolerances.pop(),
            "presence": rules if any(rules) else None,
        },
    }
    return pooled, scores


def _objects(folders: Sequence[Path]) -> list[ObjectScore] | None:
    files = [folder / "objects.csv" for folder in folders]
    if not all(file.exists() for file in files):
        return None
    return [each for file in files for each in read_objects_csv(file)]


def _pixels(folders: Sequence[Path]) -> Reliability | None:
    """Of all patients, of whom no two evaluations have one in common."""
    files = [folder / "calibration.csv" for folder in folders]
    if not all(file.exists() for file in files):
        return None
    return {key: table for file in files for key, table in read_calibration_csv(file).items()}


def _read_metrics(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read ({why(error)}); evaluate again") from None
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: holds no metrics; evaluate again")
    return content


def _volume_score(case: Mapping[str, Any]) -> VolumeScore:
    values = {metric.name: _value(case[metric.name]) for metric in metrics_for(3) if metric.name in case}
    known = {name: case[name] for name in _VOLUME} | {name: case.get(name) for name in _OPTIONAL}
    return VolumeScore(**known, values=values)


def _value(value: Any) -> Value:
    return (value[0], value[1]) if isinstance(value, list) else value
