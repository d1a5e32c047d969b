"""The fingerprint of slice data sets as one self-contained HTML page: no scripts, no external resources."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from boltzformer_monai.data.check.findings import LEVELS
from boltzformer_monai.data.check.fingerprint import Checked, Extreme
from boltzformer_monai.data.slices.format import SPLITS
from boltzformer_monai.data.slices.reader import read_mask, read_png
from boltzformer_monai.evaluation.figures import OverlayPanel, overlay_grid
from boltzformer_monai.evaluation.page import figure, html_page, table
from boltzformer_monai.limits import read_text
from boltzformer_monai.slicing.charts import CHART_STYLE, balance_chart, grey_histogram, size_chart
from boltzformer_monai.storage import replacing

__all__ = ["TABLE9_HEADINGS", "count_line", "is_page", "table9_rows", "write_page"]

TABLE9_HEADINGS = (
    "data set", "modality", "object type", "area mean (%)", "median (%)", "min (%)", "max (%)",
    "support", "volumes", "patients",
)  # fmt: skip
_INTRODUCTION = (
    '<p class="note">Integrity and fingerprint before training. Research software. Not a medical device.</p>'
)
_EXAMPLES = 4  # of the smallest objects, and as many of the largest
_SHORTEST_CROP = 48  # pixels around a small object
_MOST_VOLUMES = 500  # rows of the page; the JSON has them all
_TOTALS = (("volumes", "volumes"), ("pictures", "slices"), ("rows", "rows"))
_PAGE_STYLE = """
ul.findings { list-style: none; padding: 0; } ul.findings li { margin: .5rem 0; padding: .55rem .8rem;
  background: var(--card); border: 1px solid var(--line); border-left-width: .35rem; border-radius: .4rem; }
