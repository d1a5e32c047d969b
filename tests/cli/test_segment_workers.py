"""``segment`` of a folder of scans shared out: to processes, and to the workers of a Dask cluster, which may die."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from boltzformer_monai import __version__
from boltzformer_monai.cli import main, segment_jobs
from boltzformer_monai.cli.segment_jobs import (
    Work,
    WorkerInfo,
    load_run,
    segment_elsewhere,
    worker_info,
    worker_problem,
)
from boltzformer_monai.cli.segment_run import _alike
from boltzformer_monai.cli.segment_targets import Job
from boltzformer_monai.demo.phantom import make_phantom
from boltzformer_monai.demo.phantom_files import write_phantom_dicom, write_phantom_nifti
from boltzformer_monai.errors import BoltzFormerError, CheckpointError, ConfigError
from boltzformer_monai.inferers.run_settings import RunSettings
from boltzformer_monai.io.scan_list import Scan
from boltzformer_monai.models.config import model_sha256
from boltzformer_monai.models.place import locate
from tests.needs import need_module

SCANS = 12


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven NIfTI files, one of them cut off, and a DICOM series: twelve scans."""
    folder = tmp_path_factory.mktemp("archive")
    for seed in range(SCANS - 1):
        image, label = make_phantom("abdomen", seed=seed, size=(32, 32, 6))
        write_phantom_nifti(image, label, folder / "nifti", f"scan{seed:02d}")
    write_phantom_dicom(image, folder / "patient" / "series", seed=1)
    bad = folder / "nifti" / "scan03.nii.gz"
    bad.write_bytes(bad.read_bytes()[:500])
    return folder


