"""A guest as users install one: a module and its metadata in a folder on the path, without pip."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.warm_python import run_copy

ROOT = Path(__file__).resolve().parents[2]


def install(site: Path, distribution: str, *, modules: Mapping[str, Path | str], entry_points: str) -> dict[str, str]:
    """Put a distribution into the folder ``site``; return the environment of processes that have it.

    Args:
        site: made if needed.
        distribution: its name.
        modules: name → file to copy, or its text.
        entry_points: the text of its ``entry_points.txt``.
    """
    metadata = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(entry_points)
    for name, source in modules.items():
        if isinstance(source, Path):
            shutil.copy(source, site / f"{name}.py")
        else:
            (site / f"{name}.py").write_text(source)
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(site), str(ROOT)))}


def python(*arguments: object, env: Mapping[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a process that has imported no guest and nothing of this package, and return what it said."""
    return run_copy([*map(str, arguments)], folder=cwd, environment=env)
