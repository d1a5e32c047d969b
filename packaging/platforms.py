"""Whether the package can be installed: are there wheels of everything, for each Python, system and extra?

    python packaging/platforms.py            # asks the package index, by uv; nothing is installed

Prints one line for each combination, and ends with 1 where one fails that is not in ``IMPOSSIBLE``, or one of these
works by now.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
SYSTEMS = {
    "Linux": "x86_64-manylinux_2_28",
    "Linux on ARM": "aarch64-manylinux_2_28",
    "Windows": "x86_64-pc-windows-msvc",
    "macOS": "aarch64-apple-darwin",
    "macOS on Intel": "x86_64-apple-darwin",
}
EXTRAS = ("", "train", "label")
SOURCE_ONLY = frozenset({"iopath", "sam2", "timeloop"})
"""What MONAI Label needs and has no wheels of; it is Python, and pip builds it."""
IMPOSSIBLE = {
    "macOS on Intel": "PyTorch 2.6 and newer have no wheels for it",
}


def resolve(python: str, platform: str, extra: str, *wheels: str) -> subprocess.CompletedProcess[str]:
    """The versions that uv finds; with the names of distributions that must have wheels."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    command += ["pyproject.toml", "--python-version", python, "--python-platform", platform]
    command += [word for name in wheels for word in ("--only-binary", name)]
    command += ["--extra", extra] if extra else []
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False)


def attempt(python: str, platform: str, extra: str) -> tuple[dict[str, str], str]:
    """Name → version, and what is wrong; "" if nothing is."""
    done = resolve(python, platform, extra)
    if done.returncode == 0:
        names = set(re.findall(r"^([a-z0-9-]+)(?:\[.*\])?==", done.stdout, re.MULTILINE)) - SOURCE_ONLY
        done = resolve(python, platform, extra, *sorted(names))
    found = dict(re.findall(r"^([a-z0-9-]+)(?:\[.*\])?==(\S+)", done.stdout, re.MULTILINE))
    return found, "" if done.returncode == 0 else " ".join(done.stderr.split())[:300]


def main() -> int:
    """Try all combinations."""
    wrong = 0
    for (system, platform), python, extra in itertools.product(SYSTEMS.items(), PYTHONS, EXTRAS):
        found, problem = attempt(python, platform, extra)
        shown = [name for name in ("torch", "numpy", "pydicom", "monailabel") if name in found]
        versions = ", ".join(f"{name} {found[name]}" for name in shown)
        known = IMPOSSIBLE.get(system, "")
        sys.stdout.write(f"{system}, Python {python}, {extra or 'core'}: {problem or versions}\n")
        sys.stdout.flush()
        wrong += bool(problem) != bool(known)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
