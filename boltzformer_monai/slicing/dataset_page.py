"""The fingerprint of slice data sets as one self-contained HTML page: no scripts, no external resources."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from boltzformer_monai.data.check.findings import LEVELS
from boltzformer_monai.data.check.fingerprint import Checked, Extreme
from boltzformer_monai.data.slices.format import SPLITS
from boltzformer_monai.data.slices.reader import read_mask, read_png
from boltzformer_monai.evaluation.figures import OverlayPanel, overlay_grid
from boltzformer_monai.evaluation.html import write_html
from boltzformer_monai.limits import read_text
from boltzformer_monai.slicing.charts import balance_chart, grey_histogram, size_chart

TABLE9_HEADINGS = (
    "data set", "modality", "object type", "area mean (%)", "median (%)", "min (%)", "max (%)",
    "support", "volumes", "patients",
)  # fmt: skip
_INTRODUCTION = "Integrity and fingerprint before training. Research software. Not a medical device."
_EXAMPLES = 4  # of the smallest objects, and as many of the largest
_SHORTEST_CROP = 48  # pixels around a small object
_MOST_VOLUMES = 500  # rows of the page; the JSON has them all
_TOTALS = (("volumes", "volumes"), ("pictures", "slices"), ("rows", "rows"))


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
        DatasetError: an image changed since it was checked.
    """
    content = checked.content
    found_in = (finding.data_set for finding in checked.findings if finding.data_set)  # also those that cannot be read
    names = list(dict.fromkeys([*(data_set["name"] for data_set in content["data_sets"]), *found_in]))
    table = content["table9"]
    return write_html(
        path,
        "dataset_page.html",
        package=__package__,
        title=f"Slice data set{'s' * (len(names) > 1)} {', '.join(names)}",
        introduction=_INTRODUCTION,
        cards=_cards(checked),
        findings=checked.findings,
        table9_headings=TABLE9_HEADINGS,
        table9=table9_rows(content),
        sizes=size_chart(table, with_data_set=len(content["data_sets"]) > 1) if table else None,
        examples=_examples(checked),
        data_sets=[_data_set(data_set) for data_set in content["data_sets"]],
    )


def _cards(checked: Checked) -> list[tuple[str, str]]:
    data_sets = checked.content["data_sets"]
    patients = {volume["patient"] for each in data_sets for volume in each["volume"].values()}
    counts = [
        (checked.count("error"), "errors"),
        (checked.count("warning"), "warnings"),
        (len(patients), "patients"),
        *((sum(each[key] for each in data_sets), name) for key, name in _TOTALS),
        (len({target for each in data_sets for target in each["targets"]}), "targets"),
    ]
    return [(f"{count:,}", name if count != 1 else name.removesuffix("s")) for count, name in counts]


def _examples(checked: Checked) -> list[tuple[str, bytes]]:
    smallest = sorted(checked.smallest, key=lambda extreme: extreme.area)
    largest = sorted(checked.largest, key=lambda extreme: -extreme.area)
    examples = []
    for name, extremes, crop in (("Smallest objects (cropped)", smallest, True), ("Largest objects", largest, False)):
        panels = [panel for extreme in _several_targets(extremes) if (panel := _panel(extreme, crop=crop))]
        if panels:
            examples.append((name, overlay_grid(panels)))
    return examples


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


def _data_set(data_set: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of one data set: tables as text, and charts."""
    columns = ("patients", "volumes", "slices", "rows", "positives", "negatives")
    targets = data_set["targets"]
    return {
        "name": data_set["name"],
        "splits": [(split, *(data_set["splits"][split][key] for key in columns)) for split in SPLITS],
        "target_headings": ("target", *(f"{split} {sign}" for split in SPLITS for sign in ("+", "−"))),
        "targets": [
            (target, *(counts[split][kind] for split in SPLITS for kind in ("positives", "negatives")))
            for target, counts in targets.items()
        ],
        "balance": balance_chart(targets) if targets else None,
        "facts": [
            (field, "; ".join(f"{value} ({count})" for value, count in data_set["counts"][field].items()))
            for field in ("modality", "site", "plane", "orientation", "window")
        ],
        "spreads": list(_spreads(data_set)),
        "histogram": grey_histogram(data_set["grey"]["histogram"]),
        "grey_line": _grey_line(data_set["grey"]),
        "volume_count": len(data_set["volume"]),
        "volume_headings": ("volume", "patient", "split", "modality", "plane", "axes", "slices", "size",
                            "spacing (mm)", "mean", "std", "black", "white", "label values"),
        "volumes": [_volume(*volume) for volume in list(data_set["volume"].items())[:_MOST_VOLUMES]],
    }  # fmt: skip


def _spreads(data_set: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    for field, unit in (("slices", ""), ("spacing_mm", " spacing (mm)")):
        for name, spread in data_set[field].items():
            yield (f"{name}{unit}", *(f"{spread[key]:.4g}" for key in ("min", "median", "max")))


def _grey_line(grey: Mapping[str, Any]) -> str:
    if grey["mean"] is None:
        return "No image could be read."
    percentiles = ", ".join(f"{q} %: {value}" for q, value in grey["percentiles"].items())
    return f"Grey values: mean {grey['mean']:.1f}, standard deviation {grey['std']:.1f}; percentiles {percentiles}."


def _volume(volume_id: str, volume: Mapping[str, Any]) -> tuple[str, ...]:
    slices, grey, values = volume["slices"] or ["–"] * 3, volume["grey"], volume["label_values"]
    measured = ["–"] * 4
    if grey["mean"] is not None:
        shares = (f"{100 * grey[end]:.1f} %" for end in ("black", "white"))
        measured = [f"{grey['mean']:.0f}", f"{grey['std']:.0f}", *shares]
    return (
        volume_id, volume["patient"], volume["split"] or "–", volume["modality"], volume["plane"],
        volume["orientation"] or "–", str(slices[0]), f"{slices[1]} × {slices[2]}",
        " × ".join(f"{value:.3g}" for value in volume["spacing_mm"] or []), *measured,
        " ".join(map(str, values[:12])) + (" …" if len(values) > 12 else ""),
    )  # fmt: skip


def count_line(checked: Checked) -> str:
    """``"1 error, 2 warnings, 0 notes"``."""
    counts = ((checked.count(level), level) for level in LEVELS)
    return ", ".join(f"{count} {level}{'s' * (count != 1)}" for count, level in counts)
