#!/usr/bin/env python
"""Writes results into docs/explanation/evidence.md, between the marks that name their records in benchmarks/results.

::

    python docs/tools/evidence.py           # after one of the records was written anew
    python docs/tools/evidence.py --check   # whether the page is up to date; the tests do it
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boltzformer_monai.evaluation.tables import markdown
from boltzformer_monai.studies.tables import focus_tables, headline_tables
from boltzformer_monai.studies.verdict import comparison_table, verdict

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "explanation" / "evidence.md"
RESULTS = ROOT / "benchmarks" / "results"
_BLOCK = re.compile(
    r"(<!-- (study_\w+|focus\w*|look_closer): written by docs/tools/evidence\.py -->\n).*?(<!-- end -->)", re.DOTALL
)
_ARMS = {
    "paper": "as in the paper",
    "both_stride_2": "both changes",
    "paper_longer": "as in the paper, twice as long",
    "both_longer": "both changes, twice as long",
    "mask_bias_0": "both, mask bias from 0",
    "at_least_one": "both, at least one draw",
    "tau_2": "both, τ0 = 2",
    "fresh_draws": "both, evaluated with fresh draws",
    "384_pixels": "both, 384 pixels",
}
_COMPARED = (
    ("both_stride_2", "paper"),
    ("both_longer", "paper_longer"),
    ("paper_longer", "paper"),
    ("both_longer", "both_stride_2"),
    *((arm, "both_stride_2") for arm in ("mask_bias_0", "at_least_one", "tau_2", "fresh_draws")),
)
_WHEN = ("whole slices", "looked closer")
_LESIONS, _LAYERS = ("liver lesion", "lung nodule"), (1, 3, 5, 7, 9)
_POLICIES = ("needle", "needle at 384", "real")
_ENRICHMENT = (
    "By layer, the share of attended patches that lie on the target over the share that chance would give (1.0); in "
    "brackets the size of the set in % of all patches and how many sets are empty, in %. In place of an empty set a "
    "layer attends to all patches. Of needles it is the share in all sets together; elsewhere it is the mean of each "
    "set's share, which a few small sets on the target raise more: masks at 0.5, whose sets are small or all patches, "
    "cannot be compared between the two."
)


def block(results: Mapping[str, Any]) -> str:
    """The verdict in words, the tables of differences and of small objects, and where arms of one target look."""
    first, sentences = verdict(results)
    headings, rows = comparison_table(results)
    parts = [f"**{first}**", "\n".join(f"- {each}" for each in sentences), markdown(headings, map(_plain, rows))]
    for table in headline_tables(results):
        parts += [f"{table['caption']}:", markdown(table["headings"], map(_plain, table["rows"]))]
    parts += ["### Where attention looks", _ENRICHMENT]
    for experiment in results["experiments"]:
        tables = focus_tables(results, experiment)
        for data in dict.fromkeys(table["data"] for table in tables):
            of_data = [table for table in tables if table["data"] == data]
            if len(of_data) == 1 and experiment in _POLICIES:  # many targets, other systems: in the study's page
                table = of_data[0]
                parts += [f"{data[:1].upper()}{data[1:]}:", markdown(table["headings"], map(_plain, table["rows"]))]
    return "\n\n".join(parts)


def focus_block(record: Mapping[str, Any]) -> str:
    """Focus by layer and Dice of lesions, mean ± sd over seeds, and the paired differences between arms."""
    values = {row["name"]: row["value"] for row in record["results"]}
    seeds: dict[str, list[str]] = {arm: [] for arm in _ARMS}
    for name in values:
        found = re.fullmatch(r"(\w+) (\d+): mean Dice", name)
        if found and found[1] in seeds:
            seeds[found[1]].append(found[2])

    def over_seeds(arm: str, what: str, decimals: int) -> str:
        each = [values[f"{arm} {seed}: {what}"] for seed in seeds[arm]]
        spread = f" ± {statistics.stdev(each):.{decimals}f}" if len(each) > 1 else ""
        return f"{statistics.fmean(each):.{decimals}f}{spread}"

    columns = {f"layer {layer}": (f"focus {layer}", 1) for layer in _LAYERS}
    columns |= {"Dice": ("Dice", 3), "Dice with another slice's V": ("another V", 3)}
    looks = [
        [
            f"{target}, {title}",
            str(len(seeds[arm])),
            *(over_seeds(arm, f"{target}, {what}", decimals) for what, decimals in columns.values()),
        ]
        for arm, title in _ARMS.items()
        for target in _LESIONS
        if seeds[arm]
    ]
    whole = {"mean Dice": ("mean Dice", 3), "mean 3-D Dice": ("mean 3-D Dice", 3)}
    whole |= {"targets missed": ("missed", 3), "absent targets answered": ("absent, answered", 3)}
    means = [
        [title, str(len(seeds[arm])), *(over_seeds(arm, what, decimals) for what, decimals in whole.values())]
        for arm, title in _ARMS.items()
        if seeds[arm]
    ]
    compared = [
        [
            f"{_ARMS[arm]} − {_ARMS[against]}",
            *(_difference(values, f"{arm} − {against}: {part}, Dice") for part in (*_LESIONS, "all")),
        ]
        for arm, against in _COMPARED
        if f"{arm} − {against}: all, Dice, low" in values  # none from one seed
    ]
    parts = [
        markdown(["target, training", "seeds", *columns], looks),
        "Over all ten targets:",
        markdown(["training", "seeds", *whole], means),
    ]
    if compared:
        parts += [
            "Differences of Dice in points, paired by seed, with their 95 % interval and p of a t-test:",
            markdown(["", *_LESIONS, "all ten targets"], compared),
        ]
    return "\n\n".join(parts)


def _difference(values: Mapping[str, float], name: str) -> str:
    low, high, p = (values.get(f"{name}, {part}") for part in ("low", "high", "p"))
    text = f"{100 * values[f'{name}, mean']:+.1f}"
    if low is not None and high is not None and p is not None:
        text += f" ({100 * low:+.1f} to {100 * high:+.1f}, p {p:.3f})"
    return text.replace("-", "−")


def closer_block(record: Mapping[str, Any]) -> str:
    """Dice of clicked lesions before and after looking closer, by size and zoom."""
    values = {row["name"]: row["value"] for row in record["results"]}
    zooms = dict.fromkeys(found[1] for name in values if (found := re.fullmatch(r"zoom (\S+), all: lesions", name)))
    rows = []
    for group in ("below 0.1 %", "from 0.1 %"):
        for zoom in zooms:
            of = f"zoom {zoom}, {group}: "
            rows.append(
                [
                    f"{group} of the slice",
                    f"{values[of + 'lesions']:.0f} in {values[of + 'patients']:.0f} scans",
                    zoom,
                    *(f"{values[f'{of}Dice, {when}']:.2f}" for when in _WHEN),
                    "{:+.2f} ({:+.2f} to {:+.2f})".format(
                        *(values[f"{of}difference{part}"] for part in (" of Dice", ", low", ", high"))
                    ).replace("-", "−"),
                    " → ".join(f"{100 * values[f'{of}found, {when}']:.0f} %" for when in _WHEN),
                ]
            )
    headings = ["lesions", "n", "zoom at least", *_WHEN, "difference (95 % by patient)", "found"]
    return markdown(headings, rows)


def _plain(cells: Sequence[str | tuple[str, str]]) -> list[str]:
    return [cell if isinstance(cell, str) else cell[0] for cell in cells]


_RECORDS = dict.fromkeys(("focus", "focus_changes", "focus_384"), focus_block) | {"look_closer": closer_block}


def filled(page: str, folder: Path = RESULTS) -> str:
    """The page with its blocks written anew."""

    def written(found: re.Match[str]) -> str:
        name = found[2]
        place = folder / f"{name}.json" if name in _RECORDS else folder / name / "results.json"
        results = json.loads(place.read_text(encoding="utf-8"))
        return f"{found[1]}\n{_RECORDS.get(name, block)(results)}\n\n{found[3]}"

    return _BLOCK.sub(written, page)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if the page is not up to date")
    arguments = parser.parse_args(argv)
    page = PAGE.read_text(encoding="utf-8")
    if arguments.check:
        return int(filled(page) != page)
    PAGE.write_text(filled(page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
