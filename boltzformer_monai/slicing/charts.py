"""Small charts as shapes for inline SVG; the page's template draws them in its colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_NAMES = 300  # pixels for the names on the left
_PLOT = 640
_MARGIN = 20  # on the right, for the last number of an axis
_LINE = 22  # pixels from row to row
_LETTERS = 42


class Shape(NamedTuple):
    """An SVG element: its tag, attributes, and text or shapes inside."""

    tag: str
    attributes: dict[str, Any]
    content: str | list[Shape] = ""


class Chart(NamedTuple):
    """Shapes on an area of ``width`` × ``height`` pixels; the title is read out in place of them."""

    title: str
    height: int
    parts: list[Shape]
    width: int = _NAMES + _PLOT + _MARGIN


def size_chart(table: Sequence[Mapping[str, Any]], *, with_data_set: bool) -> Chart:
    """Draw the rows of the fingerprint's ``table9``: smallest to largest object, median and mean, on a log axis."""
    lowest = min(row["area_percent"]["min"] for row in table)
    first = min(-1, math.floor(math.log10(lowest)))
    height = _LINE * len(table) + 40

    def x(percent: float) -> float:
        return round(_NAMES + _PLOT * (math.log10(percent) - first) / (2 - first), 1)

    parts = []
    for power in range(first, 3):
        css = "limit" if power == 0 else "grid"  # 1 %: what the paper calls small
        parts.append(_line(css, x(10**power), x(10**power), 4, height - 34))
        parts.append(_text(x(10**power), height - 18, f"{10**power:g}", css="soft", anchor="middle"))
    parts.append(_text(_NAMES + _PLOT / 2, height - 3, "area in % of the slice", css="soft", anchor="middle"))
    for number, row in enumerate(table):
        y, area = _LINE * number + 16, row["area_percent"]
        name = f"{row['data_set']}: {row['target']}" if with_data_set else row["target"]
        values = ", ".join(f"{key} {area[key]:.3g}" for key in ("min", "median", "mean", "max"))
        group = [
            Shape("title", {}, f"{name}: {values} %"),
            _text(_NAMES - 10, y + 4, _short(name), anchor="end"),
            _line("range", x(area["min"]), x(area["max"]), y, y),
            Shape("circle", {"class": "median", "cx": x(area["median"]), "cy": y, "r": 5}),
            Shape("circle", {"class": "mean", "cx": x(area["mean"]), "cy": y, "r": 3}),
        ]
        parts.append(Shape("g", {}, group))
    return Chart("Object sizes on a logarithmic axis", height, parts)


def balance_chart(targets: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Chart:
    """Draw for every of the fingerprint's ``targets`` how many slices contain it (dark) and how many do not (light)."""
    counts = {
        target: [sum(split[kind] for split in splits.values()) for kind in ("positives", "negatives")]
        for target, splits in targets.items()
    }
    most = max(1, *(sum(pair) for pair in counts.values()))
    parts = []
    for number, (target, (present, absent)) in enumerate(counts.items()):
        y = _LINE * number + 4
        dark, light = (round((_PLOT - 90) * count / most, 1) for count in (present, absent))
        parts += [
            _text(_NAMES - 10, y + 12, _short(target), anchor="end"),
            _bar("bar", _NAMES, y, dark, 15),
            _bar("rest", _NAMES + dark, y, light, 15),
            _text(_NAMES + dark + light + 6, y + 12, f"{present} / {absent}", css="soft"),
        ]
    return Chart("Slices with and without each target", _LINE * len(counts) + 6, parts)


def grey_histogram(counts: Sequence[int], *, bins: int = 64) -> Chart:
    """Draw a histogram of the pixels of each of the 256 grey values.

    Black (0) and white (255), which the window makes of everything beyond it, stand apart at the two ends and may be
    cut off; the scale is that of the ``bins`` between.
    """
    inner = counts[1:255]
    edges = [len(inner) * number // bins for number in range(bins + 1)]
    bars = [sum(inner[a:b]) / max(1, b - a) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    highest = max(max(bars), 1e-9)
    width, height, right = (_NAMES + _PLOT - 80) / bins, 130, _NAMES + _PLOT
    places = [("bar", 40 + number * width, width - 1, bar) for number, bar in enumerate(bars)]
    places += [("clipped", 8, 24, counts[0]), ("clipped", right - 32, 24, counts[255])]
    parts = []
    for css, left, wide, count in places:
        tall = round(height * min(1.0, count / highest), 1)
        parts.append(_bar(css, round(left, 1), round(height + 6 - tall, 1), round(wide, 1), tall))
    total = max(1, sum(counts))
    parts += [
        _text(8, height + 22, f"black {100 * counts[0] / total:.1f} %", css="soft"),
        _text(right / 2, height + 22, "grey value 1 to 254", css="soft", anchor="middle"),
        _text(right - 8, height + 22, f"white {100 * counts[255] / total:.1f} %", css="soft", anchor="end"),
    ]
    return Chart("Histogram of grey values", height + 28, parts)


def _text(x: float, y: float, text: str, *, css: str = "", anchor: str = "start") -> Shape:
    return Shape("text", {"x": f"{x:g}", "y": f"{y:g}", "class": css, "text-anchor": anchor}, text)


def _line(css: str, left: float, right: float, top: float, bottom: float) -> Shape:
    return Shape("line", {"class": css, "x1": left, "x2": right, "y1": top, "y2": bottom})


def _bar(css: str, x: float, y: float, width: float, height: float) -> Shape:
    return Shape("rect", {"class": css, "x": x, "y": y, "width": width, "height": height})


def _short(text: str) -> str:
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS - 1]}…"