li.error { border-left-color: #d62f2f !important; } li.warning { border-left-color: #e0a100 !important; }
li.note { border-left-color: #4c78a8 !important; }
.findings b.level { text-transform: uppercase; font-size: .78rem; letter-spacing: .04em; margin-right: .4rem; }
.findings .advice, .findings .examples { display: block; color: var(--soft); font-size: .92rem; }
.wide { margin-bottom: 1rem; }
code { font-size: .88em; } details { margin-top: .6rem; } summary { cursor: pointer; color: var(--soft); }
.numbers { grid-template-columns: repeat(auto-fit, minmax(7rem, 1fr)); }
body { max-width: 68rem; }
th, td { white-space: nowrap; font-size: .9rem; padding-right: .65rem; } tbody th { font-weight: 500; }
.texts2 :is(th, td):nth-child(2), .texts3 :is(th, td):nth-child(-n+3), .texts6 :is(th, td):nth-child(-n+6)
  { text-align: left; }
"""


def table9_rows(content: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of Table 9 as text, in the columns of :data:`TABLE9_HEADINGS`."""
    return [
        (
            row["data_set"],
            row["modality"],
            row["target"],
            *(f"{row['area_percent'][key]:.3f}" for key in ("mean", "median", "min", "max")),
            *(str(row[key]) for key in ("support", "volumes", "patients")),
        )
        for row in content["table9"]
    ]


def is_page(path: Path) -> bool:
    """Tell whether a file is a page that :func:`write_page` wrote."""
    try:
        return _INTRODUCTION in read_text(path, limit=1 << 28)
    except (OSError, UnicodeDecodeError):
        return False


def write_page(checked: Checked, path: str | os.PathLike[str]) -> Path:
    """Write the page; an existing file is replaced in one step, its folder made if needed. Returns the path.

    Raises:
        OSError: it cannot be written.
        DatasetError: a picture changed since it was checked.
    """
    content = checked.content
    found_in = (finding.data_set for finding in checked.findings if finding.data_set)  # also those that cannot be read
    names = list(dict.fromkeys([*(data_set["name"] for data_set in content["data_sets"]), *found_in]))
    title = f"Slice data set{'s' * (len(names) > 1)} {', '.join(names)}"
    body = [
        f"<h1>{escape(title)}</h1>",
        _INTRODUCTION,
        _headline(checked),
        *_findings(checked),
        *_objects(content),
        *_examples(checked),
    ]
    for data_set in content["data_sets"]:
        body += _data_set(data_set, heading=len(content["data_sets"]) > 1)
    target = Path(path)
    with replacing(target) as temporary:
        temporary.write_text(html_page(title, body, style=CHART_STYLE + _PAGE_STYLE), encoding="utf-8")
    return target


def _headline(checked: Checked) -> str:
    data_sets = checked.content["data_sets"]
    patients = {volume["patient"] for each in data_sets for volume in each["volume"].values()}
    counts = [
        (checked.count("error"), "errors"),
        (checked.count("warning"), "warnings"),
        (len(patients), "patients"),
        *((sum(each[key] for each in data_sets), name) for key, name in _TOTALS),
        (len({target for each in data_sets for target in each["targets"]}), "targets"),
    ]
    numbers = [(f"{count:,}", name if count != 1 else name.removesuffix("s")) for count, name in counts]
    items = "".join(f"<li><strong>{value}</strong> {name}</li>" for value, name in numbers)
    return f'<ul class="numbers">{items}</ul>'


def _findings(checked: Checked) -> list[str]:
    items = []
    for finding in checked.findings:
        kind = finding.kind
        where = f"{escape(finding.data_set)}: " if finding.data_set and len(checked.content["data_sets"]) > 1 else ""
        items.append(
            f'<li class="{kind.level}"><b class="level">{kind.level}</b> {where}{escape(kind.title)} '
            f"({finding.count:,}) <code>{escape(finding.code)}</code>"
            f'<span class="examples">{escape(finding.listed)}</span>'
            f'<span class="advice">→ {escape(kind.advice)}</span></li>'
        )
    text = f'<ul class="findings">{"".join(items)}</ul>' if items else "<p>Nothing found: the data are sound.</p>"
    return ["<h2>Findings</h2>", text]


def _objects(content: Mapping[str, Any]) -> list[str]:
    if not content["table9"]:
        return []
    caption = "Area of the object in % of the slice, over the slices where it is present; support: those slices"
    several = len(content["data_sets"]) > 1
    return [
        "<h2>Object sizes (the paper’s Table 9)</h2>",
        _aligned(table(caption, TABLE9_HEADINGS, table9_rows(content)), 3),
        _chart(
            size_chart(content["table9"], with_data_set=several),
            "From the smallest to the largest object; filled dot: median, ring: mean; dashed: 1 % of the slice.",
        ),
    ]


def _examples(checked: Checked) -> list[str]:
    smallest = sorted(checked.smallest, key=lambda extreme: extreme.area)
    largest = sorted(checked.largest, key=lambda extreme: -extreme.area)
    body = []
    for name, extremes, crop in (("Smallest objects (cropped)", smallest, True), ("Largest objects", largest, False)):
        panels = [panel for extreme in _several_targets(extremes) if (panel := _panel(extreme, crop=crop))]
        if panels:
            body.append(figure(f"{name}, outlined red", overlay_grid(panels), alt=name))
    return ["<h2>Examples</h2>", *body] if body else []


def _several_targets(extremes: Sequence[Extreme]) -> list[Extreme]:
    """The first few, no target twice."""
    chosen: dict[str, Extreme] = {}
    for extreme in extremes:
        chosen.setdefault(extreme.row.target, extreme)
    return list(chosen.values())[:_EXAMPLES]


def _panel(extreme: Extreme, *, crop: bool) -> OverlayPanel | None:
    row = extreme.row
    image, mask = read_png(row.image), read_mask(row)
    if image.shape != mask.shape or image.dtype != np.uint8:
        return None  # has a finding of its own
    if crop:
        rows, columns = np.nonzero(mask)
        side = max(_SHORTEST_CROP, 3 * int(max(np.ptp(rows), np.ptp(columns)) + 1))
        window = tuple(
            slice(start := max(0, min((int(at.min()) + int(at.max()) - side) // 2, length - side)), start + side)
            for at, length in zip((rows, columns), mask.shape, strict=True)
        )
        image, mask = image[window], mask[window]
    title = f"{row.target}, {100 * extreme.area:.3g} %\n{row.volume}, slice {row.slice_index}"
    return OverlayPanel(np.ascontiguousarray(image), np.zeros(mask.shape, bool), mask, title)


def _data_set(data_set: Mapping[str, Any], *, heading: bool) -> list[str]:
    name = f"{data_set['name']}: " if heading else ""
    splits = [
        (split, *(str(data_set["splits"][split][key]) for key in ("patients", "volumes", "slices", "rows")),
         *(str(data_set["splits"][split][key]) for key in ("positives", "negatives")))
        for split in SPLITS
    ]  # fmt: skip
    facts = [
        (field, "; ".join(f"{value} ({count})" for value, count in data_set["counts"][field].items()))
        for field in ("modality", "site", "plane", "orientation", "window")
    ]
    body = [
        f"<h2>{escape(name)}Splits</h2>",
        table("", ("split", "patients", "volumes", "slices", "rows", "positives", "negatives"), splits),
    ]
    if data_set["targets"]:
        headings = ("target", *(f"{split} {sign}" for split in SPLITS for sign in ("+", "−")))
        rows = [
            (target, *(str(counts[split][kind]) for split in SPLITS for kind in ("positives", "negatives")))
            for target, counts in data_set["targets"].items()
        ]
        body += [
            f"<h2>{escape(name)}Targets</h2>",
            table("Slices with (+) and without (−) the target", headings, rows),
            _chart(balance_chart(data_set["targets"]), "Slices with the target (dark) / without it (light)."),
        ]
    body += [
        f"<h2>{escape(name)}Geometry and grey values</h2>",
        _aligned(table("Volumes of each kind", ("", ""), facts), 2),
        table("Over the volumes", ("", "min", "median", "max"), list(_spreads(data_set))),
        _chart(grey_histogram(data_set["grey"]["histogram"]), _grey_line(data_set["grey"])),
        _volumes(data_set["volume"]),
    ]
    return body


def _spreads(data_set: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    for field, unit in (("slices", ""), ("spacing_mm", " spacing (mm)")):
        for name, spread in data_set[field].items():
            yield (f"{name}{unit}", *(f"{spread[key]:.4g}" for key in ("min", "median", "max")))


def _grey_line(grey: Mapping[str, Any]) -> str:
    if grey["mean"] is None:
        return "No picture could be read."
    percentiles = ", ".join(f"{q} %: {value}" for q, value in grey["percentiles"].items())
    return f"Grey values: mean {grey['mean']:.1f}, standard deviation {grey['std']:.1f}; percentiles {percentiles}."


def _volumes(volumes: Mapping[str, Mapping[str, Any]]) -> str:
    headings = ("volume", "patient", "split", "modality", "plane", "axes", "slices", "size",
                "spacing (mm)", "mean", "std", "black", "white", "label values")  # fmt: skip
    rows = []
    for volume_id, volume in list(volumes.items())[:_MOST_VOLUMES]:
        slices, grey, spacing = volume["slices"] or ["–"] * 3, volume["grey"], volume["spacing_mm"] or []
        measured = (
            ["–"] * 4
            if grey["mean"] is None
            else [
                f"{grey['mean']:.0f}",
                f"{grey['std']:.0f}",
                *(f"{100 * grey[end]:.1f} %" for end in ("black", "white")),
            ]
        )
        values = volume["label_values"]
        rows.append((
            volume_id, volume["patient"], volume["split"] or "–", volume["modality"], volume["plane"],
            volume["orientation"] or "–", str(slices[0]), f"{slices[1]} × {slices[2]}",
            " × ".join(f"{value:.3g}" for value in spacing), *measured,
            " ".join(map(str, values[:12])) + (" …" if len(values) > 12 else ""),
        ))  # fmt: skip
    more = f", the first {_MOST_VOLUMES}" if len(volumes) > _MOST_VOLUMES else ""
    lines = _aligned(table("", headings, rows), 6)
    return f"<details><summary>Every volume ({len(volumes)}{more})</summary>{lines}</details>"


def _aligned(html: str, columns: int) -> str:
    """A table whose first columns are text."""
    return f'<div class="texts{columns}">{html}</div>'


def _chart(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def count_line(checked: Checked) -> str:
    """``"1 error, 2 warnings, 0 notes"``."""
    counts = ((checked.count(level), level) for level in LEVELS)
    return ", ".join(f"{count} {level}{'s' * (count != 1)}" for count, level in counts)
