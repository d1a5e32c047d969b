"""The release's tools, and scratch environments for them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from tests.needs import missing, need_program

ROOT = Path(__file__).resolve().parents[2]


def load_script(name: str) -> Any:
    """A script of packaging/ as a module."""
    specification = importlib.util.spec_from_file_location(name, ROOT / "packaging" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)  # type: ignore[arg-type]
    sys.modules[name] = module  # where dataclasses look for it
    specification.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def release_tool(name: str) -> Path:
    """A program of the environment that `make tools` makes."""
    path = ROOT / ".venv-release" / "bin" / name
    if not path.exists():
        missing("the release's tools are not installed (make tools)")
    return path


def scratch_environment(folder: Path, **distributions: str) -> Path:
    """The interpreter of an environment that holds distributions which consist of their metadata.

    Args:
        folder: made, for the environment.
        distributions: name → lines of its METADATA after name and version.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    for name, lines in distributions.items():
        info = packages / f"{name}-1.0.dist-info"
        info.mkdir()
        head = f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n"
        (info / "METADATA").write_text(f"{head}{lines}\n", encoding="utf-8")
    return folder / "bin" / "python"


def write_sbom(interpreter: str | Path, target: Path) -> Path:
    """`make sbom` of another environment."""
    tool = release_tool("cyclonedx-py")
    command = [
        str(tool),
        "environment",
        "--gather-license-texts",
        "--output-reproducible",
        "--output-file",
        str(target),
        str(interpreter),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, check=True, capture_output=True, timeout=300, cwd=target.parent, env=environment)
    return target


def check_licences(*files: Path) -> subprocess.CompletedProcess[str]:
    """`make licences` of these files."""
    command = [str(release_tool("python")), str(ROOT / "packaging" / "licences.py"), *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def need_sandbox() -> None:
    """Bubblewrap, on a kernel that lets it make namespaces; in many containers none does."""
    bubblewrap = need_program("bwrap", "bubblewrap")
    line = [bubblewrap, "--unshare-all", "--ro-bind", "/", "/", "true"]
    tried = subprocess.run(line, capture_output=True, text=True, check=False, timeout=30)
    if tried.returncode:
        pytest.skip(f"no sandbox can be made here: {tried.stderr.strip()}")


THIS_ENVIRONMENT = sys.executable
