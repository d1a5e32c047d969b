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

_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve", "bf16")
_PACKAGES = ("torch", "monai", "timm", "transformers", "numpy", "pydicom", "nibabel", "SimpleITK", "pytorch-ignite")


def environment() -> dict[str, Any]:
    """The versions and the machine that a result depends on."""
    return {
        "command": " ".join(["python", *map(_without_folders, sys.argv)]),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu": cpu(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def cpu() -> dict[str, Any]:
    """What timings on a CPU depend on, as far as Linux tells: model, instructions, caches, huge pages."""
    entries = dict(line.split(":", 1) for line in _read("/proc/cpuinfo").split("\n\n")[0].splitlines() if ":" in line)
    values = {name.strip(): value.strip() for name, value in entries.items()}
    flags = values.get("flags", values.get("Features", "")).split()
    caches = {
        f"L{_read(folder / 'level')} {_read(folder / 'type').lower()}": _read(folder / "size")
        for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"))
    }
    huge_pages = _read("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "model": values.get("model name", platform.processor()),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "torch": torch.backends.cpu.get_cpu_capability(),
        "caches": caches,
        "huge_pages": huge_pages[huge_pages.find("[") + 1 : huge_pages.find("]")] or None,
        "torch_asks_for_huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE", "0") == "1",
    }


def _read(path: str | Path) -> str:
    """A file of the kernel's, empty where it has none."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


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
        write(results, json_file, settings=settings)


def write(results: Sequence[dict[str, Any]], json_file: Path, *, settings: Any = None) -> None:
    """Write the record."""
    json_file.parent.mkdir(parents=True, exist_ok=True)
    record = {"environment": environment(), "settings": settings, "results": list(results)}
    json_file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
