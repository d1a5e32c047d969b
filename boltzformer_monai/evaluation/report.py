"""One self-contained HTML page about an evaluation: no scripts, no external resources, safe to mail and to archive."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.evaluation.figures import loss_curve
from boltzformer_monai.evaluation.page import figure, html_page, table
from boltzformer_monai.evaluation.tables import (
    FALSE_HEADINGS,
    METRIC_HEADINGS,
    OVERLAP_HEADINGS,
    STRATA_TITLES,
    false_rows,
    metric_rows,
    number,
    overlap_rows,
    percent,
)
from boltzformer_monai.storage import replacing

__all__ = ["write_report"]

# A mean and its interval stay on one line; a narrow page scrolls the table.
_STYLE = "td { white-space: nowrap; } .facts td { white-space: normal; }\n"


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
    """Write the report; an existing file is replaced in one step.

    Args:
        path: the HTML file; its folder is made if needed.
        title: heading of the page.
        metrics: what :func:`boltzformer_monai.evaluation.metrics.summarise` returned; what `ScoreVolumes.summary` of
            the engines returned stands under ``"volumes"`` if whole volumes were scored.
        history: epochs for the learning curve (see :func:`~boltzformer_monai.evaluation.figures.loss_curve`).
        overlays: caption and PNG of predictions.
        samplings: caption and PNG of sampled patches.
        facts: what was evaluated and how: data, checkpoint, seed, versions. No patient data: a report gets mailed.

    Returns:
        The path.

    Raises:
        ConfigError: a picture is not a PNG, or the metrics are not those of `summarise`.
    """
    body = [
        f"<h1>{escape(title)}</h1>",
        '<p class="note">Research software. Not a medical device; not for diagnosis.</p>',
        *_metrics_sections(metrics),
        *_volume_sections(metrics.get("volumes")),
    ]
    if history:
        body.append("<h2>Training</h2>")
        last = history[-1].get("epoch")
        alt = f"Learning curve: training and validation loss and validation Dice up to epoch {last}"
        body.append(figure(alt, loss_curve(history), alt=alt))
    body += _gallery(
        "Predictions",
        '<p class="note"><span class="swatch green"></span> prediction, filled green; '
        '<span class="swatch red"></span> truth, outlined red.</p>',
        overlays,
        "Prediction (green) and truth (red outline)",
    )
    body += _gallery(
        "Sampled patches",
        '<p class="note">Patches that a query attended to are bright, the others dark; one panel a layer. '
        '<span class="swatch red"></span> the target’s boundary.</p>',
        samplings,
        "Patches sampled layer by layer",
    )
    if facts:
        rows = "".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in facts.items())
        body.append(
            f'<h2>How this was made</h2><div class="wide"><table class="facts"><tbody>{rows}</tbody></table></div>'
        )
    target = Path(path)
    with replacing(target) as temporary:
        temporary.write_text(html_page(title, body, style=_STYLE), encoding="utf-8")
    return target


def _metrics_sections(metrics: Mapping[str, Any]) -> list[str]:
    try:
        headline = [
            ("mean Dice", number(metrics["mean_dice"])),
            ("Dice, targets below 1 %", number(metrics["strata"]["below_1_percent"]["mean_dice"])),
            ("targets missed", percent(metrics["missed_targets"]["fraction"])),
            ("absent answered", percent(metrics["absent_answered"])),
            ("mean 3-D Dice", number(metrics["mean_dice_3d"])),
        ]
        by_target = metric_rows(metrics)
        strata = [
            (name, str(metrics["strata"][key]["n"]), number(metrics["strata"][key]["mean_dice"]))
            for name, key in STRATA_TITLES
        ]
    except (KeyError, TypeError) as error:
        msg = f"the report needs the metrics that summarise() returns; these lack {error}"
        raise ConfigError(msg) from None
    items = "".join(f"<li><strong>{escape(value)}</strong> {escape(name)}</li>" for name, value in headline)
    return [
        f'<h2>Result</h2><ul class="numbers">{items}</ul>',
        '<p class="note">Dice: mean over the targets of the mean over the slices where the target is present. Missed: '
        "present, but no pixel found. Absent answered: not present, but a mask all the same.</p>",
        table("By target", METRIC_HEADINGS, by_target, total=True),
        table("By the target’s share of the slice", ("area", "instances", "Dice"), strata),
    ]


def _volume_sections(volumes: Mapping[str, Any] | None) -> list[str]:
    if not volumes or not volumes["cases"]:
        return []
    try:
        found, false = overlap_rows(volumes), false_rows(volumes)
        drawn, rule, tolerance = volumes["bootstrap"], volumes["presence"], volumes["tolerance_mm"]
        cases = len({case["volume"] for case in volumes["cases"]})
        patients = len({case["patient"] for case in volumes["cases"]})
        level = f"{100 * drawn['level']:g} %"
    except (KeyError, TypeError) as error:
        msg = f"the report needs the volumes' scores that ScoreVolumes.summary() returns; these lack {error}"
        raise ConfigError(msg) from None
    dropped = (
        "Masks are those of every slice, without a presence rule."
        if rule is None
        else f"Where one slice reaches presence {rule['high']:.2f}, those from {rule['low']:.2f} keep their masks."
    )
    return [
        "<h2>Whole volumes</h2>",
        f'<p class="note">{cases} volumes of {patients} patients. In brackets: {level} confidence interval, '
        f"{drawn['resamples']} resamples of the patients; none for a single patient. {escape(dropped)}</p>",
        table("Where the target is present", OVERLAP_HEADINGS, found, total=True),
        f'<p class="note">Surface Dice: share of both surfaces within {tolerance:g} mm of each other. Unanswered: no '
        "voxel at all; overlap 0, no distance. Lesions found: connected components of the truth that the prediction "
        "touches. In the last row targets weigh alike in Dice, surface Dice and distance; lesions weigh alike.</p>",
        table("Where there is nothing to find", FALSE_HEADINGS, false, total=True),
        '<p class="note">Answered: volumes without the target that got a mask all the same, and its mean size in ml. '
        "False components: parts of a mask that touch no truth, in all volumes.</p>",
    ]


def _gallery(heading: str, legend: str, pictures: Iterable[tuple[str, bytes]], alt: str) -> list[str]:
    figures = [figure(caption, png, alt=f"{alt}: {caption}") for caption, png in pictures]
    return [f"<h2>{escape(heading)}</h2>", legend, *figures] if figures else []
