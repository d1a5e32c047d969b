"""``packaging/licences.py``: what is not allowed by name is refused, and so is what is not stated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.packaging.tools import ROOT, check_licences, scratch_environment, write_sbom


def test_a_package_under_the_gpl_is_refused_by_name(tmp_path: Path) -> None:
    python = scratch_environment(
        tmp_path / "venv",
        free="License-Expression: MIT",
        copyleft="License-Expression: GPL-3.0-only",
        classified="Classifier: License :: OSI Approved :: GNU General Public License v3 (GPLv3)",
        worded="License: GPL v2",
        contradictory="License: MIT\nClassifier: License :: OSI Approved :: GNU Affero General Public License v3",
        silent="Summary: says nothing",
    )
    done = check_licences(write_sbom(python, tmp_path / "bill.json"))
    assert done.returncode == 1
    refused = {line.split()[1] for line in done.stderr.splitlines()}
    assert refused == {"copyleft", "classified", "worded", "contradictory", "silent"}
    assert "error: copyleft 1.0 is under GPL-3.0-only, not among the allowed" in done.stderr
    assert "error: worded 1.0 is under GPL v2, not among the allowed" in done.stderr


@pytest.mark.parametrize(
    ("expression", "code"),
    [
        ("MIT OR GPL-2.0-only", 0),
        ("MIT AND GPL-2.0-only", 1),
        ("Apache-2.0 WITH LLVM-exception", 0),
        ("GPL-2.0-only WITH Classpath-exception-2.0", 1),
        ("(GPL-3.0-only OR BSD-3-Clause) AND ISC", 0),
    ],
)
def test_of_alternatives_one_must_be_allowed_and_of_parts_all(tmp_path: Path, expression: str, code: int) -> None:
    component = {"name": "some", "version": "1", "licenses": [{"expression": expression}]}
    (tmp_path / "bill.json").write_text(json.dumps({"bomFormat": "CycloneDX", "components": [component]}))
    assert check_licences(tmp_path / "bill.json").returncode == code


def test_what_the_page_s_viewer_brings_along_is_allowed() -> None:
    done = check_licences(ROOT / "viewer" / "package-lock.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "@niivue/niivue" in done.stdout


def test_another_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    done = check_licences(tmp_path / "other.json")
    assert done.returncode == 2
    assert "neither CycloneDX nor a lock file of npm" in done.stderr


def test_a_bill_without_packages_is_no_proof(tmp_path: Path) -> None:
    (tmp_path / "bill.json").write_text('{"bomFormat": "CycloneDX"}')
    done = check_licences(tmp_path / "bill.json", ROOT / "viewer" / "package-lock.json")
    assert done.returncode == 2
    assert "lists no package" in done.stderr
