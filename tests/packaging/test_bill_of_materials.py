"""The bill of materials lists what is installed, no more and no less."""

from __future__ import annotations

import json
from importlib.metadata import distributions
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
    installed = {(found.name, found.version) for found in distributions() if found.name}
    assert len(installed) > 50
    assert _listed(write_sbom(THIS_ENVIRONMENT, tmp_path / "bill.json")) == installed
