"""The bill of materials lists what is installed, no more and no less."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.tools import THIS_ENVIRONMENT, scratch_environment, write_sbom


def _listed(path: Path) -> set[tuple[str, str]]:
    components = json.loads(path.read_text(encoding="utf-8"))["components"]
    assert {component["type"] for component in components} == {"library"}
    return {(component["name"], component["version"]) for component in components}


def test_a_bill_lists_exactly_the_installed_distributions(tmp_path: Path) -> None:
    python = scratch_environment(tmp_path / "venv", one="License-Expression: MIT", other="License: BSD")
    assert _listed(write_sbom(python, tmp_path / "bill.json")) == {("one", "1.0"), ("other", "1.0")}


@pytest.mark.slow
def test_the_bill_of_this_environment_lists_exactly_the_installed_distributions(tmp_path: Path) -> None:
    # In a process of its own: setuptools adds what it brings along to the path of this one.
    code = "from importlib.metadata import distributions\nfor each in distributions(): print(each.name, each.version)"
    listed = subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True).stdout
    installed = {(line.split()[0], line.split()[1]) for line in listed.splitlines()}
    assert len(installed) > 50
    assert _listed(write_sbom(THIS_ENVIRONMENT, tmp_path / "bill.json")) == installed
