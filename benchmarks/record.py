"""The form of a benchmark's record: environment and named results, as a table and as JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "monai", "timm", "transformers", "numpy", "pydicom", "nibabel", "SimpleITK", "pytorch-ignite")


def environment() -> dict[str, Any]:
    """Versions and machine that a result depends on."""
    return {
        "command": " ".join(["python", *map(_without_folders, sys.argv)]),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _without_folders(argument: str) -> str:
    """A path outside the repository by its name alone: a record says what was run, not where somebody keeps it."""
    return Path(argument).name if argument.startswith(("/", "..", "~")) else argument


def result(name: str, value: float | None, unit: str) -> dict[str, Any]:
    """One row."""
    return {"name": name, "value": value, "unit": unit}


def report(results: Sequence[dict[str, Any]], json_file: Path | None, *, settings: Any = None) -> None:
    """Print the table and, if wanted, write the record, with the settings that are not in the command."""
    for row in results:
        value = "–" if row["value"] is None else f"{row['value']:.{'2e' if 0 < abs(row['value']) < 1e-3 else '4f'}}"
        print(f"{row['name']:<40}{value:>12}  {row['unit']}")
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        record = {"environment": environment(), "settings": settings, "results": list(results)}
        json_file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
