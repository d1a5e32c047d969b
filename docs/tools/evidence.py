#!/usr/bin/env python
"""Writes the results of studies into docs/explanation/evidence.md, between the marks that name their folders.

::

    python docs/tools/evidence.py           # after a study's results.json was put into benchmarks/results/study_*/
    python docs/tools/evidence.py --check   # whether the page is up to date; the tests do it
"""

from __future__ import annotations

import argparse
import json
import re
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
_BLOCK = re.compile(r"(<!-- (study_\w+): written by docs/tools/evidence\.py -->\n).*?(<!-- end -->)", re.DOTALL)
_POLICIES = ("needle", "needle at 384", "real")
_ENRICHMENT = (
    "By layer, the share of attended patches that lie on the target over the share that chance would give (1.0); in "
    "brackets the size of the set in % of all patches and how many sets are empty, in %. In place of an empty set a "
    "layer attends to all patches."
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


def _plain(cells: Sequence[str | tuple[str, str]]) -> list[str]:
    return [cell if isinstance(cell, str) else cell[0] for cell in cells]


def filled(page: str, folder: Path = RESULTS) -> str:
    """The page with its blocks written anew."""

    def written(found: re.Match[str]) -> str:
        results = json.loads((folder / found[2] / "results.json").read_text(encoding="utf-8"))
        return f"{found[1]}\n{block(results)}\n\n{found[3]}"

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
