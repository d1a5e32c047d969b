"""Scores as CSV, metrics as JSON and Markdown."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from boltzformer_monai.csv_cells import from_cell, to_cell
from boltzformer_monai.errors import DatasetError, why
from boltzformer_monai.evaluation.metrics import Value, metrics_for
from boltzformer_monai.evaluation.strata import STRATA_TITLES
from boltzformer_monai.evaluation.summary import SliceScore
from boltzformer_monai.limits import open_text
from boltzformer_monai.storage import replacing

__all__ = [
    "fold_rows", "format_estimate", "markdown", "markdown_line", "markdown_table", "read_scores_csv", "sections_of",
    "table_of", "write_metrics_json", "write_scores_csv",
]  # fmt: skip

_OPTIONAL = ("diameter_mm", "confidence", "presence")
_COLUMNS = tuple(field.name for field in fields(SliceScore) if field.name not in ("values", *_OPTIONAL))
_COUNTS = ("truth", "predicted", "intersection")
_NO_VALUE = "–"
_DECIMALS = {"": 3, "%": 1, "mm": 1}


def write_scores_csv(scores: Sequence[SliceScore], path: str | os.PathLike[str]) -> Path:
    """Write one row per instance atomically: the fields of :class:`SliceScore`, then its metrics.

    A cell is empty without a value; a metric's is ``part/whole`` for a ratio. Text that looks like a formula gets a
    leading apostrophe.
    """
    target = Path(path)
    names = list(scores[0].values) if scores else [metric.name for metric in metrics_for(2)]
    with replacing(target) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*_COLUMNS, *_OPTIONAL, *names])
        for score in scores:
            cells = [to_cell(getattr(score, name)) for name in _COLUMNS]
            cells += [_value_cell(getattr(score, name)) for name in _OPTIONAL]
            table.writerow([*cells, *(_value_cell(score.values[name]) for name in names)])
    return target


def _value_cell(value: Value) -> str:
    if value is None:
        return ""
    return "/".join(repr(number) for number in (value if isinstance(value, tuple) else (value,)))


def _value_of(cell: str) -> Value:
    numbers = [float(number) for number in cell.split("/")] if cell else []
    if len(numbers) > 2:
        raise ValueError(f"{cell!r} is no value of a metric")
    return None if not numbers else numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def read_scores_csv(path: str | os.PathLike[str]) -> list[SliceScore]:
    """Read a table of :func:`write_scores_csv`.

    Raises:
        DatasetError: the file is missing, lacks a column, or a row is damaged.
    """
    source = Path(path)
    scores = []
    try:
        with open_text(source) as file:
            table = csv.DictReader(file)
            columns = list(table.fieldnames or ())
            missing = [name for name in _COLUMNS if name not in columns]
            if missing:
                raise DatasetError(f"{source}: lacks the column {', '.join(missing)}; it is no table of slice scores")
            for row in table:
                if None in row.values():
                    raise DatasetError(f"{source}, line {table.line_num}: has too few fields; the file is cut off")
                fields: dict[str, Any] = {name: from_cell(row[name]) for name in _COLUMNS[:5]}
                fields |= {name: int(row[name]) for name in _COUNTS}
                fields |= {name: float(row[name]) if row.get(name) else None for name in _OPTIONAL}
                values = {name: _value_of(row[name]) for name in columns if name not in (*_COLUMNS, *_OPTIONAL)}
                scores.append(SliceScore(**fields, area_fraction=float(row["area_fraction"]), values=values))
    except (OSError, ValueError, TypeError) as error:
        raise DatasetError(f"{source}: cannot be read as slice scores ({why(error)})") from None
    return scores


def write_metrics_json(metrics: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write the metrics as JSON atomically.

    Raises:
        DatasetError: a value is NaN, infinite or no JSON.
    """
    target = Path(path)
    try:
        text = json.dumps(metrics, indent=2, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{target}: the metrics cannot be written as JSON ({error})") from None
    with replacing(target) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return target


def sections_of(summary: Mapping[str, Any]) -> list[str]:
    """Headings of a summary's tables; ``""`` is the main one."""
    return list(dict.fromkeys(about.get("section", "") for about in summary["metrics"].values()))


def table_of(summary: Mapping[str, Any], section: str = "") -> tuple[list[str], list[list[str]]]:
    """Headings and rows of one of a summary's tables: one row per target, the overall one, then the strata if any."""
    rows = [*summary["by_target"].items(), ("all", summary["overall"])]
    rows += [(STRATA_TITLES.get(name, name), entry) for name, entry in summary.get("strata", {}).items()]
    metrics = _metrics_of(summary, section)
    headings = ["target", "present / absent"]
    for about in metrics.values():
        unit = "" if about["unit"] in ("", "%") else f", {about['unit']}"
        headings.append(f"{about['title']}{unit}")
    return headings, [_row(name, entry, metrics) for name, entry in rows]


def _metrics_of(summary: Mapping[str, Any], section: str) -> dict[str, Any]:
    return {name: about for name, about in summary["metrics"].items() if about.get("section", "") == section}


def fold_rows(metrics: Mapping[str, Any], part: str) -> list[list[str]]:
    """Rows of ``"slices"`` or ``"volumes"``, one per fold, in the columns of :func:`table_of`; none without folds."""
    folds, main = enumerate(metrics.get("folds", ())), _metrics_of(metrics[part], "")
    return [_row(f"fold {number}", fold[part], main) for number, fold in folds]


def _row(name: str, entry: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[str]:
    estimates = (format_estimate(entry[metric], about["unit"]) for metric, about in metrics.items())
    return [name, f"{entry['present']} / {entry['absent']}", *estimates]


def format_estimate(estimate: Mapping[str, Any], unit: str) -> str:
    """A mean with its confidence interval, if any; of a share also of how many; a dash without cases."""
    scale, decimals = 100 if unit == "%" else 1, _DECIMALS.get(unit, 2)
    mean, low, high = (
        None if estimate[end] is None else f"{scale * estimate[end]:.{decimals}f}" for end in ("mean", "low", "high")
    )
    if mean is None:
        return _NO_VALUE
    if unit == "%":
        total = estimate.get("total")  # not in the metrics of earlier versions
        mean += " %" if total is None else f" % of {total:.0f}"
    return mean if low is None else f"{mean} ({low}–{high})"


def markdown_table(metrics: Mapping[str, Any]) -> str:
    """Content of ``metrics.json`` as Markdown: a table of slices, and one of volumes if any."""
    lines: list[str] = []
    for part in ("slices", "volumes"):
        summary = metrics.get(part)
        if summary and summary.get("cases") != []:
            headings, rows = table_of(summary)
            headings[0] = f"target ({part})"
            lines += ["", markdown(headings, [*rows, *fold_rows(metrics, part)])]
    return "\n".join(lines[1:]) + "\n"


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join(map(markdown_line, (headings, rule, *rows)))


def markdown_line(cells: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
