"""Slicing that is killed at any moment: what is there can be read, and started again it ends as if nothing happened."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.data.slices import SliceReader
from boltzformer_monai.io.volume import Volume, write_label_map
from tests.data.slice_cases import contents

SCRIPT = Path(__file__).resolve().parents[2] / "preprocessing" / "slice_volumes.py"
CASES = 10
KILLS_PER_CHAIN = 5


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Decathlon task that takes a second or two to slice, with one scan that is refused."""
    folder = tmp_path_factory.mktemp("Task03_Liver")
    affine = np.diag([-0.8, -0.8, 3.0, 1.0])
    training = []
    for number in range(CASES):
        rng = np.random.default_rng(number)
        label = np.zeros((96, 96, 40), np.uint8)
        label[20:40, 30:60, 5:35] = 1
        label[25:30, 35:40, 10 + number : 14 + number] = 2
        for part, array in (("imagesTr", rng.integers(0, 4000, label.shape).astype(np.uint16)), ("labelsTr", label)):
            (folder / part).mkdir(exist_ok=True)
            write_label_map(array, Volume(array, affine), folder / part / f"liver_{number}.nii.gz")
        training.append({part[:5]: f"{part}sTr/liver_{number}.nii.gz" for part in ("image", "label")})
    broken = folder / training[3]["image"]
    broken.write_bytes(broken.read_bytes()[:5000])
    labels = {"0": "background", "1": "liver", "2": "cancer"}
    content = {"name": "Liver", "modality": {"0": "CT"}, "labels": labels, "training": training}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def command(task: Path, output: Path, workers: int) -> list[str]:
    return [
        sys.executable, str(SCRIPT), "--recipe", "msd", "--input", str(task), "--output", str(output),
        "--site", "liver", "--name", "killed", "--workers", str(workers),
    ]  # fmt: skip


def run(task: Path, output: Path, workers: int) -> None:
    """Slice without disturbance, which refuses the broken scan."""
    done = subprocess.run(command(task, output, workers), capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "1 scan refused" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def undisturbed(task: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float, float]:
    """What a run ends with, and the seconds after its start at which it begins and ends to write."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    started = time.time()
    run(task, output, 1)
    assert len(SliceReader(output).volumes) == CASES - 1
    return contents(output), (output / ".lock").stat().st_mtime - started, time.time() - started


@pytest.mark.parametrize(("chain", "workers"), [(0, 1), (1, 2), (2, 1), (3, 2)])
def test_killed_at_random_moments_and_started_again(
    task: Path, undisturbed: tuple[dict[str, bytes], float, float], tmp_path: Path, chain: int, workers: int
):
    expected, begin, end = undisturbed
    output, rng = tmp_path / "out", random.Random(chain)
    for _ in range(KILLS_PER_CHAIN):
        process = subprocess.Popen(command(task, output, workers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.9 * begin, end))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (output / "dataset.json").exists():
            for row in SliceReader(output).rows:  # raises where a table and the files disagree
                assert row.image.is_file()
    run(task, output, workers)
    assert contents(output) == expected