@pytest.fixture(scope="module")
def serial(archive: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Name of each file → its bytes, as one process writes them."""
    out = tmp_path_factory.mktemp("serial") / "out"
    assert _run(archive, checkpoint, out) == 3
    return _contents(out)


def _run(archive: Path, checkpoint: Path, out: Path, *more: object) -> int:
    # The second prompt is none of the training: every process warns of it.
    given = [archive, "--prompts", "left kidney", "flux capacitor", "--checkpoint", checkpoint, "--output", out, *more]
    return main(["segment", *map(str, given), "--preview", str(out.parent / f"{out.name}-pictures")])


def _contents(out: Path) -> dict[str, bytes]:
    places = [path for top in (out, out.parent / f"{out.name}-pictures") for path in top.rglob("*") if path.is_file()]
    files = {path.relative_to(out.parent).as_posix(): path.read_bytes() for path in places}
    return {name.removeprefix(out.name): content.replace(out.name.encode(), b"") for name, content in files.items()}


@contextmanager
def _killing(processes: Callable[[], list[int]], out: Path, killed: list[int]) -> Iterator[None]:
    """Kill one process when the first results are there."""

    def kill() -> None:
        deadline = time.monotonic() + 120
        while len(list(out.rglob("*.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        pid = processes()[0]
        os.kill(pid, signal.SIGKILL)
        killed.append(len(list(out.rglob("*.json"))))

    thread = threading.Thread(target=kill)
    thread.start()
    yield
    thread.join()


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed_give_the_same_bytes(
    archive: Path,
    checkpoint: Path,
    serial: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    killed: list[int] = []
    with _killing(lambda: [process.pid for process in multiprocessing.active_children()], tmp_path / "out", killed):
        assert _run(archive, checkpoint, tmp_path / "out", "--workers", 2, "--threads", torch.get_num_threads()) == 3
    assert 2 <= killed[0] < SCANS - 1
    assert _contents(tmp_path / "out") == serial
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    outputs = [str(tmp_path / "out" / f"nifti/scan{seed:02d}.nii.gz") for seed in range(SCANS - 1) if seed != 3]
    # A scan that the killed process had finished, and not told of, is complete for the next.
    assert {line["output"] for line in lines} <= {*outputs, str(tmp_path / "out" / "patient" / "series.nii.gz")}
    assert "11 of the results are in doubt" in caplog.messages[-1]
    assert sum("flux capacitor" in message for message in caplog.messages) == 1
    assert [message for message in caplog.messages if message.startswith("failed: ")][0].startswith(
        "failed: nifti/scan03"
    )


@pytest.mark.slow
def test_two_dask_workers_of_which_one_is_killed_give_the_same_bytes(
    archive: Path, checkpoint: Path, serial: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    distributed = need_module("distributed")
    caplog.set_level(logging.INFO, logger="boltzformer_monai")
    killed: list[int] = []
    out = tmp_path / "out"
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=logging.CRITICAL
    ) as cluster:
        more = ["--scheduler", cluster.scheduler_address, "--threads", torch.get_num_threads()]
        workers = lambda: [each.pid for each in cluster.workers.values()]  # noqa: E731
        with _killing(workers, out, killed):
            assert _run(archive, checkpoint, out, *more) == 3
        assert 2 <= killed[0] < SCANS - 1
        assert _contents(out) == serial
        assert sum("flux capacitor" in message for message in caplog.messages) == 1
        assert not [path for path in out.iterdir() if path.name.startswith(".")]
        assert _run(archive, checkpoint, out, *more) == 3
        assert any(message.startswith("0 segmented, 11 were complete already, 1 failed") for message in caplog.messages)
        (tmp_path / "model.pt").write_bytes(checkpoint.read_bytes()[:1000])
        assert _run(archive, tmp_path / "model.pt", tmp_path / "other", *more) == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["{scan}", "--workers", "2"], "--workers shares out the scans of a folder"),
        (["{scan}", "--scheduler", "tcp://127.0.0.1:1"], "--scheduler shares out the scans of a folder"),
        (["{archive}", "--workers", "2", "--scheduler", "tcp://127.0.0.1:1"], "leave one of both out"),
        (["{archive}", "--workers", "0"], "must be at least 1"),
        (["{archive}", "--scheduler", "nonsense"], "no Dask scheduler answers"),
    ],
)
def test_mistakes(
    archive: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    if "nonsense" in more:
        need_module("distributed")
    given = [part.format(scan=archive / "nifti" / "scan00.nii.gz", archive=archive) for part in more]
    output = tmp_path / ("out" if given[0] == str(archive) else "out.nii.gz")
    call = ["segment", *given, "--prompts", "left kidney", "--checkpoint", str(checkpoint), "--output", str(output)]
    assert main(call) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def _work(checkpoint: Path, **changed: Any) -> Work:
    settings = RunSettings(prompts=["left kidney"], modality="CT")
    return replace(Work(settings=settings, checkpoint=checkpoint, sha256=model_sha256(locate(checkpoint))), **changed)


def test_a_process_loads_its_model_once_and_never_another(
    archive: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Path] = []
    real = segment_jobs.VolumeSegmenter.from_checkpoint
    monkeypatch.setattr(
        segment_jobs.VolumeSegmenter,
        "from_checkpoint",
        lambda path, **more: (loaded.append(path), real(path, **more))[1],
    )
    model = tmp_path / "model.pt"
    model.write_bytes(checkpoint.read_bytes())
    work = _work(model)
    for name in ("scan00", "scan01"):
        job = Job(Scan(name, archive / "nifti" / f"{name}.nii.gz"), tmp_path / name)
        outcome = segment_elsewhere(job, work)
        assert outcome.manifest is not None
        assert outcome.manifest["model"] == work.sha256
    assert loaded == [model]
    content = torch.load(model, weights_only=True)
    torch.save({**content, "more": 1}, model)
    with pytest.raises(CheckpointError, match="not the model that the run began with"):
        load_run(replace(work, precision="fp32"), keep=True)
    load_run(_work(model), keep=True)
    assert len(loaded) == 3


def test_a_worker_says_what_keeps_it_from_the_work(checkpoint: Path, tmp_path: Path) -> None:
    work, token = _work(checkpoint), tmp_path / "token"
    assert "same file system" in worker_info(work, [tmp_path], [token], __version__).problem
    token.touch()
    assert str(tmp_path / "no") in worker_info(work, [tmp_path / "no"], [token], __version__).problem
    assert "install the same" in worker_info(work, [tmp_path], [token], "0.0").problem
    assert "no device" in worker_info(replace(work, device="cuda:99"), [tmp_path], [token], __version__).problem
    assert "no_such_plugin" in worker_info(replace(work, plugins=("no_such_plugin",)), [], [token], __version__).problem
    assert "install the same" in worker_problem(work, [tmp_path], "0.0")
    assert worker_problem(work, [tmp_path], __version__) == ""
    fine = worker_info(replace(work, precision="bf16"), [tmp_path], [token], __version__)
    assert (fine.problem, fine.device, fine.precision) == ("", "cuda" if torch.cuda.is_available() else "cpu", "bf16")
    assert fine.processors >= 1


def test_all_workers_compute_alike(checkpoint: Path) -> None:
    work = _work(checkpoint)
    one, two, three = (
        WorkerInfo("", "a", 8, "cpu", "bf16"),
        WorkerInfo("", "b", 3, "cpu", "bf16"),
        WorkerInfo("", "b", 3, "cpu", "fp32"),
    )
    alike = _alike(work, {"x": one, "y": one})
    assert (alike.kind, alike.precision, alike.threads) == ("cpu", "bf16", 4)
    assert _alike(work, {"x": one, "y": one, "z": two}).threads == 3
    assert _alike(work, {"x": one, "y": two, "z": three}).threads == 1
    assert _alike(work, {"x": one, "z": three}).precision == "fp32"
    assert _alike(replace(work, threads=7), {"x": one}).threads == 7
    with pytest.raises(ConfigError, match="y computes on cuda, x on cpu, and results would depend"):
        _alike(work, {"x": one, "y": replace(two, device="cuda")})
    with pytest.raises(ConfigError, match="y: this worker is ill"):
        _alike(work, {"x": one, "y": replace(two, problem="is ill")})
    with pytest.raises(ConfigError, match="lost"):
        _alike(work, {})


def test_processes_take_the_gpus_in_turn(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(segment_jobs, "device_by_name", torch.device)
    for name, index in (("SpawnProcess-1", 0), ("SpawnProcess-4", 1), ("Dask Worker process (from Nanny)", 0)):
        monkeypatch.setattr(multiprocessing.current_process(), "_name", name)
        assert segment_jobs._device(_work(checkpoint, device="cuda")) == torch.device("cuda", index)
    with pytest.raises(BoltzFormerError, match="computes on cuda, and others on cpu"):
        segment_jobs._device(_work(checkpoint, device="cuda", kind="cpu"))
