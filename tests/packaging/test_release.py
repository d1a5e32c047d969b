"""Versions that agree, and the workflow of a release."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.packaging.tools import ROOT, release_tool

WORKFLOW = ROOT / ".github" / "workflows" / "release.yml"
fault = runpy.run_path(str(ROOT / "packaging" / "versions.py"))["fault"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n', encoding="utf-8")
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\n## [1.2.3] – 2030-01-31\n\n## [1.0.0] – 2029-01-01\n", encoding="utf-8"
    )
    (tmp_path / "CITATION.cff").write_text("version: 1.2.3\ndate-released: 2030-01-31\n", encoding="utf-8")
    return tmp_path


def test_the_versions_of_this_tree_agree() -> None:
    assert fault() is None


@pytest.mark.parametrize(
    ("file", "before", "after", "tag", "said"),
    [
        ("CITATION.cff", "1.2.3", "1.2.2", None, "CITATION.cff 1.2.2"),
        ("CHANGELOG.md", "[1.2.3]", "[1.3.0]", None, "CHANGELOG.md 1.3.0"),
        ("CHANGELOG.md", "2030-01-31", "soon", None, "CHANGELOG.md 1.0.0"),
        ("CHANGELOG.md", "2030-01-31", "unreleased", "v1.2.3", "unreleased; give its date"),
        ("CITATION.cff", "2030-01-31", "2030-01-30", "v1.2.3", "dates 1.2.3 2030-01-30"),
        ("pyproject.toml", "1.2.3", "1.2.3", "v1.2.4", "is not v1.2.3"),
    ],
)
def test_what_does_not_agree_is_named(
    project: Path, file: str, before: str, after: str, tag: str | None, said: str
) -> None:
    assert fault("v1.2.3", root=project) is None
    path = project / file
    path.write_text(path.read_text(encoding="utf-8").replace(before, after, 1), encoding="utf-8")
    assert said in fault(tag, root=project)


def _jobs() -> dict[str, Any]:
    return yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]


def test_actions_are_pinned_and_jobs_have_only_the_rights_that_they_need() -> None:
    used = re.findall(r"uses: (\S+)( # v\d+\.\d+\.\d+)?$", WORKFLOW.read_text(encoding="utf-8"), re.MULTILINE)
    assert used
    assert [name for name, version in used if not (re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", name) and version)] == []
    writing = {
        name: {right for right, value in job["permissions"].items() if value == "write"}
        for name, job in _jobs().items()
    }
    assert writing == {
        "build": set(), "attest": {"id-token", "attestations"}, "publish": {"id-token"}, "release": {"contents"},
    }  # fmt: skip


def test_nothing_is_published_that_was_not_checked_and_attested() -> None:
    jobs = _jobs()
    assert [jobs[name]["needs"] for name in ("attest", "publish", "release")] == ["build", "attest", "publish"]
    assert any("make release-check" in step.get("run", "") for step in jobs["build"]["steps"])
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"install", "release-check"} <= set(targets)


_STAND_IN = """#!/bin/bash
# of every program that the check calls
case "$(basename "$0") $*" in
    *"uv build"*) mkdir -p dist && touch dist/x-1.tar.gz dist/x-1-py3-none-any.whl ;;
    *"uv venv"*) info="${@: -1}/lib/python3.11/site-packages/boltzformer_monai-1.dist-info"
                 mkdir -p "$info" && touch "$info/direct_url.json" ;;
    cyclonedx*) [ "$2" = --gather-license-texts ] && echo >"dist/x-1.cdx.json" ;;
esac
[[ -z "$FAILS" || "$*" != *"$FAILS"* ]]
"""


@pytest.mark.parametrize(
    "fails", ["", "uv lock", "uv venv", "uv export", "--require-hashes", "--no-deps", "licences.py"]
)
def test_a_release_is_refused_when_any_step_fails(tmp_path: Path, fails: str) -> None:
    (tmp_path / "packaging").mkdir()
    shutil.copy(ROOT / "packaging" / "release-check", tmp_path / "packaging")
    shutil.copytree(ROOT / ".github", tmp_path / ".github")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("python", "check-jsonschema", "twine", "cyclonedx-py"):
        (tools / name).write_text(_STAND_IN, encoding="utf-8")
        (tools / name).chmod(0o755)
    command = [str(tmp_path / "packaging" / "release-check"), str(tools / "python"), str(tools)]
    environment = {**os.environ, "FAILS": fails}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert (done.returncode == 0) == (fails == ""), done.stdout + done.stderr
    assert ("FAILED" in done.stderr) == (fails != "")


@pytest.mark.parametrize(
    ("schema", "folder"),
    [("github-workflows", ".github/workflows"), ("github-issue-forms", ".github/ISSUE_TEMPLATE")],
)
def test_what_github_reads_has_its_form(schema: str, folder: str) -> None:
    files = [str(path) for path in sorted((ROOT / folder).glob("*.yml")) if path.name != "config.yml"]
    assert files
    command = [str(release_tool("check-jsonschema")), "--builtin-schema", f"vendor.{schema}", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout


def test_the_citation_has_its_form(tmp_path: Path) -> None:
    command = [str(release_tool("check-jsonschema")), "--builtin-schema", "vendor.citation-file-format"]
    done = subprocess.run([*command, str(ROOT / "CITATION.cff")], capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout
    shutil.copy(ROOT / "CITATION.cff", tmp_path / "CITATION.cff")
    with (tmp_path / "CITATION.cff").open("a", encoding="utf-8") as file:
        file.write("colour: blue\n")
    done = subprocess.run([*command, str(tmp_path / "CITATION.cff")], capture_output=True, check=False, timeout=60)
    assert done.returncode == 1


def test_the_citation_names_the_authors_of_the_paper_that_the_readme_names() -> None:
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["preferred-citation"]
    authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"author    = {{{authors}}}" in readme
    assert f"title     = {{{paper['title']}}}" in readme
