"""One self-contained HTML page about an evaluation."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.evaluation.components import IOU_THRESHOLDS
from boltzformer_monai.evaluation.figures import focus_by_layer, froc_curves, loss_curve, reliability_curves
from boltzformer_monai.evaluation.focus import focus_lines, focus_table, sets_table, verdict
from boltzformer_monai.evaluation.froc import fractions
from boltzformer_monai.evaluation.html import write_html
from boltzformer_monai.evaluation.strata import STRATA_TITLES
from boltzformer_monai.evaluation.tables import fold_rows, format_estimate, sections_of, table_of

__all__ = ["write_report"]


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    metrics: Mapping[str, Any],
    history: Sequence[Mapping[str, float | None]] = (),
    overlays: Iterable[tuple[str, bytes]] = (),
    samplings: Iterable[tuple[str, bytes]] = (),
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Write the report atomically; returns its path.

    Args:
        path: the HTML file; its folder is created.
        title: of the page.
        metrics: content of ``metrics.json``: `summarise_slices` under ``"slices"``, and the engines'
            `ScoreVolumes.summary` under ``"volumes"`` if whole volumes were scored, `summarise_focus` under ``"focus"``
            if the sampling was measured; or those of :func:`~boltzformer_monai.evaluation.pooling.pool_evaluations`.
        history: epochs of the learning curve, see :func:`~boltzformer_monai.evaluation.figures.loss_curve`.
        overlays: caption and PNG of predictions.
        samplings: caption and PNG of sampled patches.
        facts: data, checkpoint, seed, versions; no patient data, since reports are shared.

    Raises:
        ConfigError: an image is no PNG, or the metrics are not those of an evaluation.
    """
    try:
        parts = [_part("Slices", metrics["slices"], "", fold_rows(metrics, "slices"))]
        volumes = metrics.get("volumes")
        if volumes and volumes["cases"]:
            parts.append(_part("Whole volumes", volumes, _about_volumes(volumes), fold_rows(metrics, "volumes")))
        focus = _focus(metrics["focus"]) if metrics.get("focus") else None
    except (KeyError, TypeError) as error:
        raise ConfigError(f"the report needs the content of a metrics.json; this lacks {error}") from None
    return write_html(
        path,
        "report.html",
        title=title,
        parts=parts,
        curve=loss_curve(history) if history else None,
        last_epoch=history[-1].get("epoch") if history else None,
        overlays=list(overlays),
        samplings=list(samplings),
        focus=focus,
        facts=facts or {},
    )


