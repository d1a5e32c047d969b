"""Small charts as inline SVG: no scripts, no pictures, and colours that follow the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["CHART_STYLE", "balance_chart", "grey_histogram", "size_chart"]

CHART_STYLE = """
svg { display: block; max-width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: var(--text); } svg .soft { fill: var(--soft); }
svg .grid { stroke: var(--line); } svg .limit { stroke: var(--soft); stroke-dasharray: 3 3; }
svg .range { stroke: #4c78a8; stroke-width: 6; stroke-linecap: round; opacity: .55; }
svg .median { fill: #4c78a8; } svg .mean { fill: var(--page); stroke: #4c78a8; stroke-width: 2; }
svg .bar { fill: #4c78a8; } svg .rest { fill: #4c78a8; opacity: .3; } svg .clipped { fill: #d1712c; }
"""
_NAMES = 300  # pixels for the names on the left
_PLOT = 640
_MARGIN = 20  # on the right, for the last number of an axis
_LINE = 22  # pixels from row to row
_LETTERS = 42


def size_chart(table: Sequence[Mapping[str, Any]], *, with_data_set: bool) -> str:
    """Draw the rows of Table 9 on a logarithmic axis: from the smallest to the largest object, median and mean.

    Args:
        table: ``table9`` of the fingerprint, at least one row.
        with_data_set: name the data set, too.
    """
    lowest = min(row["area_percent"]["min"] for row in table)
    first = min(-1, math.floor(math.log10(lowest)))
    height = _LINE * len(table) + 40

    def x(percent: float) -> float:
        return round(_NAMES + _PLOT * (math.log10(percent) - first) / (2 - first), 1)

    parts = []
    for power in range(first, 3):
        css = "limit" if power == 0 else "grid"  # 1 %: what the paper calls small
        parts.append(f'<line class="{css}" x1="{x(10**power)}" x2="{x(10**power)}" y1="4" y2="{height - 34}"/>')
        parts.append(_text(x(10**power), height - 18, f"{10**power:g}", css="soft", anchor="middle"))
    parts.append(_text(_NAMES + _PLOT / 2, height - 3, "area in % of the slice", css="soft", anchor="middle"))
    for number, row in enumerate(table):
        y, area = _LINE * number + 16, row["area_percent"]
        name = f"{row['data_set']}: {row['target']}" if with_data_set else row["target"]
        parts.append(
            f"<g><title>{escape(name)}: min {area['min']:.3g}, median {area['median']:.3g}, mean {area['mean']:.3g}, "
            f"max {area['max']:.3g} %</title>{_text(_NAMES - 10, y + 4, _short(name), anchor='end')}"
            f'<line class="range" x1="{x(area["min"])}" x2="{x(area["max"])}" y1="{y}" y2="{y}"/>'
            f'<circle class="median" cx="{x(area["median"])}" cy="{y}" r="5"/>'
            f'<circle class="mean" cx="{x(area["mean"])}" cy="{y}" r="3"/></g>'
        )
    return _svg(height, "Object sizes on a logarithmic axis", parts)


def balance_chart(targets: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    """Draw for every target how many slices show it (dark) and how many do not (light).

    Args:
        targets: ``targets`` of a data set in the fingerprint, at least one.
    """
    counts = {
        target: [sum(split[kind] for split in splits.values()) for kind in ("positives", "negatives")]
        for target, splits in targets.items()
    }
    most = max(1, *(sum(pair) for pair in counts.values()))
    parts = []
    for number, (target, (shown, absent)) in enumerate(counts.items()):
        y = _LINE * number + 4
        dark, light = (round((_PLOT - 90) * count / most, 1) for count in (shown, absent))
        parts.append(_text(_NAMES - 10, y + 12, _short(target), anchor="end"))
        parts.append(f'<rect class="bar" x="{_NAMES}" y="{y}" width="{dark}" height="15"/>')
        parts.append(f'<rect class="rest" x="{_NAMES + dark}" y="{y}" width="{light}" height="15"/>')
        parts.append(_text(_NAMES + dark + light + 6, y + 12, f"{shown} / {absent}", css="soft"))
    return _svg(_LINE * len(counts) + 6, "Slices with and without each target", parts)


def grey_histogram(counts: Sequence[int], *, bins: int = 64) -> str:
    """Draw a histogram of grey values.

    Black (0) and white (255), which the window makes of everything beyond it, stand apart at the two ends and may be
    cut off; the scale is that of the values between.

    Args:
        counts: pixels of each of the 256 values.
        bins: number of bars between the ends.
    """
    inner = counts[1:255]
    edges = [len(inner) * number // bins for number in range(bins + 1)]
    bars = [sum(inner[a:b]) / max(1, b - a) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    highest = max(max(bars), 1e-9)
    width, height = (_NAMES + _PLOT - 80) / bins, 130
    parts = []
    for number, bar in enumerate(bars):
        tall = round(height * bar / highest, 1)
        parts.append(
            f'<rect class="bar" x="{40 + number * width:.1f}" y="{height + 6 - tall:.1f}" width="{width - 1:.1f}" '
            f'height="{tall}"/>'
        )
    for left, count in ((8, counts[0]), (_NAMES + _PLOT - 32, counts[255])):
        tall = round(height * min(1.0, count / highest), 1)
        parts.append(f'<rect class="clipped" x="{left}" y="{height + 6 - tall}" width="24" height="{tall}"/>')
    total = max(1, sum(counts))
    parts.append(_text(8, height + 22, f"black {100 * counts[0] / total:.1f} %", css="soft"))
    parts.append(_text((_NAMES + _PLOT) / 2, height + 22, "grey value 1 to 254", css="soft", anchor="middle"))
    parts.append(_text(_NAMES + _PLOT - 8, height + 22, f"white {100 * counts[255] / total:.1f} %", "soft", "end"))
    return _svg(height + 28, "Histogram of grey values", parts)


def _text(x: float, y: float, text: str, css: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{css}" text-anchor="{anchor}">{escape(text)}</text>'


def _short(text: str) -> str:
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS - 1]}…"


def _svg(height: int, title: str, parts: Sequence[str]) -> str:
    width = _NAMES + _PLOT + _MARGIN
    return (
        f'<div class="wide"><svg role="img" aria-label="{escape(title)}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">{"".join(parts)}</svg></div>'
    )
