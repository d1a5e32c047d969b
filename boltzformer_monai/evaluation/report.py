"""One self-contained HTML page about an evaluation: no scripts, no external resources, safe to mail and to archive."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.evaluation.figures import loss_curve
from boltzformer_monai.evaluation.files import replacing
from boltzformer_monai.evaluation.tables import METRIC_HEADINGS, STRATA_TITLES, metric_rows, number, percent

__all__ = ["write_report"]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Nothing may be fetched or run, even if a text slipped through the escaping.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --text: #1d2330; --soft: #5a6375; --line: #d5dae3; --page: #ffffff; --card: #f5f7fa; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e9ef; --soft: #a3adbf; --line: #3a4252; --page: #14171d; --card: #1d222b; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 64rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p.note, figcaption { color: var(--soft); font-size: .92rem; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; padding: 0;
  list-style: none; }
.numbers li { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; }
.numbers strong { display: block; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .92rem; padding-bottom: .3rem; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child, .facts td { text-align: left; }
tbody tr.total > * { font-weight: 600; }
figure { margin: 1rem 0 1.6rem; } img { max-width: 100%; height: auto; background: #fff; border-radius: .3rem; }
.swatch { display: inline-block; width: .9em; height: .9em; vertical-align: -.1em; border-radius: .15em; }
.green { background: #1acc4d; } .red { border: 2px solid #f22626; }
"""


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
        metrics: what :func:`boltzformer_monai.evaluation.metrics.summarise` returned.
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
    ]
    if history:
        body.append("<h2>Training</h2>")
        last = history[-1].get("epoch")
        alt = f"Learning curve: training and validation loss and validation Dice up to epoch {last}"
        body.append(_figure(alt, loss_curve(history), alt=alt))
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
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )
    target = Path(path)
    with replacing(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
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
        _table("By target", METRIC_HEADINGS, by_target, total=True),
        _table("By the target’s share of the slice", ("area", "instances", "Dice"), strata),
    ]


def _table(caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]], *, total: bool = False) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in headings)
    lines = []
    for index, (first, *others) in enumerate(rows):
        mark = ' class="total"' if total and index == len(rows) - 1 else ""
        cells = "".join(f"<td>{escape(text)}</td>" for text in others)
        lines.append(f'<tr{mark}><th scope="row">{escape(first)}</th>{cells}</tr>')
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _gallery(heading: str, legend: str, pictures: Iterable[tuple[str, bytes]], alt: str) -> list[str]:
    figures = [_figure(caption, png, alt=f"{alt}: {caption}") for caption, png in pictures]
    return [f"<h2>{escape(heading)}</h2>", legend, *figures] if figures else []


def _figure(caption: str, png: bytes, *, alt: str) -> str:
    if not png.startswith(_PNG_SIGNATURE):
        msg = f"the picture {caption!r} of the report is not a PNG"
        raise ConfigError(msg)
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure><img alt="{escape(alt)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