def _part(heading: str, summary: Mapping[str, Any], note: str, folds: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The template's variables for a summary."""
    overall, bootstrap = summary["overall"], summary["bootstrap"]
    cards = []
    for name, about in summary["metrics"].items():
        if not about.get("section"):
            mean = {**overall[name], "low": None}
            unit = f" {about['unit']}" if about["unit"] not in ("", "%") and mean["mean"] is not None else ""
            cards.append((f"{format_estimate(mean, about['unit'])}{unit}", about["title"]))
    intervals = (
        f"In brackets: {100 * bootstrap['level']:g} % confidence interval, {bootstrap['resamples']} resamples of the "
        "patients; none for a single patient. A share says of how many cases or components it is."
    )
    sections: list[dict[str, Any]] = []
    for section in sections_of(summary):
        headings, rows = table_of(summary, section)
        described = [about for about in summary["metrics"].values() if about.get("section", "") == section]
        explained = any(each["caption"] for each in sections)  # the first of several tables of the same metrics
        sections.append(
            {
                "caption": section,
                "headings": headings,
                "rows": _broken(rows),
                "metrics": [] if explained else described,
            }
        )
    return {
        "heading": heading,
        "cards": cards,
        "note": f"{note}{intervals}",
        "sections": sections,
        "folds": _broken(folds),
        "total": len(summary["by_target"]),
        "strata": bool(summary.get("strata")),
        "found": _found_by_size(summary),
        "froc": _froc(summary),
        "calibration": _calibration(summary),
    }


def _found_by_size(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """The table of objects found by their size."""
    found = summary.get("found_by_size")
    if not found:
        return None
    headings = ["size of the object", *(f"IoU above {threshold:g}" for threshold in IOU_THRESHOLDS.values())]
    rows = [
        [STRATA_TITLES.get(name, name), *(format_estimate(entry[suffix], "%") for suffix in IOU_THRESHOLDS)]
        for name, entry in found.items()
    ]
    return {"headings": headings, "rows": _broken(rows), "connectivity": summary["connectivity"]}


def _froc(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """The FROC of all targets as a figure, and a table of it and of every target."""
    froc = summary.get("froc")
    if not froc or not froc["overall"]["iou0"]["objects"]:
        return None
    headings = ["target", "IoU above", "objects", f"{froc['per']}s", *fractions(froc), "mean"]
    rows = []
    for name, entries in {"all": froc["overall"], **froc["by_target"]}.items():
        for suffix, entry in entries.items():
            estimates = [format_estimate(each, "%") for each in [*entry["sensitivity"], entry["mean"]]]
            counts = [f"{IOU_THRESHOLDS[suffix]:g}", str(entry["objects"]), str(entry["scans"])]
            rows.append([name, *counts, *estimates])
    return {
        "headings": headings,
        "rows": _broken(rows),
        "figure": froc_curves(froc),
        "per": froc["per"],
        "faintest": froc["faintest"],
    }


_CALIBRATED = {
    "pixels": ("pixels", "a pixel's probability, and whether it is of the target"),
    "objects": ("candidates", "a candidate's confidence, and whether it overlaps an object that no surer one took"),
    "presence": ("presence", "the presence head's probability, and whether the target is there"),
}


def _calibration(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """The reliability of all probabilities as a figure, and their errors as a table."""
    calibration = {name: each for name, each in (summary.get("calibration") or {}).items() if each}
    if not calibration:
        return None
    rows = []
    for name, each in calibration.items():
        for target, entry in {"all": each["overall"], **each["by_target"]}.items():
            errors = (entry["ece"], entry["ece_from_0.1"])
            cells = [cell for error in errors for cell in (format_estimate(error, ""), f"{error['total']:.0f}")]
            rows.append([target, _CALIBRATED[name][0], *cells])
    return {
        "headings": ["target", "probabilities of", "ECE", "of", "ECE from 0.1", "of"],
        "rows": _broken(rows),
        "figure": reliability_curves({_CALIBRATED[name][0]: each for name, each in calibration.items()}),
        "notes": [_CALIBRATED[name] for name in calibration],
    }


def _focus(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The template's variables for a summary of the sampling."""
    lines = {name: values for name, values in focus_lines(summary).items() if any(values)}
    return {
        "verdict": verdict(summary),
        "table": focus_table(summary),
        "sets": sets_table(summary) if summary["overall"]["layers"] else None,
        "curve": focus_by_layer(lines) if lines else None,
    }


def _broken(rows: Iterable[Sequence[str]]) -> list[list[str]]:
    """Rows with intervals on a line of their own."""
    return [[name, *(cell.replace(" (", "\n(") for cell in cells)] for name, *cells in rows]


def _about_volumes(volumes: Mapping[str, Any]) -> str:
    rule = volumes["presence"]
    kept = (
        "Masks are those of every slice, without a presence rule."
        if rule is None
        else "Presence thresholds are those of each fold's model."
        if isinstance(rule, list)
        else f"Where one slice reaches presence {rule['high']:.2f}, those from {rule['low']:.2f} keep their masks."
    )
    count, patients = (len({case[key] for case in volumes["cases"]}) for key in ("volume", "patient"))
    return (
        f"{count} volumes of {patients} patients. {kept} Surfaces may be {volumes['tolerance_mm']:g} mm apart in the "
        "surface Dice. "
    )
