"""Scores and metrics as files: CSV for every instance, JSON for machines, Markdown for people."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from boltzformer_monai.csv_cells import from_cell, to_cell
from boltzformer_monai.errors import DatasetError, why
from boltzformer_monai.evaluation.metrics import SliceScore
from boltzformer_monai.limits import open_text
from boltzformer_monai.storage import replacing

__all__ = ["markdown_table", "read_scores_csv", "write_metrics_json", "write_scores_csv"]

_COLUMNS = tuple(field.name for field in fields(SliceScore))
_NO_VALUE = "–"
STRATA_TITLES = (("below 1 % of the image", "below_1_percent"), ("1 % of the image and more", "from_1_percent"))
METRIC_HEADINGS = ("target", "slices", "Dice", "missed", "absent answered", "3-D Dice")
OVERLAP_HEADINGS = ("target", "present / unanswered", "Dice", "surface Dice", "95 % Hausdorff, mm", "lesions found")
FALSE_HEADINGS = ("target", "absent from", "answered", "false ml", "false components per volume")


def write_scores_csv(scores: Iterable[SliceScore], path: str | os.PathLike[str]) -> Path:
    """Write one row an instance: the fields of :class:`SliceScore` and `dice` (empty where there is none); atomic.

    Text that a spreadsheet would take for a formula has an apostrophe before it.
    """
    target = Path(path)
    with replacing(target) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*_COLUMNS, "dice"])
        for score in scores:
            value = score.dice
            cells = (to_cell(getattr(score, name)) for name in _COLUMNS)
            table.writerow([*cells, "" if value is None else f"{value:.6f}"])
    return target


def read_scores_csv(path: str | os.PathLike[str]) -> list[SliceScore]:
    """Read what :func:`write_scores_csv` wrote, so that metrics can be computed again without the network.

    Raises:
        DatasetError: the file is missing, lacks a column, or a row is damaged.
    """
    source = Path(path)
    scores = []
    try:
        with open_text(source) as file:
            table = csv.DictReader(file)
            missing = [name for name in _COLUMNS if name not in (table.fieldnames or ())]
            if missing:
                msg = f"{source}: lacks the column {', '.join(missing)}; it is no table of slice scores"
                raise DatasetError(msg)
            for row in table:
                if None in row.values():
                    msg = f"{source}, line {table.line_num}: has too few fields; the file is cut off"
                    raise DatasetError(msg)
                scores.append(
                    SliceScore(
                        image=from_cell(row["image"]),
                        volume=from_cell(row["volume"]),
                        patient=from_cell(row["patient"]),
                        target=from_cell(row["target"]),
                        prompt=from_cell(row["prompt"]),
                        area_fraction=float(row["area_fraction"]),
                        truth=int(row["truth"]),
                        predicted=int(row["predicted"]),
                        intersection=int(row["intersection"]),
                    )
                )
    except (OSError, ValueError, TypeError) as error:
        msg = f"{source}: cannot be read as slice scores ({why(error)})"
        raise DatasetError(msg) from None
    return scores


def write_metrics_json(metrics: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write the metrics as JSON with sorted keys; atomic.

    Raises:
        DatasetError: a value is NaN, infinite or of a type that JSON does not have.
    """
    target = Path(path)
    try:
        text = json.dumps(metrics, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        msg = f"{target}: the metrics cannot be written as JSON ({error})"
        raise DatasetError(msg) from None
    with replacing(target) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return target


def metric_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str, str, str, str, str]]:
    """Rows of text (target, slices, Dice, missed, absent answered, 3-D Dice), one a target and the mean last."""
    missed, answered = metrics["missed_targets"], metrics["absent_answered_by_target"]
    targets = sorted({*metrics["dice_by_target"], *answered})
    rows = [
        (
            target,
            str(metrics["slices_by_target"].get(target, 0)),
            number(metrics["dice_by_target"].get(target)),
            percent(missed["by_target"].get(target)),
            percent(answered.get(target)),
            number(metrics["dice_3d_by_target"].get(target)),
        )
        for target in targets
    ]
    total = (
        "mean",
        str(metrics["present_instances"]),
        number(metrics["mean_dice"]),
        percent(missed["fraction"]),
        percent(metrics["absent_answered"]),
        number(metrics["mean_dice_3d"]),
    )
    return [*rows, total]


def overlap_rows(volumes: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What whole volumes with the target are worth, as text under OVERLAP_HEADINGS; all targets last."""
    return [
        (
            name,
            f"{entry['present']} / {entry['unanswered']}",
            interval(entry["dice"], number),
            interval(entry["surface_dice"], number),
            interval(entry["hausdorff95_mm"], "{:.1f}".format),
            interval(entry["lesion_detection_rate"], percent),
        )
        for name, entry in _targets_and_all(volumes)
    ]


def false_rows(volumes: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What was found where there is nothing, as text under FALSE_HEADINGS; all targets last."""
    return [
        (
            name,
            str(entry["absent"]),
            interval(entry["false_positive_rate"], percent),
            interval(entry["false_positive_ml"], "{:.2f}".format),
            interval(entry["false_components"], "{:.2f}".format),
        )
        for name, entry in _targets_and_all(volumes)
    ]


def _targets_and_all(volumes: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [*sorted(volumes["by_target"].items()), ("all", volumes["overall"])]


def markdown_table(metrics: Mapping[str, Any]) -> str:
    """The metrics of :func:`summarise` as Markdown: a table by target, then the two strata of Table 2.

    Where there are scores of whole volumes (``"volumes"``), their two tables follow.
    """
    lines = [_line(METRIC_HEADINGS), _line(["---", *["---:"] * (len(METRIC_HEADINGS) - 1)])]
    lines += [_line(row) for row in metric_rows(metrics)]
    lines += ["", _line(("area of the target", "instances", "Dice")), _line(("---", "---:", "---:"))]
    for title, key in STRATA_TITLES:
        stratum = metrics["strata"][key]
        lines.append(_line((title, str(stratum["n"]), number(stratum["mean_dice"]))))
    if volumes := metrics.get("volumes"):
        for headings, rows in ((OVERLAP_HEADINGS, overlap_rows(volumes)), (FALSE_HEADINGS, false_rows(volumes))):
            lines += ["", _line(headings), _line(["---", *["---:"] * (len(headings) - 1)]), *map(_line, rows)]
    return "\n".join(lines) + "\n"


def number(value: float | None) -> str:
    """Three decimals, or a dash for a mean over nothing."""
    return _NO_VALUE if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A fraction as percent with one decimal, or a dash."""
    return _NO_VALUE if value is None else f"{100 * value:.1f} %"


def interval(estimate: Mapping[str, Any], text: Callable[[float], str]) -> str:
    """A mean with its confidence interval behind it, where it has one; a dash for a mean over nothing."""
    mean, low, high = (estimate[end] for end in ("mean", "low", "high"))
    if mean is None:
        return _NO_VALUE
    if low is None:
        return text(mean)
    return f"{text(mean)} ({text(low).removesuffix(' %')}–{text(high).removesuffix(' %')})"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
