"""The results of studies on the page of evidence are those of their records."""

from __future__ import annotations

import json
import runpy
import shutil
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
    shutil.copytree(RESULTS, tmp_path, dirs_exist_ok=True)
    results = json.loads((RESULTS / "study_small" / "results.json").read_text(encoding="utf-8"))
    row = next(row for entry in results["experiments"].values() for row in entry["comparisons"])
    row["mean"] = 0.0123
    (tmp_path / "study_small" / "results.json").write_text(json.dumps(results), encoding="utf-8")
    for name, row in {
        "focus": "both_stride_2 0: liver lesion, Dice",
        "look_closer": "zoom 2, below 0.1 %: lesions",
    }.items():
        record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        next(each for each in record["results"] if each["name"] == row)["value"] = 77.0
        (tmp_path / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
    before = PAGE.read_text(encoding="utf-8").splitlines()
    page = EVIDENCE["filled"]("\n".join(before), tmp_path).splitlines()
    changed = [line for line in page if line not in before]
    assert any("| +1.2 |" in line for line in changed)
    assert sum(line.startswith("| liver lesion, both changes |") for line in changed) == 1
    assert sum("| 77 in " in line for line in changed) == 1
