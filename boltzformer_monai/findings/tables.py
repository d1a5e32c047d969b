"""Lesions as rows of a CSV table."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from typing import Any

from boltzformer_monai.csv_cells import to_cell
from boltzformer_monai.storage import replacing

__all__ = ["COLUMNS", "write_lesions_csv"]

COLUMNS = (
    "scan", "value", "name", "number", "voxels", "volume_ml", "long_axis_mm", "short_axis_mm", "plane", "axial_slice",
    "first_slice", "last_slice", "diameter_mm", "x_mm", "y_mm", "z_mm", "mean_hu", "sd_hu", "min_hu", "max_hu",
    "confidence", "entropy", "at_edge",
)  # fmt: skip
"""Of the table: the scan's name, the target's label value and name, and what a lesion has."""


def write_lesions_csv(path: str | os.PathLike[str], lesions: Iterable[Mapping[str, Any]]) -> None:
    """Write a table with one lesion a row, atomically; its folder is made.

    Args:
        path: the file.
        lesions: of :meth:`~boltzformer_monai.findings.lesions.Lesion.as_dict`, with ``scan``, ``value`` and ``name``.

    Raises:
        StorageError: the file cannot be written.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for lesion in lesions:
            values = {
                **lesion,
                **dict(zip(("x_mm", "y_mm", "z_mm"), lesion["centre_mm"], strict=True)),
                **dict(zip(("first_slice", "last_slice"), lesion["slices"], strict=True)),
                "at_edge": int(lesion["at_edge"]),
            }
            table.writerow(["" if values[name] is None else to_cell(values[name]) for name in COLUMNS])
