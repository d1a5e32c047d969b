"""What made a result: commit, versions, machine, date; and what it cost."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from boltzformer_monai import __version__

__all__ = ["Cost", "measured", "provenance"]

_PACKAGES = ("torch", "monai", "timm", "transformers", "numpy", "scipy")
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def provenance() -> dict[str, Any]:
    """Version and commit of this package, those of its libraries, machine, command and date (UTC)."""
    return {
        "version": __version__,
        "commit": _commit(),
        "command": " ".join(["boltzformer", *map(_without_folder, sys.argv[1:])]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: _version(name) for name in _PACKAGES},
    }


@dataclass
class Cost:
    """What a piece of work took.

    Attributes:
        wall_s: seconds on the clock.
        processor_s: seconds of all cores together, with those of processes that it started.
        peak_mib: most memory of this process in MiB, or of the device where that is a GPU; 0 where nothing tells.
    """

    wall_s: float = 0.0
    processor_s: float = 0.0
    peak_mib: float = 0.0


@contextmanager
def measured(device: str | None = None) -> Iterator[Cost]:
    """Measure a block; its cost is filled in when it ends, however it ends."""
    cost, on_gpu = Cost(), torch.device(device or "cpu").type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            _RESET.write_text("5", encoding="ascii")  # the kernel's peak of this process begins anew
    started, processor = time.monotonic(), _processor_seconds()
    try:
        yield cost
    finally:
        cost.wall_s = time.monotonic() - started
        cost.processor_s = _processor_seconds() - processor
        cost.peak_mib = torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else _peak_mib()


def _processor_seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _peak_mib() -> float:
    """Of this process since the last reset; 0 where the system does not tell."""
    with suppress(OSError):
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return 0.0


def _commit() -> str | None:
    """The commit of a checkout, with a plus sign where files were changed; None for an installed package."""
    folder = Path(__file__).resolve().parent
    try:
        git = ["git", "-C", str(folder)]
        found = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        tracked = subprocess.run(
            [*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, text=True, timeout=10
        )
        if found.returncode or tracked.returncode:
            return None
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no", ":/"], capture_output=True, text=True, timeout=30
        )
        return found.stdout.strip() + ("+" if changed.stdout.strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _version(name: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def _without_folder(argument: str) -> str:
    return Path(argument).name if os.sep in argument else argument
