"""The fingerprint of slice data sets: content, object sizes (Table 9 of the paper) and findings.

Areas are shares of the slice at native size, over the slices with the target. Images padded to a square, as in
BiomedParse's data, give smaller shares.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from boltzformer_monai.data.check.duplicates import Duplicates
from boltzformer_monai.data.check.findings import Finding, Findings
from boltzformer_monai.data.check.integrity import DataSet, check_between, check_tables, open_data_sets
from boltzformer_monai.data.check.measured import MeasuredVolume, check_occurrence, measure_volume
from boltzformer_monai.data.slices.format import SPLITS
from boltzformer_monai.data.slices.reader import SliceRow

__all__ = ["FORMAT", "VERSION", "Checked", "Extreme", "check_data_sets"]

FORMAT = "boltzformer-fingerprint"
VERSION = 1
_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


@dataclass(frozen=True)
class Extreme:
    """A slice where a target is smallest or largest; ``area`` is its share of the slice, 0 to 1."""

    data_set: str
    row: SliceRow
    area: float


@dataclass(frozen=True)
class Checked:
    """The outcome of a check.

    Attributes:
        content: the fingerprint with the findings as JSON values: reproducible, without dates and paths.
        findings: the findings, worst first.
        smallest: for every data set and target, the slice with its smallest object.
        largest: likewise with its largest.
    """

    content: dict[str, Any]
    findings: list[Finding]
    smallest: list[Extreme]
    largest: list[Extreme]

    def count(self, level: str) -> int:
        """Number of findings of a level: ``"error"``, ``"warning"`` or ``"note"``."""
        return sum(finding.kind.level == level for finding in self.findings)


@dataclass
class _Objects:
    """Collects a row of Table 9: areas (shares) of a target and where it is present."""

    areas: array[float] = field(default_factory=lambda: array("d"))
    negatives: int = 0
    volumes: set[str] = field(default_factory=set)
    patients: set[str] = field(default_factory=set)
    smallest: Extreme | None = None
    largest: Extreme | None = None

    def add(self, data_set: str, row: SliceRow, area: float) -> None:
        if not area:
            self.negatives += 1
            return
        self.areas.append(area)
        self.volumes.add(row.volume)
        self.patients.add(row.patient)
        if self.smallest is None or area < self.smallest.area:
            self.smallest = Extreme(data_set, row, area)
        if self.largest is None or area > self.largest.area:
            self.largest = Extreme(data_set, row, area)


def check_data_sets(roots: Sequence[Path], *, progress: Callable[[int, int], object] | None = None) -> Checked:
    """Check and measure slice data sets; reads every image of the manifest once.

    Args:
        roots: their folders; images that occur in several are found, too.
        progress: called after every image with the number of images done and the total.

    Raises:
        DatasetError: a folder is no slice data set, or given twice. Everything else is a finding.
    """
    findings = Findings()
    data_sets = open_data_sets(roots, findings)
    duplicates = Duplicates(findings)
    total = sum(data_set.pictures for data_set in data_sets)
    done = 0

    def picture_done() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    described = []
    objects: dict[tuple[str, str, str], _Objects] = {}
    for data_set in data_sets:
        without_rows = check_tables(data_set, findings)
        grey = np.zeros(256, np.int64)
        volumes: dict[str, dict[str, Any]] = {}
        for volume_id in data_set.reader.volumes:
            measured = measure_volume(
                data_set, volume_id, findings=findings, duplicates=duplicates, picture_done=picture_done
            )
            grey += measured.grey
            for row, area in measured.areas:
                key = (data_set.name, row.modality, row.target)
                objects.setdefault(key, _Objects()).add(data_set.name, row, area)
            volumes[volume_id] = _volume(data_set, volume_id, measured)
        check_occurrence(data_set, volumes, findings)
        described.append(_data_set(data_set, volumes, grey, without_rows))
    check_between(data_sets, findings)
    order = {data_set.name: number for number, data_set in enumerate(data_sets)}
    measurable = sorted(
        (key for key, found in objects.items() if found.areas), key=lambda key: (order[key[0]], *key[1:])
    )
    table = [_table_row(key, objects[key]) for key in measurable]
    found = findings.sorted()
    content = {
        "format": FORMAT,
        "version": VERSION,
        "findings": [finding.to_dict() for finding in found],
        "table9": table,
        "data_sets": described,
    }
    extremes = [objects[key] for key in measurable]
    return Checked(
        content=content,
        findings=found,
        smallest=[each.smallest for each in extremes if each.smallest is not None],
        largest=[each.largest for each in extremes if each.largest is not None],
    )


def _volume(data_set: DataSet, volume_id: str, measured: MeasuredVolume) -> dict[str, Any]:
    entry = data_set.reader.volumes[volume_id]
    rows = [row for rows in data_set.rows[volume_id].values() for row in rows]
    targets = {target: {"positives": 0, "negatives": 0} for target in entry["targets"]}
    for row in rows:
        if row.target in targets:
            targets[row.target]["positives" if row.present else "negatives"] += 1
    return {
        "patient": entry["patient"],
        "split": rows[0].split if rows else None,
        "modality": entry["modality"],
        "site": entry["site"],
        "plane": entry["plane"],
        "window": entry["window"],
        "orientation": None if measured.grid is None else measured.grid.orientation,
        "shape": entry["shape"],
        "slices": None if measured.grid is None else [measured.grid.slices, *measured.grid.size],
        "spacing_mm": [_rounded(value) for value in rows[0].spacing] if rows else None,
        "pictures": measured.pictures,
        "flat_pictures": measured.flat,
        "grey": _grey(measured.grey),
        "label_values": measured.values,
        "targets": targets,
    }


def _data_set(
    data_set: DataSet, volumes: Mapping[str, Mapping[str, Any]], grey: np.ndarray, without_rows: int
) -> dict[str, Any]:
    rows = data_set.reader.rows
    sizes = [volume["slices"] for volume in volumes.values() if volume["slices"] is not None]
    spacings = [volume["spacing_mm"] for volume in volumes.values() if volume["spacing_mm"] is not None]
    return {
        "name": data_set.name,
        "patients": len({volume["patient"] for volume in volumes.values()}),
        "volumes": len(volumes),
        "pictures": data_set.pictures,
        "pictures_without_rows": without_rows,
        "rows": len(rows),
        "counts": {
            field: _counts(volume[field] for volume in volumes.values())
            for field in ("modality", "site", "plane", "orientation", "window")
        },
        "slices": _spread(("slices", "rows", "columns"), sizes),
        "spacing_mm": _spread(("row", "column", "slice"), spacings),
        "grey": {**_grey(grey), "histogram": grey.tolist()},
        "splits": {split: _split([row for row in rows if row.split == split]) for split in SPLITS},
        "targets": _targets(data_set),
        "volume": dict(volumes),
    }


def _split(rows: Sequence[SliceRow]) -> dict[str, int]:
    return {
        "patients": len({row.patient for row in rows}),
        "volumes": len({row.volume for row in rows}),
        "slices": len({row.image for row in rows}),
        "rows": len(rows),
        "positives": sum(row.present for row in rows),
        "negatives": sum(bool(row.target) and not row.present for row in rows),
    }


def _targets(data_set: DataSet) -> dict[str, dict[str, dict[str, int]]]:
    """Positives and negatives of every target in every split."""
    counts = Counter((row.target, row.split, row.present) for row in data_set.reader.rows)
    return {
        target: {
            split: {"positives": counts[target, split, True], "negatives": counts[target, split, False]}
            for split in SPLITS
        }
        for target in data_set.reader.targets
    }


def _table_row(key: tuple[str, str, str], found: _Objects) -> dict[str, Any]:
    percent = 100 * np.asarray(found.areas)
    name, modality, target = key
    return {
        "data_set": name,
        "modality": modality,
        "target": target,
        "area_percent": {
            "mean": _rounded(percent.mean()),
            "median": _rounded(np.median(percent)),
            "min": _rounded(percent.min()),
            "max": _rounded(percent.max()),
        },
        "support": len(percent),
        "negatives": found.negatives,
        "below_1_percent": int((percent < 1).sum()),
        "volumes": len(found.volumes),
        "patients": len(found.patients),
    }


def _grey(counts: np.ndarray) -> dict[str, Any]:
    """Mean, deviation, percentiles (nearest rank) and the shares of black and white of a histogram (256,)."""
    total = int(counts.sum())
    if not total:
        return {"mean": None, "std": None, "percentiles": None, "black": None, "white": None}
    values = np.arange(256)
    mean = float((counts * values).sum() / total)
    below = np.cumsum(counts)
    return {
        "mean": _rounded(mean),
        "std": _rounded(float(np.sqrt((counts * (values - mean) ** 2).sum() / total))),
        "percentiles": {str(q): int(np.searchsorted(below, max(1, q / 100 * total))) for q in _PERCENTILES},
        "black": _rounded(counts[0] / total),
        "white": _rounded(counts[255] / total),
    }


def _spread(names: Sequence[str], values: Sequence[Sequence[float]]) -> dict[str, dict[str, float]]:
    if not values:
        return {}
    columns = np.asarray(values, dtype=float).T
    return {
        name: {"min": _rounded(each.min()), "median": _rounded(np.median(each)), "max": _rounded(each.max())}
        for name, each in zip(names, columns, strict=True)
    }


def _counts(values: Iterable[Any]) -> dict[str, int]:
    """Counts of the values, most frequent first."""
    counted = Counter(_text(value) for value in values)
    return dict(sorted(counted.items(), key=lambda pair: (-pair[1], pair[0])))


def _text(value: Any) -> str:
    if isinstance(value, Mapping):  # a window
        kind, *numbers = value.values()
        return " ".join([str(kind), *(f"{number:g}" for number in numbers)])
    return "unknown" if value in (None, "") else str(value)


def _rounded(value: float) -> float:
    """Six significant digits, equal on every machine."""
    return float(f"{value:.6g}")
