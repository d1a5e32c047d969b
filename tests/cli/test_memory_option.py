"""--memory-gb of the commands, the server's setting of the same name, and the share of a worker."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from boltzformer_monai import parallel as pool
from boltzformer_monai.cli import main
from boltzformer_monai.cli.slice import main as slice_volumes
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.label.server_settings import ServerSettings
from boltzformer_monai.limits import MEMORY_VARIABLE, machine_memory
from tests.robustness.claims import nifti_header


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MEMORY_VARIABLE, "1")  # what the commands set is taken back after the test
    monkeypatch.delenv(MEMORY_VARIABLE)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A scan of 2.4 million voxels, which take 10 MB."""
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(nifti_header((200, 200, 60), 4, 16) + bytes(200 * 200 * 60 * 2)))
    return path


def test_slicing_takes_a_scan_that_fits_and_refuses_one_that_does_not(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--image", str(scan), "--modality", "CT", "--every", "60", "--output", str(tmp_path / "out")]
    assert slice_volumes([*command, "--memory-gb", "0.009"]) == 2
    assert "scan.nii.gz: reading it would take 0.0096 GB of memory and 0.009 GB may be used" in capsys.readouterr().err
    assert slice_volumes([*command, "--memory-gb", "0.01"]) == 0


def test_segment_says_at_once_that_the_number_is_none(scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["segment", str(scan), "--prompts", "liver", "--checkpoint", str(scan), "--output", "out.nii.gz"]
    assert main([*command, "--memory-gb", "much"]) == 2
    assert capsys.readouterr().err == "error: --memory-gb takes a number of gigabytes above 0, got 'much'\n"


def test_the_server_has_the_setting() -> None:
    conf = {"checkpoint": "model.pt", "memory_gb": "1.5"}
    assert ServerSettings.from_conf(conf, studies="s").memory_gb == 1.5
    for wrong in ("-1", "inf", "nan"):
        with pytest.raises(ConfigError, match="memory_gb"):
            ServerSettings.from_conf({**conf, "memory_gb": wrong}, studies="s")


def test_workers_share_the_memory_unless_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.signal, "signal", lambda *_: None)
    pool._set_up_worker(4)
    assert float(os.environ[MEMORY_VARIABLE]) == pytest.approx(machine_memory() / 8e9, rel=0.05)
    monkeypatch.setenv(MEMORY_VARIABLE, "2")
    pool._set_up_worker(4)
    assert os.environ[MEMORY_VARIABLE] == "2"
