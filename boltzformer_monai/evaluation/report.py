"""One self-contained HTML page about an evaluation."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.evaluation.figures import loss_curve
from boltzformer_monai.evaluation.html import write_html
from boltzformer_monai.evaluation.tables import fold_rows, format_estimate, table_of

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
            `ScoreVolumes.summary` under ``"volumes"`` if whole volumes were scored; or those of
            :func:`~boltzformer_monai.evaluation.pooling.pool_evaluations`.
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
        facts=facts or {},
    )


def _part(heading: str, summary: Mapping[str, Any], note: str, folds: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The template's variables for a summary."""
    headings, rows = table_of(summary)
    overall, bootstrap = summary["overall"], summary["bootstrap"]
    cards = []
    for name, about in summary["metrics"].items():
        mean = {**overall[name], "low": None}
        unit = f" {about['unit']}" if about["unit"] not in ("", "%") and mean["mean"] is not None else ""
        cards.append((f"{format_estimate(mean, about['unit'])}{unit}", about["title"]))
    intervals = (
        f"In brackets: {100 * bootstrap['level']:g} % confidence interval, {bootstrap['resamples']} resamples of the "
        "patients; none for a single patient."
    )
    return {
        "heading": heading,
        "cards": cards,
        "note": f"{note}{intervals}",
        "headings": headings,
        "rows": _broken(rows),
        "folds": _broken(folds),
        "total": len(summary["by_target"]),
        "strata": "strata" in summary,
        "metrics": summary["metrics"].values(),
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
