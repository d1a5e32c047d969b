"""Calibration: does 0.7 come true in 7 of 10 cases? Reliability in ten bins, and its expected error (ECE)."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from boltzformer_monai.csv_cells import from_cell, to_cell
from boltzformer_monai.errors import DatasetError, why
from boltzformer_monai.evaluation.bootstrap import Bootstrap
from boltzformer_monai.evaluation.detection import ObjectScore
from boltzformer_monai.limits import open_text
from boltzformer_monai.storage import replacing

__all__ = [
    "BINS", "Reliability", "add_pixels", "of_objects", "read_calibration_csv", "reliability",
    "summarise_calibration", "write_calibration_csv",
]  # fmt: skip

BINS = 10
"""Of equal width from 0 to 1."""

Reliability: TypeAlias = dict[tuple[str, str], np.ndarray]
"""(target, patient) → ``(3, BINS)``: how many, sum of their probabilities, how many came true."""

_OF_LEVEL = ((np.arange(256) + 0.5) / 256 * BINS).astype(int)


def add_pixels(found: Reliability, key: tuple[str, str], levels: np.ndarray, truth: np.ndarray) -> None:
    """Add the pixels of a case.

    Args:
        found: to add to.
        key: target and patient.
        levels: probabilities as 8-bit levels.
        truth: bool, of the same shape.
    """
    count = np.bincount(levels.ravel(), minlength=256)
    true = np.bincount(levels[truth], minlength=256)
    parts = (count, count * (np.arange(256) + 0.5) / 256, true)
    found[key] = found.get(key, np.zeros((3, BINS))) + np.stack(
        [np.bincount(_OF_LEVEL, part, minlength=BINS) for part in parts]
    )


def reliability(cases: Iterable[tuple[str, str, float, bool]]) -> Reliability:
    """Target, patient, probability and whether it came true, of each case."""
    found: Reliability = {}
    for target, patient, probability, true in cases:
        table = found.setdefault((target, patient), np.zeros((3, BINS)))
        table[:, min(int(probability * BINS), BINS - 1)] += (1, probability, true)
    return found


def of_objects(objects: Iterable[ObjectScore]) -> Reliability:
    """Confidences of candidates; one that finds an object, at any IoU, came true."""
    candidates = (each for each in objects if each.confidence is not None)
    return reliability((each.target, each.patient, each.confidence or 0.0, each.iou0) for each in candidates)


def summarise_calibration(found: Reliability, *, bootstrap: Bootstrap) -> dict[str, Any] | None:
    """Reliability of every target and of all, with intervals by patient.

    Returns:
        ``overall`` and ``by_target``, each with ``bins`` (``from``, ``to``, ``count``, and where it is not 0, mean
        ``probability`` and ``frequency``), ``ece`` and ``ece_from_0.1``, which leaves out the first bin: that of the
        pixels that are almost certainly background. The two have ``mean``, ``low``, ``high``, ``total`` (how many) and
        ``patients``. None without cases.
    """
    if not found:
        return None
    targets = sorted({target for target, _ in found})
    return {
        "overall": _summary(found, bootstrap),
        "by_target": {
            target: _summary({key: table for key, table in found.items() if key[0] == target}, bootstrap)
            for target in targets
        },
    }


def _summary(found: Reliability, bootstrap: Bootstrap) -> dict[str, Any]:
    patients: dict[str, np.ndarray] = {}
    for (_, patient), table in found.items():
        patients[patient] = patients.get(patient, np.zeros((3, BINS))) + table
    tables = np.stack([patients[patient] for patient in sorted(patients)])
    count, probability, true = tables.sum(0)
    bins = []
    for index in range(BINS):
        entry: dict[str, float] = {"from": index / BINS, "to": (index + 1) / BINS, "count": int(count[index])}
        if count[index]:
            entry |= {"probability": probability[index] / count[index], "frequency": true[index] / count[index]}
        bins.append({name: float(value) if name != "count" else value for name, value in entry.items()})
    return {"bins": bins, "ece": _ece(tables, bootstrap), "ece_from_0.1": _ece(tables[..., 1:], bootstrap)}


def _ece(tables: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    """Of ``(patients, 3, bins)``: Σ |Σ probability − Σ true| / Σ count, the sums of each bin first."""

    def statistic(counts: np.ndarray) -> np.ndarray:
        count, probability, true = np.moveaxis(np.tensordot(counts, tables, axes=1), 1, 0)
        total = count.sum(1)
        error = np.abs(probability - true).sum(1)
        return np.divide(error, total, out=np.full(len(total), np.nan), where=total > 0)[:, None]

    total = float(tables[:, 0].sum())
    mean = float(statistic(np.ones((1, len(tables))))[0, 0]) if total else None
    low, high = bootstrap.interval(statistic, len(tables), width=3 * tables.shape[2])[0] if total else (None, None)
    return {"mean": mean, "low": low, "high": high, "total": total, "patients": len(tables)}


_COLUMNS = ("target", "patient", "bin", "count", "probability", "true")


def write_calibration_csv(found: Reliability, path: str | os.PathLike[str]) -> Path:
    """Write one row per target, patient and bin that is not empty, atomically."""
    target = Path(path)
    with replacing(target) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(_COLUMNS)
        for (name, patient), (count, probability, true) in sorted(found.items(), key=lambda item: item[0]):
            for index in np.flatnonzero(count):
                cells = (int(index), int(count[index]), repr(float(probability[index])), int(true[index]))
                table.writerow([to_cell(name), to_cell(patient), *cells])
    return target


def read_calibration_csv(path: str | os.PathLike[str]) -> Reliability:
    """Read a table of :func:`write_calibration_csv`.

    Raises:
        DatasetError: the file is missing, lacks a column, or a row is damaged.
    """
    source = Path(path)
    found: Reliability = {}
    try:
        with open_text(source) as file:
            for row in csv.DictReader(file):
                if None in row.values():
                    raise ValueError("a row has too few fields; the file is cut off")
                _add(found, row)
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise DatasetError(f"{source}: cannot be read as a table of calibration ({why(error)})") from None
    return found


def _add(found: Reliability, row: Mapping[str, str]) -> None:
    table = found.setdefault((from_cell(row["target"]), from_cell(row["patient"])), np.zeros((3, BINS)))
    table[:, int(row["bin"])] += (int(row["count"]), float(row["probability"]), int(row["true"]))
