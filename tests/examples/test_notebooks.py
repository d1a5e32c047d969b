"""The notebooks run from beginning to end, and are stored with output that tells nothing of a machine."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

from tests.needs import need_module

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
MOST_BYTES = 500_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_output(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    cells = json.loads(text)["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    outputs = [output for cell in code for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output["output_type"] == "error" or output.get("name") == "stderr" for output in outputs)
    assert not re.search(r"/(home|root|work|tmp|Users|usr)/", text)
    assert len(text) < MOST_BYTES


@pytest.mark.slow
def test_they_run(tmp_path: Path) -> None:
    need_module("nbclient")
    script = runpy.run_path(str(ROOT / "docs" / "tools" / "notebooks.py"))
    assert set(script["ORDER"]) == {path.stem for path in NOTEBOOKS}
    assert script["main"]([str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.glob("*.ipynb")} == {path.name for path in NOTEBOOKS}
