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
from boltzformer_monai.studies.page import comparison_table, headline_tables, verdict

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "explanation" / "evidence.md"
RESULTS = ROOT / "benchmarks" / "results"
_BLOCK = re.compile(r"(<!-- (study_\w+): written by docs/tools/evidence\.py -->\n).*?(<!-- end -->)", re.DOTALL)


def block(results: Mapping[str, Any]) -> str:
    """The verdict in words, and the tables of differences and of small objects."""
    first, sentences = verdict(results)
    headings, rows = comparison_table(results)
    parts = [f"**{first}**", "\n".join(f"- {each}" for each in sentences), markdown(headings, map(_plain, rows))]
    for table in headline_tables(results):
        parts += [f"{table['caption']}:", markdown(table["headings"], map(_plain, table["rows"]))]
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
