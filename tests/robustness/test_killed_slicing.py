"""Slicing that is killed at any moment: what is there can be read, and started again it ends as if nothing happened."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.io.read import write_label_map
from boltzformer_monai.io.volume import Volume
from tests.data.slice_cases import contents
from tests.sizes import cases, count
from tests.warm_python import run_copy, start_copy

SCRIPT = Path(__file__).resolve().parents[2] / "preprocessing" / "slice_volumes.py"
CASES = 14
KILLS_PER_CHAIN = count(3, thorough=10)


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
        str(SCRIPT), "--recipe", "msd", "--input", str(task), "--output", str(output),
        "--site", "liver", "--name", "killed", "--workers", str(workers),
    ]  # fmt: skip


def run(task: Path, output: Path, workers: int) -> None:
    """Slice without disturbance, which refuses the broken scan."""
    words = [sys.executable, *command(task, output, workers)]  # of which no two hash alike
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "1 scan refused" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def undisturbed(task: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run ends with."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    run(task, output, 1)
    assert len(SliceReader(output).volumes) == CASES - 1
    return contents(output)


def stamps(output: Path) -> dict[str, tuple[int, int]]:
    """Records that are there, with what a second writing would change."""
    found = {}
    for path in (output / "volumes").glob("[!.]*.json"):
        with contextlib.suppress(FileNotFoundError):  # just being replaced
            found[path.stem] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return found


def kill_at_work(words: list[str], output: Path, more: int, delay: float) -> bool:
    """Start slicing and kill it when so many more volumes are complete, and a moment has passed; whether it died."""
    before = stamps(output)
    process = start_copy(words, folder=output.parent, log=output.parent / "log.txt", environment=os.environ)
    while process.poll() is None and len(set(stamps(output).items()) - set(before.items())) < more:
        time.sleep(0.002)
    time.sleep(delay)
    if process.poll() is None:
        process.kill()
    return process.wait(60) == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize(("chain", "workers"), cases([(0, 1), (3, 2)], thorough=[(1, 2), (2, 1)]))
def test_killed_at_random_moments_and_started_again(
    task: Path, undisturbed: dict[str, bytes], tmp_path: Path, chain: int, workers: int
):
    output, rng = tmp_path / "out", random.Random(chain)
    old: set[tuple[str, tuple[int, int]]] = set()
    if chain == 3:  # every volume is there already, sliced with other settings, and is to be replaced
        first = run_copy([*command(task, output, 2), "--negatives", "0.5"], folder=tmp_path, environment=os.environ)
        assert first.returncode == 3
        old = set(stamps(output).items())
    done: set[tuple[str, tuple[int, int]]] = set()
    for kill in range(KILLS_PER_CHAIN):
        left = CASES - 1 - len(done)
        if left < 4:  # it might finish before it is killed
            break
        more = 0 if kill == 0 else rng.randint(0, 2)
        delay = rng.uniform(0, 0.05 if more else 0.06 * left)
        assert kill_at_work(command(task, output, workers), output, more, delay)
        now = set(stamps(output).items()) - old
        assert now >= done  # nothing twice: what was complete has not been written again
        done = now
        if (output / "dataset.json").exists():
            for row in SliceReader(output).rows:  # raises where a table and the files disagree
                assert row.image.is_file()
    assert 0 < len(done) <= CASES - 1  # the kills did fall into the work
    run(task, output, workers)
    assert set(stamps(output).items()) >= done
    assert contents(output) == undisturbed
