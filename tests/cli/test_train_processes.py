"""``boltzformer train --processes 2``: one log, one error, and signals that reach all processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from boltzformer_monai.cli import main
from boltzformer_monai.networks.weights import load_checkpoint
from tests.cli.test_train import SMALL_NETWORK
from tests.engines.cases import write_dataset


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("slices"))


def words(slices: Path, output: Path, *more: str) -> list[str]:
    small = ["--set", "image_size=64", "--set", f"network_overrides={SMALL_NETWORK}", "--set", "save_steps=1"]
    return [
        "train",
        "--data",
        str(slices),
        "--output",
        str(output),
        "--preset",
        "tiny",
        *small,
        "--processes",
        "2",
        *more,
    ]


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a command in a process group of its own, which the test does not outlive."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "boltzformer_monai", *arguments]
        started.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        )
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(path: Path, pattern: str, *, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not list(path.glob(pattern)):
        assert time.monotonic() < end, f"no {pattern} in {path}"
        time.sleep(0.05)


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of its training processes, the first rank first."""
    found = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "spawn_main"], capture_output=True, text=True)
    return sorted(map(int, found.stdout.split()))


@pytest.mark.slow
def test_two_processes_train(slices: Path, tmp_path: Path, start: Start) -> None:
    ended = start(*words(slices, tmp_path / "run", "--epochs", "2"))
    out, errors = ended.communicate(timeout=300)
    assert ended.returncode == 0, errors
    assert out.splitlines()[-1] == str(tmp_path / "run" / "model.pt")
    assert errors.count("epoch 1: ") == errors.count("epoch 2: ") > 0
    load_checkpoint(tmp_path / "run" / "model.pt")
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert len(history) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGINT", 130)])
def test_a_signal_stops_all_and_the_training_goes_on(
    name: str, code: int, slices: Path, tmp_path: Path, start: Start
) -> None:
    run = tmp_path / "run"
    process = start(*words(slices, run, "--epochs", "20"))
    wait_for(run / "states", "state_*.pt")
    process.send_signal(signal.Signals[name])
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert errors.count(f"stopped by {name} after step") == 1
    assert "Traceback" not in errors
    if name == "SIGINT":
        return
    again = start(*words(slices, run, "--epochs", "20", "--resume", "auto"))
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert "going on after step" in errors


@pytest.mark.slow
def test_a_killed_process_ends_the_training_with_one_line(slices: Path, tmp_path: Path, start: Start) -> None:
    run = tmp_path / "run"
    process = start(*words(slices, run, "--epochs", "200"))
    wait_for(run / "states", "state_*.pt")
    ranks = ranks_of(process)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert lines == [
        "error: process 1 of the training was ended by signal 9; the same command with --resume auto goes on"
    ]
    assert "Traceback" not in errors
    assert ranks_of(process) == []


@pytest.mark.slow
def test_an_error_in_all_processes_is_said_once(slices: Path, tmp_path: Path, start: Start) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(slices, damaged)
    for image in (damaged / "images").iterdir():
        image.write_bytes(image.read_bytes()[:40])
    process = start(*words(damaged, tmp_path / "run", "--epochs", "1"))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert errors.count("error: ") == 1
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "epoch=3"], "unknown override --epoch"),
        (["--device", "cpu"], "--device cpu: with --processes"),
        (["--processes", "0"], "must be at least 1"),
        (["--set", "global_batch=3"], "global_batch"),
    ],
)
def test_mistakes_are_told_before_a_process_starts(
    more: list[str], message: str, slices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(slices, tmp_path / "run", *more)) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_the_demo_shares_its_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--output", str(tmp_path / "demo"), "--processes", "3"]) == 2
    assert "the demo's steps of 16 images cannot be shared equally" in capsys.readouterr().err
    assert not list((tmp_path / "demo").iterdir())
