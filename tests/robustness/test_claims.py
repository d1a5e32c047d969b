"""What small files claim never takes the memory of the machine, and says so in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from boltzformer_monai.limits import MEMORY_VARIABLE
from tests.robustness.claims import BUDGET_GB, SPACE
from tests.sizes import count

_COUNT = count(60, thorough=1000)
_SECONDS = 60  # for each, on a machine that does other things too; they hung, or filled the memory

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are measured by /proc")


def _outcomes(folder: Path, *count: str) -> list[dict[str, Any]]:
    out = folder / "outcomes.jsonl"
    command = [sys.executable, "-W", "ignore", "-m", "tests.robustness.claims", str(folder), str(out), *count]
    environment = {key: value for key, value in os.environ.items() if key != MEMORY_VARIABLE}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_each_bomb_is_one_line_and_exit_code_2_in_3_gigabytes(tmp_path: Path) -> None:
    outcomes = _outcomes(tmp_path)
    assert len(outcomes) > 20
    for outcome in outcomes:
        errors = [line for line in outcome["words"].splitlines() if not line.startswith(("warning:", "\rslicing"))]
        errors = [line for line in errors if line and not line.startswith("slicing:")]
        assert outcome["code"] == 2, outcome
        assert len(errors) == 1, outcome
        assert errors[0].startswith("error: "), outcome
        assert "Errno" not in errors[0], outcome
        assert outcome["seconds"] < _SECONDS, outcome
        assert outcome["peak"] < SPACE / 10, outcome
    words = {outcome["name"]: outcome["words"] for outcome in outcomes}
    for name in ("whole.nii", "whole.nii.gz", "whole.nrrd", "packed.nrrd", "whole.mha", "packed.mha", "rle", "j2k"):
        assert "may be used; crop or resample the scan, or allow more with --memory-gb" in words[name]
    for name in ("pipe.nii", "pipe.nii.gz", "pipe.nrrd", "pipe", "label pipe", "pipe.json"):
        assert "is a pipe, socket or device and not a file" in words[name]
    assert "inflates to more than" in words["deflated"]
    assert "nested too deeply" in words["deep.json"]


def test_random_claims_are_right_or_refused_within_the_budget(tmp_path: Path) -> None:
    """Files of all formats whose headers claim up to 8e9 voxels, held or not, under a budget of 64 MB."""
    outcomes = _outcomes(tmp_path, str(_COUNT))
    assert len(outcomes) == _COUNT
    for outcome in outcomes:
        assert outcome["refused"] or outcome["right"], outcome
        assert outcome["peak"] <= BUDGET_GB * 1e9, outcome
        if outcome["sound"] and outcome["voxels"] * 20 < BUDGET_GB * 1e9:
            assert outcome["right"], outcome
        if outcome["voxels"] * 4 > BUDGET_GB * 1e9:
            assert outcome["refused"] in ("too large", "truncated", "damaged"), outcome
    assert sum(outcome["right"] for outcome in outcomes) > _COUNT / 4
    assert sum(outcome["refused"] == "too large" for outcome in outcomes) > _COUNT / 20
