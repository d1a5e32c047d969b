"""``uv.lock`` and npm's: they belong to what is asked for, name public hosts alone, and hold a hash of every file."""

from __future__ import annotations

import json
import re

import pytest

from tests.packaging.tools import ROOT

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
LOCK = (ROOT / "uv.lock").read_text(encoding="utf-8")


def _requirements(project: dict[str, list[str]]) -> set[tuple[str, str]]:
    """Name and version bounds, in the form of the lock file."""
    found = set()
    for requirement in (one for many in project.values() for one in many):
        name, bounds = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?([^;]*)(?:;.*)?", requirement).groups()  # type: ignore[union-attr]
        if name != "boltzformer-monai":
            found.add((re.sub(r"[-_.]+", "-", name).lower(), ",".join(sorted(bounds.strip().split(",")))))
    return found


def test_it_is_the_lock_of_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = {"": project["project"]["dependencies"], **project["project"]["optional-dependencies"]}
    (ours,) = (package for package in tomllib.loads(LOCK)["package"] if package["name"] == "boltzformer-monai")
    locked = {
        (entry["name"], ",".join(sorted(entry.get("specifier", "").split(","))))
        for entry in ours["metadata"]["requires-dist"]
        if entry["name"] != "boltzformer-monai"
    }
    assert locked == _requirements(asked), "pyproject.toml was changed: make lock"


def test_it_names_the_public_index_alone_and_no_path() -> None:
    assert set(re.findall(r"https?://([^/\"]+)", LOCK)) == {"pypi.org", "files.pythonhosted.org"}
    assert "file://" not in LOCK
    sources = {next(iter(package["source"].items())) for package in tomllib.loads(LOCK)["package"]}
    assert sources == {("registry", "https://pypi.org/simple"), ("editable", ".")}


def test_every_file_has_a_hash() -> None:
    packages = [package for package in tomllib.loads(LOCK)["package"] if "registry" in package["source"]]
    files = [file for package in packages for file in [*package.get("wheels", ()), package.get("sdist")] if file]
    assert len(files) > len(packages) > 100
    assert [file["url"] for file in files if not file["hash"].startswith("sha256:")] == []


def test_every_package_of_the_viewer_has_a_hash() -> None:
    packages = json.loads((ROOT / "viewer" / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    found = {place: package.get("integrity", "") for place, package in packages.items() if place}
    assert len(found) > 5
    assert [place for place, integrity in found.items() if not integrity.startswith("sha512-")] == []
