"""The results of studies on the page of evidence are those of their records."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

from tests.docs.pages import DOCS, ROOT

EVIDENCE = runpy.run_path(str(DOCS / "tools" / "evidence.py"))
PAGE = DOCS / "explanation" / "evidence.md"
RESULTS = ROOT / "benchmarks" / "results"


def test_the_page_is_what_the_tool_writes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert EVIDENCE["filled"](page) == page
    for folder in RESULTS.glob("study_*"):
        assert f"<!-- {folder.name}: written by" in page
        assert (folder / "study.html").is_file()


def test_another_result_changes_the_page(tmp_path: Path) -> None:
    results = json.loads((RESULTS / "study_small" / "results.json").read_text(encoding="utf-8"))
    row = next(row for entry in results["experiments"].values() for row in entry["comparisons"])
    row["mean"] = 0.0123
    (tmp_path / "study_small").mkdir()
    (tmp_path / "study_small" / "results.json").write_text(json.dumps(results), encoding="utf-8")
    page = EVIDENCE["filled"](PAGE.read_text(encoding="utf-8"), tmp_path)
    assert "| +1.2 |" in page
